"""What is true of a field: computed from its anomalies, never from a plan.

Legend: T times, C channels, H rows from the south, W columns from the west. Anomalies are in standard deviations, NaN
where nothing was measured. The map is cut into 3 x 3 cells; what counts is the mean of a cell over both times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

CELLS = ("south-west", "south", "south-east", "west", "centre", "east", "north-west", "north", "north-east")
"""Names of the cells, row after row from the south."""

CLOSED: Mapping[str, tuple[str, ...]] = {
    "location": CELLS,
    "sign": ("above", "below"),
    "trend": ("growing", "fading"),
    "comparison": ("northern", "southern", "western", "eastern"),
}
"""The answers that there are; those about the variable are the labels of the channels."""

KINDS = ("location", "variable", "sign", "trend", "size", "comparison", "summary")
"""What can be asked."""

_RATIO = 1.15  # the strongest cell, or variable, beats the next by this
_LEAST = {"sign": 0.25, "trend": 0.2, "comparison": 0.2}  # standard deviations, below which the answer is chance
_COVERED = 0.5  # share of a cell that must be measured


@dataclass(frozen=True)
class Seen:
    """``facts``: all that is true. ``sure``: the kinds whose answer does not hang on a hair. ``halves``: of each
    channel and axis the half with the larger mean, where that is sure."""

    facts: dict[str, Any]
    sure: frozenset[str]
    halves: tuple[tuple[str, str], ...]  # (label, answer)


def cell_means(z_CHW: Array) -> Array:
    """``[C, 9]`` means of the cells in the order of ``CELLS``; NaN where less than half of one was measured."""
    C, H, W = z_CHW.shape
    rows, columns = (np.linspace(0, side, 4).round().astype(int) for side in (H, W))
    cells = np.full((C, 9), np.nan)
    for i in range(3):
        for j in range(3):
            cell = z_CHW[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]].reshape(C, -1)
            cells[:, 3 * i + j] = _mean(cell)
    return cells


def _mean(values_CN: Array) -> Array:
    """Mean of what was measured ``[C]``; NaN where that is too little."""
    measured = np.isfinite(values_CN)
    count = measured.sum(1)
    total = np.where(measured, values_CN, 0).sum(1, dtype=np.float64)
    enough = count >= _COVERED * max(1, values_CN.shape[1])
    return np.where(enough & (count > 0), total / np.maximum(count, 1), np.nan)


def look(z_TCHW: Array, labels: Sequence[str]) -> Seen | None:
    """The facts of a field whose channels are called ``labels``; None where too little of it was measured.

    ``location``, ``variable``, ``sign`` and ``size`` (standard deviations) of the strongest anomaly; its ``trend`` from
    the first to the last time; ``comparison`` is asked of one channel and axis, see ``halves``.
    """
    cells_TCN = np.stack([cell_means(z_CHW) for z_CHW in z_TCHW])
    measured_CN = np.asarray(np.isfinite(cells_TCN).all(axis=0))
    if measured_CN.mean() < _COVERED or not np.all(measured_CN.any(axis=1)):
        return None
    mean_CN = cells_TCN.mean(0)
    strength_CN = np.nan_to_num(np.abs(mean_CN), nan=-1.0)
    channel, cell = (int(one) for one in np.unravel_index(strength_CN.argmax(), strength_CN.shape))
    value = float(mean_CN[channel, cell])
    sign = 1 if value > 0 else -1
    change = sign * float(cells_TCN[-1, channel, cell] - cells_TCN[0, channel, cell])
    facts: dict[str, Any] = {
        "location": CELLS[cell],
        "variable": labels[channel],
        "sign": "above" if sign > 0 else "below",
        "size": round(abs(value), 1),
        "unit": "standard deviations",
    }
    sure = {"size"}
    others_N = np.delete(strength_CN[channel], cell)
    others_C = np.delete(strength_CN.max(1), channel)
    sure |= {"location"} if abs(value) >= _RATIO * others_N.max() else set()
    sure |= {"variable"} if len(others_C) and abs(value) >= _RATIO * others_C.max() else set()
    sure |= {"sign"} if abs(value) >= _LEAST["sign"] else set()
    if len(z_TCHW) > 1:
        facts["trend"] = "growing" if change > 0 else "fading"
        sure |= {"trend"} if abs(change) >= _LEAST["trend"] else set()
    if {"location", "sign"} <= sure and (len(labels) == 1 or "variable" in sure) and "trend" in sure:
        sure |= {"summary"}
    halves = tuple(_halves(z_TCHW, labels))
    return Seen(facts, frozenset(sure | ({"comparison"} if halves else set())), halves)


def _halves(z_TCHW: Array, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Of each channel, and of north against south and east against west, the half with the larger mean."""
    _, C, H, W = z_TCHW.shape
    found = []
    for low, high, names in (
        (z_TCHW[:, :, : H // 2], z_TCHW[:, :, -(H // 2) :], ("southern", "northern")),
        (z_TCHW[..., : W // 2], z_TCHW[..., -(W // 2) :], ("western", "eastern")),
    ):
        means = [_mean(half.swapaxes(0, 1).reshape(C, -1)) for half in (low, high)]
        for label, difference in zip(labels, means[1] - means[0], strict=True):
            if abs(difference) >= _LEAST["comparison"]:  # never true of NaN
                found.append((label, names[int(difference > 0)]))
    return found
