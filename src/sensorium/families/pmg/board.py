"""The table of an evaluation. All of its numbers rest on the same samples: it is one array.

Legend: R rows (ways to make pictures), M metrics, S samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.data.tastes import Taste
from sensorium.engine.contract import Evaluation, Table
from sensorium.errors import DataError
from sensorium.metrics.bootstrap import Difference, difference

LPIPS = ("lpips_target", "lpips_history_avg")
SSIM = ("ssim_target", "ssim_history_avg")
CLIPS = ("cps", "cpis_history_avg", "cpis_target", "clip_score_target")
AESTHETIC, HPS = "laion_aesthetic", "hpsv2"
OF_SAMPLES = (*LPIPS, *SSIM, *CLIPS, AESTHETIC)
OF_SETS = ("fid", "fd_clip")
METRICS = (*OF_SAMPLES, *OF_SETS, HPS)
LOWER_IS_BETTER = {*LPIPS, *OF_SETS}
OURS = "pmg"
NOT_BETTER = "NOT BETTER"
_LOWER = "LPIPS and Fréchet distances: lower is better; all others: higher."
# What our row must be better in than which other row for the soft tokens to have earned their place.
_BARS = (
    ("none", ("lpips_history_avg", "cpis_history_avg")),
    ("keywords", ("cpis_history_avg",)),
    ("other_user", ("lpips_history_avg", "ssim_history_avg", "cpis_history_avg")),
)
_KEPT = ("none", ("lpips_target", "clip_score_target"), 0.02)  # what it may cost, as a share of the other row's mean


@dataclass(frozen=True)
class Board:
    """``values`` ``[R, M, S]``: finite numbers. ``numbers``: of the samples in their file. ``sets``: by row, of metrics
    that judge all pictures of a row at once. ``skipped``: by metric, and by row, why there is none.

    Raises DataError where the array does not fit the names.
    """

    samples: Sequence[Taste]
    numbers: Sequence[int]
    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    values: NDArray[np.float64]
    sets: Mapping[str, Mapping[str, float]]
    skipped: Mapping[str, str]
    skipped_rows: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (len(self.rows), len(self.metrics), len(self.samples))
        if self.values.shape != wanted or set(self.sets) != set(self.rows):
            raise DataError(f"a table of {wanted} rows, metrics and samples was given {self.values.shape} numbers")
        bad = np.argwhere(~np.isfinite(self.values))
        if len(bad):
            row, metric, sample = bad[0]
            raise DataError(f"{self.metrics[metric]} of row {self.rows[row]}, sample {sample}, is not a number")

    @property
    def users(self) -> list[str]:
        """Of each sample."""
        return [taste.user for taste in self.samples]

    def of(self, row: str, metric: str) -> NDArray[np.float64]:
        """``[S]``."""
        found: NDArray[np.float64] = self.values[self.rows.index(row), self.metrics.index(metric)]
        return found

    def gain(self, metric: str, against: str) -> Difference:
        """By how much our row is better than another, the same samples paired, by a bootstrap over users."""
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        return difference(sign * (self.of(OURS, metric) - self.of(against, metric)), self.users)


def stack(rows: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Metrics and ``[R, M, S]`` of what was measured of each row. Raises DataError where rows have other metrics."""
    names = next(iter(rows.values())).keys()
    other = next((row for row, found in rows.items() if found.keys() != names), None)
    if other is not None:
        raise DataError(f"row {other} was judged by other metrics than the first one")
    metrics = tuple(name for name in OF_SAMPLES if name in names)
    lengths = {len(values) for found in rows.values() for values in found.values()}
    if len(lengths) > 1:
        raise DataError(f"rows of one table rest on different samples ({', '.join(map(str, sorted(lengths)))})")
    return metrics, np.stack([np.stack([found[name] for name in metrics]) for found in rows.values()])


def digest_of(samples: Sequence[Taste]) -> str:
    """Changes with users, histories, targets and their order."""
    text = json.dumps([[one.user, [liked.id for liked in one.history], one.target.id] for one in samples])
    return hashlib.sha256(text.encode()).hexdigest()


def row_json(board: Board, row: str) -> dict[str, Any]:
    """``average_metrics``, ``std_metrics``, ``intervals`` and ``per_sample_results`` of a row; null: see
    ``skipped_metrics``."""
    nothing: dict[str, Any] = dict.fromkeys(METRICS)
    by_metric = {name: board.of(row, name) for name in board.metrics}
    intervals = {name: difference(values, board.users) for name, values in by_metric.items()}
    return {
        "average_metrics": nothing
        | {name: float(values.mean()) for name, values in by_metric.items()}
        | dict(board.sets[row]),
        "std_metrics": {name: float(values.std()) for name, values in by_metric.items()},
        "intervals": {name: [one.low, one.high] for name, one in intervals.items()},
        "per_sample_results": [
            {
                "sample_idx": number,
                "user_id": taste.user,
                "target_item_id": taste.target.id,
                "metrics": {name: float(values[place]) for name, values in by_metric.items()},
            }
            for place, (number, taste) in enumerate(zip(board.numbers, board.samples, strict=True))
        ],
    }


def differences_json(board: Board) -> dict[str, Any]:
    """By other row and metric: how much better ours is, with its interval."""
    if OURS not in board.rows:
        return {}
    found: dict[str, Any] = {}
    for row in board.rows:
        if row != OURS:
            gains = {metric: board.gain(metric, row) for metric in board.metrics}
            found[row] = {name: {"gain": one.mean, "low": one.low, "high": one.high} for name, one in gains.items()}
    return found


def evaluation(board: Board, note: str) -> Evaluation:
    """For people: the table, what our row gains, and what it does not."""
    metrics = {f"{row}/{name}": float(board.of(row, name).mean()) for row in board.rows for name in board.metrics}
    metrics |= {f"{row}/{name}": value for row, found in board.sets.items() for name, value in found.items()}
    tables = [_table(board, note)]
    gains = _gains(board)
    if gains:
        tables.append(_gain_table(gains))
    warnings = [
        f"{NOT_BETTER}: {OURS} is not surely better than {row} in {metric}"
        for row, metric, gain, least in gains
        if gain.low <= least
    ]
    return Evaluation(metrics, tuple(tables), warnings=tuple(warnings))


def _table(board: Board, note: str) -> Table:
    columns = (*board.rows, *board.skipped_rows)
    rows = []
    for metric in METRICS:
        if metric in board.metrics:
            values = [float(board.of(row, metric).mean()) for row in board.rows]
        elif all(metric in board.sets[row] for row in board.rows):
            values = [board.sets[row][metric] for row in board.rows]
        else:
            continue
        cells = [f"{value:.4f}" for value in values]
        rows.append((metric, *cells, *[None] * len(board.skipped_rows)))
    absent = [f"{name}: {reason}" for name, reason in {**board.skipped_rows, **board.skipped}.items()]
    text = "\n".join(
        [f"{len(board.samples)} samples of {len(set(board.users))} users in every cell. {note}", _LOWER, *absent]
    )
    return Table("Pictures, judged", ("metric", *columns), tuple(rows), text)


def _gains(board: Board) -> list[tuple[str, str, Difference, float]]:
    """Row, metric, gain, and what the lower end of its interval must lie above."""
    if OURS not in board.rows:
        return []
    found = []
    for row, metrics in _BARS:
        for metric in metrics:
            if row in board.rows and metric in board.metrics:
                found.append((row, metric, board.gain(metric, row), 0.0))
    row, metrics, share = _KEPT
    for metric in metrics:
        if row in board.rows and metric in board.metrics:
            found.append((row, metric, board.gain(metric, row), -share * abs(float(board.of(row, metric).mean()))))
    return found


def _gain_table(gains: Sequence[tuple[str, str, Difference, float]]) -> Table:
    rows = tuple(
        (row, metric, f"{gain.mean:+.4f}", f"{gain.low:+.4f}", f"{gain.high:+.4f}", "yes" if gain.low > least else "no")
        for row, metric, gain, least in gains
    )
    note = (
        "How much better than the other row, the same samples paired; 95 % interval of a bootstrap over users. Enough: "
        "the interval lies above zero; for what depends on the target alone, above a loss of 2 %."
    )
    return Table(f"What {OURS} gains", ("over", "metric", "gain", "low", "high", "enough"), rows, note)
