"""What it saves to keep the tokens of a frozen climate encoder, instead of encoding the fields at each step.

    OMP_NUM_THREADS=1 python benchmarks/climate_cache.py --width 512 --blocks 4 --clock processor
    python benchmarks/climate_cache.py --llm HuggingFaceTB/SmolLM2-135M --width 2560 --blocks 12   # on a GPU: full size

Both arms train the same model on the same made-up weather with a Prithvi WxC of random weights, frozen, in processes of
their own: one finds its tokens in the cache, which it has filled before (said apart), the other encodes in each step.
A step is the mean from the end of the first to the end of the last, with nothing evaluated or saved between; losses are
of the last one and differ by what float16 loses. How much is saved depends on how large the encoder is beside the
language model: print it, and promise no one number.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import clock, machine, median, side_by_side, table, words_of

from sensorium import families
from sensorium.engine import loop, settings
from sensorium.engine.contract import Host, Sources
from sensorium.engine.files import read_lines
from sensorium.engine.listener import Saved
from sensorium.engine.settings import RunConfig

ARMS = {"encoded at each step": False, "kept tokens": True}


class Watch:
    """When the first step ended and when the last one did, by ``now``."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.ends = now, [0.0, 0.0]

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None: ...

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self.ends[step > 1] = self.now()

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None: ...

    def saved(self, saved: Saved) -> None: ...


def run_arm(given: argparse.Namespace) -> None:
    """Fill (with a cache of its own), train, and tell of both."""
    family = families.load("climate_text")
    prithvi = {"width": given.width, "blocks": given.blocks, "heads": 8}
    layer: dict[str, Any] = {
        "model": {
            **{"llm": given.llm, "freeze_llm": given.llm != "random:tiny"},
            **{"climate_encoder": "prithvi", "random_init": True, "prithvi": prithvi, "max_climate_tokens": 256},
        },
        "data": {
            "demo": {"num_samples": given.samples, "shape": [2, 160, given.side, given.side]},
            "cache": given.kept,
            "evaluation": {"answers": 1, "ranked": 0, "maps": 0, "max_new_tokens": 1},
        },
        "train": {"steps": given.steps, "batch_size": given.batch},
        "evaluate": {"every_epochs": None, "test": False},
        "checkpoint": {"every_epochs": None},
        "loader": {"workers": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SENSORIUM_CACHE"] = folder
        config = settings.resolve(family, "tiny", layer)
        family.sources(settings.resolve(family, "tiny", layer, {"data": {"cache": False}}), Host())  # the weather
        begun = clock()
        if given.kept:
            family.sources(config, Host())
        filled = clock() - begun
        watch = Watch(clock if given.clock == "processor" else time.perf_counter)
        loop.train(family, config, Path(folder) / "run", quiet=True, listener=watch)
        losses = [line["loss"] for line in read_lines(Path(folder) / "run/metrics.jsonl") if line["kind"] == "train"]
    print(
        json.dumps({"step": (watch.ends[1] - watch.ends[0]) / (given.steps - 1), "filled": filled, "loss": losses[-1]})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="random:tiny", help="language model")
    parser.add_argument("--width", type=int, default=512, help="of the encoder")
    parser.add_argument("--blocks", type=int, default=4, help="of the encoder, in pairs")
    parser.add_argument("--side", type=int, default=64, help="rows and columns of a field")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--arm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        run_arm(given)
        return
    common = ["--arm", *words_of(given, "llm", "width", "blocks", "side", "samples", "batch", "steps", "clock")]
    arms = [[*common, *(["--kept"] if kept else [])] for kept in ARMS.values()]
    found = dict(zip(ARMS, side_by_side(__file__, arms, given.repeats), strict=True))
    live = median(found["encoded at each step"], "step")
    rows = []
    for name, results in found.items():
        step, filled = median(results, "step"), median(results, "filled")
        rows.append((name, f"{step:.2f}", f"{live / step:.1f}", f"{filled:.1f}", f"{median(results, 'loss'):.4f}"))
    print(machine())
    print(f"{given.batch} fields of {given.side} x {given.side} a step, encoder {given.width} x {given.blocks} pairs")
    print(table(("", f"s a step ({given.clock})", "times as fast", "s to fill", "last loss"), rows))


if __name__ == "__main__":
    main()
