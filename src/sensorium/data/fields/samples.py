"""One entry of a tree, opened: field, static fields, climatology, positions and times, with the south in row 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sensorium.data.fields import places, tree
from sensorium.data.fields.places import Degrees, Times
from sensorium.data.fields.tree import Entry, Layout
from sensorium.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

TimePolicy = Literal["exact", "repeat", "pairs"]
Loader = Callable[[Path], "Tensor"]
"""Gives the field ``[T, C, H, W]`` of a file."""

HOURS = 6.0
"""Between the two times of a field whose times are not known."""


@dataclass(frozen=True)
class Sample:
    """Legend: T times, C channels, X static fields, H rows from the south, W columns from the west.

    ``field`` ``[T, C, H, W]``, ``static`` ``[X, H, W]`` and ``climatology`` ``[C, H, W]`` are in the units of the
    channels, the last two None where there are none. ``times`` has no, one or T entries. ``assumed``: positions are not
    those of the data. ``input_time`` and ``lead_time`` in hours.
    """

    field: Tensor
    names: tuple[str, ...]
    lat: Degrees
    lon: Degrees
    times: Times
    static: Tensor | None
    climatology: Tensor | None
    input_time: float
    lead_time: float
    assumed: bool


def require_times(count: int, policy: TimePolicy) -> None:
    """Raise DataError when a field does not have as many times as the policy wants."""
    if policy == "exact" and count != 2:
        raise DataError(f"{count} times; the policy 'exact' wants 2 (others: repeat for 1, pairs for more)")
    if policy == "repeat" and count != 1:
        raise DataError(f"{count} times; the policy 'repeat' wants 1")
    if policy == "pairs" and count < 3:
        raise DataError(f"{count} times; the policy 'pairs' wants 3 or more")


def require_sides(height: int, width: int) -> None:
    """Raise DataError when a field cannot be cut into patches."""
    if height % 2 or width % 2:
        raise DataError(f"{height} x {width} pixels; both sides must be even")


def positions(entry: Entry, height: int, width: int) -> tuple[Degrees, Degrees, bool, bool]:
    """Latitudes, longitudes, whether rows stand from north to south, and whether the positions are assumed. Raises
    DataError: not as many as there are rows or columns, not in order, no degrees, one of the two missing."""
    if entry.lat is None and entry.lon is None:
        return *places.assumed(height, width), False, True
    if entry.lat is None or entry.lon is None:
        raise DataError("only one of lat and lon is given")
    lat, falls = places.latitudes(entry.lat, height)
    return lat, places.longitudes(entry.lon, width), falls, False


def times_of(entry: Entry, count: int) -> Times:
    """No, one or ``count`` times in ascending order. Raises DataError."""
    times = places.parse_times(entry.time)
    if len(times) not in (0, 1, count):
        raise DataError(f"time: {len(times)} times for a field of {count}; give one or all")
    if len(times) > 1 and not (np.diff(times) > np.timedelta64(0, "s")).all():
        raise DataError("time: not in ascending order")
    return times


def input_hours(entry: Entry, times: Times) -> float:
    """Hours between the times of the field: as given, else from its times, else 6."""
    if entry.input_time is not None:
        return entry.input_time
    return float((times[1] - times[0]) / np.timedelta64(1, "h")) if len(times) > 1 else HOURS


def read(folder: Path, entry: Entry, layout: Layout, load: Loader = tree.load) -> Sample:
    """Open the files of an entry. Raises DataError naming the file and what is wrong."""
    path = folder / entry.climate_file
    field = load(path)
    try:
        if field.ndim != 4:
            raise DataError(f"shape {list(field.shape)}; expected [T, C, H, W]")
        T, C, H, W = field.shape
        lat, lon, falls, assumed = positions(entry, H, W)
        times = times_of(entry, T)
        names = layout.of(entry, C)
        require_sides(H, W)
    except DataError as error:
        raise DataError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    static = _beside(folder, entry.static_file, (len(layout.static), H, W))
    climatology = _beside(folder, entry.climatology_file, (C, H, W))
    turned = [None if one is None else one.flip(-2) if falls else one for one in (field, static, climatology)]
    assert turned[0] is not None
    hours = input_hours(entry, times)
    return Sample(turned[0], names, lat, lon, times, turned[1], turned[2], hours, entry.lead_time or 0.0, assumed)


def _beside(folder: Path, name: str | None, shape: tuple[int, int, int]) -> Tensor | None:
    if name is None:
        return None
    found = tree.load(folder / name, axes=3)
    if tuple(found.shape) != shape:
        raise DataError(f"{folder / name}: shape {list(found.shape)}; expected {list(shape)}, as its field has")
    return found
