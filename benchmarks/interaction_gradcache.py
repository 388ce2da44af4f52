"""A training step of `interaction` in chunks (`train.micro_batches`), beside the whole batch at once.

    pip install sentence-transformers          # for the peer; without it that row is left out
    OMP_NUM_THREADS=1 python benchmarks/interaction_gradcache.py

One forward and backward pass over rows of all three modalities; everything trains. Stage `align` is contrast alone,
stage `full` has all losses. "accumulation" is the mean of a loss for each chunk by itself: rows of other chunks are no
negatives. sentence-transformers' GradCache (`CachedLossMixin`; its own ready loss: benchmarks/gradcache.py) gets the
same towers and loss. It caches vectors alone, so it has no stage `full`, whose fusion reads tokens.

Each arm runs in a process of its own; on a CPU, seconds are processor time. The ratio is to a step of the whole batch
right after it; that of the whole batch itself shows the noise. Peak memory is how much resident memory grew at most (on
a GPU: what was allocated at most) from before the step, gradients included. Negatives are read off the logged loss of
guessing. The error is that of the gradient against the whole batch, relative in norm, with dropout off and without the
match loss, which draws its wrong pairs from the chunk by design. Ends with an error if chunks take more than 1.6 times
as long as the whole batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common import RESIDENT, clock, machine, median, side_by_side, spread, table, words_of
from torch import Tensor, nn

from sensorium import config as configuration
from sensorium.data.items import MODALITIES
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.engine.contract import Output
from sensorium.families.interaction import losses
from sensorium.families.interaction.config import SHAPES, ModelConfig
from sensorium.families.interaction.sources import ALIGN, FULL
from sensorium.families.interaction.task import InteractionTask, embed
from sensorium.parts.chunks import take

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS, LABELS, SLOWEST = 128, 80, 1.6
PEER = "sentence-transformers"
ARMS, OTHERS = [("whole batch", 1), ("chunks", 2), ("chunks", 4), ("chunks", 8)], [("accumulation", 4)]
COLUMNS = [("has", "ids", "ids_mask"), ("has", "pixels"), ("has", "mel", "mel_mask")]  # as MODALITIES
Pass = Callable[[], Mapping[str, Tensor]]  # forward and backward; gives what the loss logs


def make_batch(config: ModelConfig, rows: int, frames: int) -> dict[str, Tensor]:
    """Full rows of all modalities, nothing padded."""
    generator, side = torch.Generator().manual_seed(0), config.image_size
    batch = {
        "has": torch.ones(rows, 3, dtype=torch.bool),
        "group": torch.arange(rows),
        "pixels": torch.randint(0, 256, (rows, 3, side, side), generator=generator, dtype=torch.uint8),
        "ids": torch.randint(0, config.vocab, (rows, TOKENS), generator=generator),
        "ids_mask": torch.ones(rows, TOKENS, dtype=torch.bool),
        "mel": torch.randn(rows, frames, config.mel_bands, generator=generator),
        "mel_mask": torch.ones(rows, frames, dtype=torch.bool),
        "labels": torch.rand(rows, LABELS, generator=generator) < 0.05,
    }
    batch |= {f"target_{m}": torch.randn(rows, config.embedding, generator=generator) for m in MODALITIES}
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def make_task(given: argparse.Namespace, stage: str, *, exact: bool) -> InteractionTask:
    """``exact``: of what does not depend on chance or, by design, on the chunks."""
    less: dict[str, Any] = {"dropout": 0.0, "weights": {"match": 0.0}} if exact else {}
    content = {"size": given.size, "image_size": given.image, "max_tokens": TOKENS, **less}
    torch.manual_seed(0)
    config = configuration.build(ModelConfig, content)
    task = InteractionTask(config, {"labels": [str(n) for n in range(LABELS)], "teachers": {}}, 1)
    task.stage = stage
    return task.to(DEVICE).train()


def pass_of(kind: str, task: InteractionTask, batch: dict[str, Tensor], chunks: int) -> Pass:
    if kind == PEER:
        return peer_pass(task, batch, chunks)
    rows = torch.arange(len(batch["has"]), device=DEVICE).chunk(chunks if kind == "accumulation" else 1)
    parts = [take(batch, some) for some in rows]

    def run() -> Mapping[str, Tensor]:
        task.chunks = chunks if kind == "chunks" else 1
        for part in parts:
            output: Output = task(part)
            torch.autograd.backward(output.loss / len(parts))
        return output.logs

    return run


def peer_pass(task: InteractionTask, batch: dict[str, Tensor], chunks: int) -> Pass:
    """Its caching around our towers and our loss: a column a modality."""
    from sentence_transformers.base.losses.gradcache import CachedLossMixin

    class Towers(nn.Module):
        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            [vectors] = embed(task.model, features).values()
            return {"sentence_embedding": vectors}

    class Cached(CachedLossMixin, nn.Module):
        forward_cached: Callable[[list[dict[str, Tensor]]], Tensor]  # of the mixin

        def __init__(self) -> None:
            super().__init__()
            self.model, self.mini_batch_size = Towers(), len(batch["has"]) // chunks
            self.logs: dict[str, Tensor] = {}

        def calculate_loss(
            self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
        ) -> Tensor:
            z = {m: torch.cat(found) for m, found in zip(MODALITIES, reps, strict=True)}
            has = dict.fromkeys(MODALITIES, batch["has"][:, 0])
            parts = losses.contrast(z, has, batch["group"], task.model.temperatures, everywhere=True)
            self.logs = {"align_chance": parts["chance/text-image"]}
            loss = torch.stack([parts[name] for name in task.model.temperatures]).sum()
            if with_backward:
                torch.autograd.backward(loss)
            return loss

    cached = Cached()
    columns = [{name: batch[name] for name in names} for names in COLUMNS]

    def run() -> Mapping[str, Tensor]:
        torch.autograd.backward(cached.forward_cached(columns))
        return cached.logs

    return run


def gradient(task: InteractionTask, run: Pass) -> Tensor:
    """Of all weights of the model that the loss depends on, one after another."""
    task.zero_grad()
    run()
    return torch.cat([p.grad.flatten().cpu() for p in task.model.parameters() if p.grad is not None])


def timed(task: InteractionTask, run: Pass) -> tuple[float, Mapping[str, Tensor]]:
    task.zero_grad()
    begun = clock()
    logs = run()
    return clock() - begun, logs


def run_arm(given: argparse.Namespace) -> None:
    (stage, kind), chunks = given.arm[:2], int(given.arm[2])
    exact = make_task(given, stage, exact=True)  # its steps also load what is slow at first
    batch = make_batch(exact.config, given.rows, given.frames)
    right = gradient(exact, pass_of("whole batch", exact, batch, 1))
    error = float((gradient(exact, pass_of(kind, exact, batch, chunks)) - right).norm() / right.norm())
    del exact, right
    task = make_task(given, stage, exact=False)
    if not reset_peak(DEVICE):
        raise SystemExit("peak memory cannot be measured on this system")
    before = read_peak(DEVICE)
    seconds, logs = timed(task, pass_of(kind, task, batch, chunks))
    peak = read_peak(DEVICE) - before
    whole, _ = timed(task, pass_of("whole batch", task, batch, 1))
    found = {"seconds": seconds, "ratio": seconds / whole, "megabytes": peak / 1e6, "error": error}
    print(json.dumps({**found, "negatives": round(math.exp(float(logs["align_chance"]))) - 1}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--rows", type=int, default=32, help="a multiple of 8")
    parser.add_argument("--image", type=int, default=224, help="height and width of pictures")
    parser.add_argument("--frames", type=int, default=1024, help="length of sounds, in mel frames")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows < 8 or given.rows % 8:
        parser.error(f"--rows is {given.rows}; it must be a multiple of 8, the most chunks")
    if given.arm:
        run_arm(given)
        return
    common = words_of(given, "size", "rows", "image", "frames")
    peer = [(PEER, 4)] if importlib.util.find_spec("sentence_transformers") else []
    cells = [*((ALIGN, *arm) for arm in [*ARMS, *OTHERS, *peer]), *((FULL, *arm) for arm in ARMS)]
    arms = [["--arm", *map(str, cell), *common] for cell in cells]
    found = dict(zip(cells, side_by_side(__file__, arms, given.repeats, RESIDENT), strict=True))
    rows, slowest = [], 0.0
    for (stage, kind, chunks), results in found.items():
        slowest = max(slowest, median(results, "ratio")) if kind == "chunks" else slowest
        peak, negatives, error = (median(results, name) for name in ("megabytes", "negatives", "error"))
        memory = f"{peak / median(found[stage, 'whole batch', 1], 'megabytes'):.3f}"
        shown = spread(results, "seconds"), spread(results, "ratio"), f"{peak:.0f}", memory
        rows.append((stage, kind, chunks, *shown, f"{negatives:.0f}", f"{error:.1e}"))
    print(f"{machine()}\nfp32, {TOKENS} tokens, {' '.join(common)}")
    columns = ("stage", "arm", "chunks", "seconds a step", "ratio", "peak MB above weights", "ratio", "negatives")
    print(table((*columns, "gradient error"), rows))
    if slowest > SLOWEST:
        raise SystemExit(f"chunks take {slowest:.2f} times as long as the whole batch; at most {SLOWEST} is wanted")


if __name__ == "__main__":
    main()
