"""Time and peak memory of the six models of `video_retrieval`: does merging save time, or multiplications only?

    OMP_NUM_THREADS=1 python benchmarks/video_models.py --clips b32 --frames 12 --batch 2 --repeats 5
    python benchmarks/video_models.py --batch 32 --train                     # on a GPU: B/32 and B/16, 12 and 64 frames
    python benchmarks/video_models.py --find-batch --train                   # on a GPU: the largest batch that fits

Random weights: they cost what CLIP's do. Inference is one pass over a batch of videos with LoRA folded in; training is
the same batch with as many texts, forward, backward and an AdamW step over what the model trains (nothing in
`clip_mean`, which is left out there). Each cell runs in a process of its own, round by round through the models, so
that a busy minute hits all of them; medians after some passes that do not count. On a GPU memory is what was allocated
at most; on a CPU by how much the resident memory of the process grew, from before the weights. "time of plain": over
that of `lora`, which computes what `clip_mean` does and merges nothing; beside it stands the same ratio of multiply-
accumulates. Rows that merge and save no time are marked. On a CPU that is shared with other work take
`--clock processor`: the time that the process itself computed, of all its threads together.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import machine, median, side_by_side, table, words_of

from sensorium import files
from sensorium.engine.meter import Stopwatch
from sensorium.families.video_retrieval.clip import random_clip
from sensorium.families.video_retrieval.config import KINDS, ModelConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.plan import USUAL_GROUPS, cost
from sensorium.families.video_retrieval.profile import encoding, made_up
from sensorium.families.video_retrieval.shape import clip_shape

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
MERGING = ("tome", "tempme", "unified")
TINY = {"words": 16, "frame_merge": 1, "cut_cross_pct": 30, "cut_inside_pct": 10, "tome_r": 1}


def build(given: argparse.Namespace, device: torch.device) -> UnifiedTempMeSTOPModel:
    groups = dict(zip((1, 2, 3), USUAL_GROUPS[given.frame], strict=True))
    named = {**TINY, "groups": groups} if given.clip == "tiny" else {}
    config = ModelConfig(kind=given.kind, clip=f"random:{given.clip}", frames=given.frame, **named)
    model = UnifiedTempMeSTOPModel(config, clip=random_clip(clip_shape(config)))
    return model.to(device)


def training(model: UnifiedTempMeSTOPModel, rows: int, device: torch.device) -> Callable[[], object]:
    """A step over ``rows`` pairs of a video and a text."""
    video, mask = made_up(model, rows, device)
    ids = torch.randint(0, 400, (rows, model.words), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = model.clip.shape.eot_id
    ids = ids.to(device)
    words = torch.ones_like(ids)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    model.train()

    def step() -> object:
        optimizer.zero_grad()
        loss = model(video, mask, ids, words, words)["total_loss"]
        loss.backward()
        optimizer.step()
        return loss

    return step


def action_of(
    given: argparse.Namespace, model: UnifiedTempMeSTOPModel, watch: Stopwatch, rows: int
) -> Callable[[], object]:
    """What is timed."""
    if given.task == "train":
        plain = training(model, rows, watch.device)
    else:
        model.fold_lora()
        plain = encoding(model.eval(), rows, watch.device)
    precision = PRECISIONS[given.precision]

    def act() -> object:
        with torch.autocast(watch.device.type, precision or torch.bfloat16, enabled=precision is not None):
            return plain()

    return act


def run_arm(given: argparse.Namespace) -> None:
    watch = Stopwatch("auto", given.batch, given.warmups, given.repeats, CLOCKS[given.clock])
    model = build(given, watch.device)
    spent = cost(model.plan, model.clip.shape, model.config.width, model.config.slots)
    found: dict[str, Any] = {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmacs": spent.total / 1e9,
        "matching": spent.matching / 1e9,
        "tokens": model.plan.trace(together=True),
    }
    if given.find_batch:
        found["batch"] = largest_batch(given, model, watch)
    else:
        act = action_of(given, model, watch, given.batch)
        peak = watch.peak(act)
        found |= {"peak": peak, "seconds": watch.seconds(act)}
    print(json.dumps(found))


def largest_batch(given: argparse.Namespace, model: UnifiedTempMeSTOPModel, watch: Stopwatch) -> int:
    """By doubling until the GPU's memory does not suffice, then by halving the distance."""

    def fits(rows: int) -> bool:
        torch.cuda.empty_cache()
        try:
            act = action_of(given, model, watch, rows)
            act()
            act()  # the optimizer has its state now
        except torch.OutOfMemoryError:
            return False
        return True

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def line(cell: tuple[str, int, str, str], found: Mapping[str, Any], plain: Mapping[str, Any] | None) -> list[Any]:
    """A row of the table; ``plain``: the same without merging."""
    clip, frames, task, kind = cell
    milliseconds = found["seconds"] * 1000
    ratio = found["seconds"] / plain["seconds"] if plain else None
    arithmetic = found["gmacs"] / plain["gmacs"] if plain else None
    slow = " (!)" if kind in MERGING and ratio is not None and ratio >= 1 else ""
    return [
        *(clip, frames, task, kind, f"{found['trainable']:,}", f"{found['gmacs']:.2f}", f"{found['matching']:.2f}"),
        found["tokens"],
        f"{milliseconds:.0f}",
        f"{found['videos']:.2f}",
        "n/a" if ratio is None else f"{ratio:.2f}{slow}",
        "n/a" if arithmetic is None else f"{arithmetic:.2f}",
        "n/a" if found["peak"] is None else f"{found['peak'] / 1e9:.2f}",
    ]


COLUMNS = (
    *("CLIP", "frames", "task", "model", "trainable", "GMACs", "of matching", "tokens", "ms", "videos/s"),
    *("time of plain", "GMACs of plain", "peak GB"),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--clips", nargs="+", choices=("tiny", "b32", "b16"), default=["b32", "b16"])
    parser.add_argument("--frames", nargs="+", type=int, choices=USUAL_GROUPS, default=[12, 64])
    parser.add_argument("--batch", type=int, default=32, help="videos at a time")
    parser.add_argument("--train", action="store_true", help="training steps, too")
    parser.add_argument("--find-batch", action="store_true", help="the largest batch instead of times (GPU)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warmups", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="processes a cell")
    parser.add_argument("--out", type=Path, default=Path("video_models.json"))
    for name in ("--kind", "--clip", "--task"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--frame", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.kind:
        run_arm(given)
        return
    if given.clock == "processor" and torch.cuda.is_available():
        raise SystemExit("--clock processor does not see what a GPU does; take wall")
    if given.find_batch and not torch.cuda.is_available():
        raise SystemExit("--find-batch needs a GPU: on a CPU more rows take more memory and save no time")
    tasks = ["encode", *(["train"] if given.train else [])]
    cells = [
        cell
        for cell in product(given.clips, given.frames, tasks, given.models)
        if cell[2:] != ("train", "clip_mean")  # nothing to train
    ]
    common = words_of(given, "batch", "precision", "clock", "repeats", "warmups")
    flags = ["--find-batch"] if given.find_batch else []
    arms = [
        ["--clip", clip, "--frame", str(frames), "--task", task, "--kind", kind, *common, *flags]
        for clip, frames, task, kind in cells
    ]
    results = dict(zip(cells, side_by_side(__file__, arms, given.rounds), strict=True))
    print(machine())
    timed = f"{given.clock} time, median of {given.repeats} after {given.warmups}, {given.rounds} rounds"
    print(f"{given.batch} videos at a time, {given.precision}, {timed}\n")
    if given.find_batch:
        found = {cell: some[0] for cell, some in results.items()}
        print(table((*COLUMNS[:4], "largest batch"), [[*cell, one["batch"]] for cell, one in found.items()]))
    else:
        found = {
            cell: {**some[0], "seconds": seconds, "videos": given.batch / seconds}
            for cell, some in results.items()
            for seconds in (median(some, "seconds"),)
        }
        print(table(COLUMNS, [line(cell, one, found.get((*cell[:3], "lora"))) for cell, one in found.items()]))
    rows = [{"clip": c, "frames": f, "task": t, "model": k, **one} for (c, f, t, k), one in found.items()]
    files.write_json(given.out, {"machine": machine(), "batch": given.batch, "rows": rows})
    print(f"\n{given.out}")


if __name__ == "__main__":
    main()
