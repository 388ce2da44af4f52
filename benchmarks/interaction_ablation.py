"""What each stage of `interaction` is worth on emoji with spoken names, at equal steps: three seeds, whoever wins.

    pip install -c constraints.txt --no-deps $(the packages of the extra `demo`)
    python benchmarks/interaction_ablation.py --out runs/stages

Preset `small` with two drawings of each emoji and its name spoken; "with teachers": the towers of stages 1 and 2 learn
to say what EfficientNet-Lite0 and whisper-tiny.en, frozen, make of picture and sound. Every seed has a split of its own
(by concept), the same for all rows; the best checkpoint of the last stage is chosen on validation, and test looked at
once, at the end.
Runs that are finished are not repeated, so the script may be killed and started again. R-Sum: mean over pairs of
modalities of R@1 + R@5 + R@10, summed over both directions (at most 600).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import machine, table

from sensorium import families
from sensorium.engine import loop, settings
from sensorium.engine.results import read_result

SEEDS = (0, 1, 2)
FIRST_SPLIT = 11  # splits that were not in view while the preset was chosen
DIRECTIONS = ("t2i", "i2t", "t2a", "a2t", "i2a", "a2i")
TEACHERS = {"data": {"teachers": {"image": "package:efficientnet-lite0", "audio": "package:whisper-tiny.en"}}}


def without(*stages: str) -> dict[str, Any]:
    return {"model": {"stages": {stage: {"share": 0.0} for stage in stages}}}


ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("all three stages", {}),
    ("without stage 1 (unimodal)", without("unimodal")),
    ("without stage 2 (align)", without("align")),
    ("with teachers, all three stages", TEACHERS),
    ("with teachers, without stage 1", {**TEACHERS, **without("unimodal")}),
    ("without stage 3 (full)", without("full")),
    ("stage 3 alone", without("unimodal", "align")),
)


def run_one(changes: Mapping[str, Any], seed: int, epochs: float, folder: Path) -> Mapping[str, float]:
    """Train and test one row with one seed, unless that was done before."""
    if not (folder / "report.html").exists():
        family = families.load("interaction")
        options = {"art": ["twemoji", "openmoji"], "speech": True, "seed": FIRST_SPLIT + seed}
        data = {"sets": {"emoji": {"reader": "emoji", "options": options}}}
        given = {"seed": seed, "data": data, "train": {"epochs": epochs}}
        config = settings.resolve(family, "small", given, changes)
        loop.train(family, config, folder, resume=(folder / "config.yaml").exists(), quiet=True)
    return read_result(folder / "evaluation/test.json").evaluation.metrics


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stages"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--rows", type=int, default=len(ROWS), help="so many of the rows, from the top")
    given = parser.parse_args()
    rows = ROWS[: given.rows]
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name, _ in rows}
    for seed in range(given.seeds):  # seed by seed: what is there when it is stopped can be compared
        for number, (name, changes) in enumerate(rows):
            print(f"{name}, seed {seed}", flush=True)
            found[name].append(run_one(changes, seed, given.epochs, given.out / f"{number}-seed{seed}"))
            print(f"  R-Sum {found[name][-1]['r_sum']:.1f}", flush=True)
    base = [metrics["r_sum"] for metrics in found[ROWS[0][0]]]
    names = [*(f"emoji/{direction}/R@10" for direction in DIRECTIONS), "r_sum"]
    lines = []
    for name, _ in rows:
        cells = [shown([metrics[column] for metrics in found[name]]) for column in names]
        sums = [metrics["r_sum"] for metrics in found[name]]
        lines.append((name, *cells, shown([a - b for a, b in zip(sums, base, strict=True)])))
    chance = found[ROWS[0][0]][0]
    lines.append(("chance", *(f"{chance[f'chance/{column}']:.1f}" for column in names), ""))
    print(machine())
    print(table(("row", *(f"{d} R@10" for d in DIRECTIONS), "R-Sum", "R-Sum over all three, same seed"), lines))


if __name__ == "__main__":
    main()
