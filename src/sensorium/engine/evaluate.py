"""One pass over a split: every sample once, in file order, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.engine.backend import Backend
from sensorium.engine.contract import Evaluation, Evaluator, Source
from sensorium.engine.loader import Batches
from sensorium.engine.order import evaluation_batches
from sensorium.engine.seeds import derive
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError


class _Rows:
    """The batches of one process; the seed of a sample is that of its number."""

    def __init__(self, config: RunConfig, length: int, backend: Backend) -> None:
        batches = evaluation_batches(length, config.evaluate.batch_size, backend.rank, backend.world)
        self.batches = [[(i, derive(config.seed, "evaluate", i)) for i in numbers] for numbers in batches]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def collect(
    task: nn.Module, source: Source, evaluator: Evaluator, config: RunConfig, backend: Backend, *, final: bool
) -> dict[str, Tensor]:
    """What ``evaluator.collect`` gives for each sample, sorted by sample number, on every process, on the CPU.

    A broken sample is an error here whatever the training policy: a table over fewer samples would not be the table.
    """
    loader = config.loader.model_copy(update={"bad_samples": "raise"})
    parts: list[dict[str, np.ndarray]] = []
    was_training = task.training
    task.eval()
    with torch.no_grad(), backend.autocast():
        for batch in Batches(source, _Rows(config, len(source), backend), loader):
            on_device = {name: tensor.to(backend.device) for name, tensor in batch.items()}
            found = {"index": batch["index"], **evaluator.collect(task, on_device, final=final)}
            parts.append({name: tensor.detach().cpu().numpy() for name, tensor in found.items()})
    task.train(was_training)
    joined = backend.gather(parts)
    index = np.concatenate([part["index"] for part in joined])
    order = np.argsort(index, kind="stable")
    if not np.array_equal(index[order], np.arange(len(source))):
        raise DataError(f"evaluation saw {len(index)} samples of {len(source)}")
    return {name: torch.from_numpy(np.concatenate([part[name] for part in joined])[order]) for name in joined[0]}


def evaluate(
    task: nn.Module, source: Source, evaluator: Evaluator, config: RunConfig, backend: Backend, *, final: bool
) -> Evaluation:
    """Evaluate ``task`` on ``source``; the judgement is made once and given to all processes."""
    collected = collect(task, source, evaluator, config, backend, final=final)
    result: Evaluation = backend.from_main(lambda: evaluator.score(collected, source, final=final))
    return result
