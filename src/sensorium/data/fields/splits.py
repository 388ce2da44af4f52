"""Dividing fields into training and validation so that nothing leaks: by blocks of time with a gap, or by place.

Neighbouring hours, and neighbouring places, look alike: a split at random would test what was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sensorium.data.fields.places import Times
from sensorium.data.grouping import draw

TRAIN, VAL, DROPPED = 0, 1, 2


@dataclass(frozen=True)
class Crop:
    """A part of the map: its first row and column, its sides; columns go on at the first where the globe is closed."""

    row: int
    column: int
    height: int
    width: int

    def columns(self, whole: int) -> npt.NDArray[np.int64]:
        return (self.column + np.arange(self.width)) % whole


def crops(
    shape: tuple[int, int], size: tuple[int, int] | None, stride: tuple[int, int] | None, closed: bool
) -> list[Crop]:
    """The whole map, or parts of it, ``stride`` apart (half their size by itself). ``closed``: the last column is a
    neighbour of the first."""
    if size is None:
        return [Crop(0, 0, *shape)]
    steps = stride or (max(1, size[0] // 2), max(1, size[1] // 2))
    last = shape[1] if closed else shape[1] - size[1] + 1
    return [
        Crop(row, column, *size)
        for row in range(0, shape[0] - size[0] + 1, steps[0])
        for column in range(0, last, steps[1])
    ]


def by_time(
    spans: Sequence[tuple[np.datetime64, np.datetime64]], days: float, fraction: float, gap_hours: float, seed: int
) -> npt.NDArray[np.int64]:
    """``TRAIN``, ``VAL`` or ``DROPPED`` for each sample, which lasts from its first to its last time.

    Time is cut into blocks of so many days; about every ``1 / fraction``-th is validation. A sample that lies in two
    blocks, and one of training that comes closer than the gap to one of validation, is dropped.
    """
    block = np.timedelta64(round(days * 86400), "s")
    begins, ends = (np.array([span[end] for span in spans], "datetime64[s]") for end in (0, 1))
    origin = begins.min()
    first, last = ((times - origin) // block for times in (begins, ends))
    every = max(2, round(1 / fraction))
    chosen = draw(seed, "block")
    held = (np.arange(int(last.max()) + 1) + int(chosen * every)) % every == every - 1
    if not held.any():
        held[int(chosen * len(held))] = len(held) > 1
    state = np.where(held[first.astype(int)], VAL, TRAIN)
    state[first != last] = DROPPED
    gap = np.timedelta64(round(gap_hours * 3600), "s")
    tested = state == VAL
    if tested.any():
        near = _apart(begins, ends, begins[tested], ends[tested]) < gap
        state[near & (state == TRAIN)] = DROPPED
    return state


def _apart(begins: Times, ends: Times, other_begins: Times, other_ends: Times) -> npt.NDArray[np.timedelta64]:
    """``[N]`` how far each span is from the nearest of the others; 0 where they meet."""
    nothing = np.timedelta64(0, "s")
    nearest = np.full(len(begins), np.timedelta64(2**62, "s"))
    for begin, end in zip(other_begins, other_ends, strict=True):
        apart = np.maximum(np.maximum(begin - ends, begins - end), nothing)
        nearest = np.minimum(nearest, apart)
    return nearest


def by_place(parts: Sequence[Crop], whole: int, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """``TRAIN``, ``VAL`` or ``DROPPED`` for each part: those inside of a band of columns, about so large a share of the
    ``whole``, are validation, those that share a column with it are dropped."""
    first = int(draw(seed, "place") * whole)
    widest = max(part.width for part in parts)
    band = (first + np.arange(min(whole, max(widest, round(fraction * whole) + widest // 2)))) % whole
    inside = np.isin(np.arange(whole), band)
    shares = np.array([inside[part.columns(whole)].mean() for part in parts])
    return np.where(shares == 1, VAL, np.where(shares == 0, TRAIN, DROPPED))
