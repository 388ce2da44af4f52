"""One pass over a split: every sample once, in file order, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.engine import checkpoint, rundir
from sensorium.engine.backend import Backend
from sensorium.engine.contract import Evaluation, Evaluator, Family, Source
from sensorium.engine.loader import Batches
from sensorium.engine.order import evaluation_batches
from sensorium.engine.results import Result, write_result
from sensorium.engine.seeds import derive
from sensorium.engine.session import choose_checkpoint, fingerprints, open_run, require_same_data
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError


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
    with _judging(task, backend):
        for batch in Batches(source, _Rows(config, len(source), backend), loader):
            on_device = {name: tensor.to(backend.device) for name, tensor in batch.items()}
            found = {"index": batch["index"], **evaluator.collect(task, on_device, final=final)}
            parts.append({name: tensor.detach().cpu().numpy() for name, tensor in found.items()})
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
    with _judging(task, backend):
        result: Evaluation = backend.from_main(lambda: evaluator.score(collected, source, task, final=final))
    return result


def draw(task: nn.Module, source: Source, family: Family, config: RunConfig, backend: Backend) -> Mapping[str, bytes]:
    """What the family draws with ``task``, on the main process; nothing on others."""
    found: dict[str, bytes] = {}
    if family.pictures is not None:
        pictures = family.pictures
        with _judging(task, backend):
            backend.from_main(lambda: found.update(pictures(task, source, config)))
    return found


@contextmanager
def _judging(task: nn.Module, backend: Backend) -> Iterator[None]:
    """Eval mode, no gradient, the run's precision; afterwards all is as before."""
    was_training = task.training
    task.eval()
    with torch.no_grad(), backend.autocast(), backend.whole():
        yield
    task.train(was_training)


def evaluate_run(family: Family, folder: Path, split: str, which: str, *, quiet: bool = False) -> Evaluation:
    """Evaluate a checkpoint of a run on one split and write ``evaluation/<split>.json``.

    Raises ConfigError for a split that the data do not have, CheckpointError for a checkpoint that is not there.
    """
    path = choose_checkpoint(folder, family.name, which)
    loaded = open_run(family, folder, path.name)
    config = loaded.config
    with Backend(config.train) as backend:
        found = family.sources(config, backend.host(quiet=quiet))
        require_same_data(folder, rundir.read_facts(folder), fingerprints(found))
        splits = {"train": found.train, "val": found.val, "test": found.test}
        source = splits.get(split)
        if source is None:
            there = ", ".join(name for name, part in splits.items() if part is not None)
            raise ConfigError(f"{folder}: the data have no split {split!r}; there are: {there}")
        task = loaded.task.to(backend.device)
        result = evaluate(task, source, family.evaluator(config), config, backend, final=True)
        if backend.is_main:
            write_result(folder, Result(split, result, split, checkpoint.check(path).step, path.name))
        return result
