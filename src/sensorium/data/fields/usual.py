"""What is usual at each point: mean and standard deviation over the times of training, of the year or of each month.

Legend: C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sensorium.data.fields.places import Times
from sensorium.errors import DataError

Array = npt.NDArray[np.floating[Any]]
Kind = Literal["mean", "month"]

_FEWEST = 2  # times from which a standard deviation can be said


@dataclass(frozen=True)
class Usual:
    """``mean`` ``[M, C, H, W]`` of one season or of 12 months; ``std`` ``[C, H, W]`` of what departs from it, NaN where
    too little was measured."""

    mean: Array
    std: Array

    def season(self, time: np.datetime64) -> int:
        """Number of the mean that holds at a time."""
        return month_of(time) if len(self.mean) > 1 else 0

    def anomaly(self, values_CHW: Array, time: np.datetime64) -> Array:
        """Departures in standard deviations ``[C, H, W]``; NaN where they cannot be said."""
        apart: Array = values_CHW - self.mean[self.season(time)]
        return apart / self.std


def month_of(time: np.datetime64) -> int:
    """0 for January."""
    return int((time.astype("datetime64[M]") - time.astype("datetime64[Y]").astype("datetime64[M]")).astype(int))


def measure(read: Callable[[int], Array], times: Times, chosen: Sequence[int], kind: Kind) -> Usual:
    """Over the times ``chosen``; ``read`` gives ``[C, H, W]`` at one. Two passes: means, then what departs from them.

    A point where the standard deviation is tiny against the channel's own counts as not measured. Raises DataError when
    a month has too few times.
    """
    seasons = [month_of(times[number]) if kind == "month" else 0 for number in chosen]
    if len(chosen) < _FEWEST or min(seasons.count(season) for season in set(seasons)) < _FEWEST:
        raise DataError(f"too few times ({len(chosen)}) in training for a climatology of kind {kind!r}; give more")
    total: dict[int, Array] = {}
    count: dict[int, Array] = {}
    for number, season in zip(chosen, seasons, strict=True):
        values = read(number).astype(np.float64)
        good = np.isfinite(values)
        total[season] = total.get(season, np.zeros(values.shape)) + np.where(good, values, 0)
        count[season] = count.get(season, np.zeros(values.shape)) + good
    shape = next(iter(total.values())).shape
    mean = np.full((12 if kind == "month" else 1, *shape), np.nan)
    for season, some in total.items():
        mean[season] = np.where(count[season] >= _FEWEST, some / np.maximum(count[season], 1), np.nan)
    squares, number_of = np.zeros(shape), np.zeros(shape)
    for number, season in zip(chosen, seasons, strict=True):
        apart = read(number).astype(np.float64) - mean[season]
        good = np.isfinite(apart)
        squares += np.where(good, apart, 0) ** 2
        number_of += good
    std = np.sqrt(squares / np.maximum(number_of, 1))
    typical = np.array([np.median(one[one > 0]) if (one > 0).any() else 1.0 for one in std])
    std[(number_of < _FEWEST) | (std < 1e-3 * typical[:, None, None])] = np.nan
    return Usual(mean, std)
