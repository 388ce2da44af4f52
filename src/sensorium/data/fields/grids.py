"""Grids: which rows and columns are wanted, in which order, and how maps are brought onto another grid.

Legend: H rows from the south, W columns from the west, of the map as it becomes; h, w of the map as it is in the file.
Regridding follows from the edges of cells, halfway between centres: a mean by area where the new cells are larger,
bilinear between centres where they are smaller; each axis by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sensorium.errors import ConfigError, DataError

Array = npt.NDArray[np.floating[Any]]
Box = tuple[float, float, float, float]
"""West, south, east, north, degrees; west may be larger than east: then it goes over the date line."""

_TOLERANCE = 1e-4  # degrees
_COVERED = 0.5  # share of a new cell that must be measured


@dataclass(frozen=True)
class Wish:
    """``box``: what is wanted of the map; None: all. ``size``: rows and columns of the new grid; None: as it is."""

    box: Box | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.box is not None:
            west, south, east, north = self.box
            if not (-90 <= south < north <= 90 and -180 <= west <= 360 and -180 <= east <= 360 and west != east):
                raise ConfigError(f"bbox {self.box}: expected west,south,east,north in degrees, south below north")


@dataclass(frozen=True)
class Grid:
    """``lat`` ``[H]`` rising, ``lon`` ``[W]`` rising without a jump; ``bring`` takes ``[h, w]`` to ``[H, W]``, with NaN
    where too little was measured."""

    lat: Array
    lon: Array
    bring: Callable[[Array], Array]
    notes: tuple[str, ...] = ()


def plan(lat: Array, lon: Array, wish: Wish) -> Grid:
    """How maps with these coordinates, ``[h]`` and ``[w]`` or both ``[h, w]``, become what is wanted. Raises DataError:
    coordinates that are in no order, nothing inside of the box."""
    if not (np.isfinite(lat).all() and np.isfinite(lon).all()) or np.abs(lat).max() > 90 + _TOLERANCE:
        raise DataError("latitudes and longitudes are no degrees")
    if lat.ndim == 2:
        return _from_points(lat.astype(np.float64), lon.astype(np.float64), wish)
    rows, columns, lon = _chosen(lat.astype(np.float64), lon.astype(np.float64), wish.box)
    lat = lat.astype(np.float64)[rows]
    if len(lat) < 2 or len(lon) < 2:
        raise DataError("the box holds fewer than 2 x 2 points of the data")
    if wish.size is not None:
        return _regridded(lat, lon, rows, columns, wish.size)
    notes = []
    if len(lat) % 2:
        rows, lat = rows[:-1], lat[:-1]
        notes.append(f"the northernmost row ({lat[-1] + (lat[-1] - lat[-2]):g} N) is left out: sides must be even")
    if len(lon) % 2:
        columns, lon = columns[:-1], lon[:-1]
        notes.append("the easternmost column is left out: sides must be even")
    return Grid(lat, lon, lambda map_hw: map_hw[np.ix_(rows, columns)], tuple(notes))


def _chosen(lat: Array, lon: Array, box: Box | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    """Numbers of rows and columns from the south and the west, and the longitudes of those columns."""
    if len(np.unique(lat)) < len(lat) or (not (np.diff(lat) > 0).all() and not (np.diff(lat) < 0).all()):
        raise DataError("latitudes neither rise nor fall throughout")
    rows = np.argsort(lat)
    turned = lon % 360
    turned[360 - turned < _TOLERANCE] = 0.0
    if len(np.unique(turned.round(4))) < len(lon):  # 0 and 360 are one
        raise DataError("a longitude is given twice")
    order = np.argsort(turned)
    gaps = np.diff(np.append(turned[order], turned[order[0]] + 360))
    whole = gaps.max() < 2 * np.median(gaps)
    start = -180.0 if whole else float(turned[np.roll(order, -(int(gaps.argmax()) + 1))[0]])
    width = 360.0
    if box is not None:
        west, south, east, north = box
        rows = rows[(lat[rows] >= south - _TOLERANCE) & (lat[rows] <= north + _TOLERANCE)]
        start, width = west, east - west if east > west else east - west + 360
    beyond = (lon - start + _TOLERANCE) % 360 - _TOLERANCE
    columns = np.argsort(beyond)
    columns = columns[beyond[columns] <= width + _TOLERANCE]
    if width >= 360 and len(columns):
        columns = columns[beyond[columns] < 360 - _TOLERANCE]
    if not len(rows) or not len(columns):
        raise DataError(f"nothing of the data lies within the box {box}")
    first = start if box is not None or whole else (start + 180) % 360 - 180
    return rows, columns, (beyond[columns] + first).round(6)  # 190 and -170 differ in their last digits


def edges(centres: Array) -> Array:
    """``[n + 1]`` borders of cells, halfway between their centres."""
    between = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - between[0], 2 * centres[-1] - between[-1]
    result: Array = np.concatenate([[first], between, [last]])
    return result


def weights(centres: Array, count: int, *, spherical: bool) -> tuple[Array, Array]:
    """``[count, n]`` weights, each row of sum 1, and the new centres ``[count]``; ``spherical``: these are latitudes,
    and those near the poles have less area."""
    old = edges(centres)
    if spherical:
        old = old.clip(-90, 90)
    new = np.linspace(old[0], old[-1], count + 1)
    middle = (new[1:] + new[:-1]) / 2
    if count >= len(centres):
        right = np.searchsorted(centres, middle).clip(1, len(centres) - 1)
        share = ((middle - centres[right - 1]) / (centres[right] - centres[right - 1])).clip(0, 1)
        found = np.zeros((count, len(centres)))
        found[np.arange(count), right - 1] = 1 - share
        found[np.arange(count), right] += share
        return found, middle
    from_old, to_new = (np.sin(np.deg2rad(one)) if spherical else one for one in (old, new))
    low, high = to_new[:-1, None], to_new[1:, None]
    overlap = (np.minimum(high, from_old[1:]) - np.maximum(low, from_old[:-1])).clip(0)
    return overlap / overlap.sum(1, keepdims=True), middle


def _regridded(
    lat: Array, lon: Array, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], size: tuple[int, int]
) -> Grid:
    down_Hh, new_lat = weights(lat, size[0], spherical=True)
    along_Ww, new_lon = weights(lon, size[1], spherical=False)

    def bring(map_hw: Array) -> Array:
        chosen = map_hw[np.ix_(rows, columns)].astype(np.float64)
        measured = np.isfinite(chosen)
        total: Array = down_Hh @ np.where(measured, chosen, 0) @ along_Ww.T
        if measured.all():
            return total
        cover = down_Hh @ measured @ along_Ww.T
        return np.where(cover >= _COVERED, total / np.maximum(cover, 1e-12), np.nan)

    return Grid(new_lat, new_lon, bring)


def _from_points(lat: Array, lon: Array, wish: Wish) -> Grid:
    """From points on no regular grid (a projection): each new cell is the mean of the points in it."""
    if wish.size is None:
        raise DataError("the data lie on a projected grid (latitudes of two dimensions); say onto which: --grid HxW")
    turned = np.where(lon < 0, lon + 360, lon)
    box = wish.box or (float(turned.min()), float(lat.min()), float(turned.max()), float(lat.max()))
    west, south, east, north = box
    width = (east - west) % 360 or 360.0
    row = np.floor((lat - south) / (north - south) * wish.size[0]).astype(int)
    column = np.floor((lon - west) % 360 / width * wish.size[1]).astype(int)
    row = np.where(lat == north, wish.size[0] - 1, row)
    inside = (row >= 0) & (row < wish.size[0]) & (column >= 0) & (column < wish.size[1])
    if not inside.any():
        raise DataError(f"nothing of the data lies within the box {box}")
    cell = (row * wish.size[1] + column)[inside]
    count = int(np.prod(wish.size))

    def bring(map_hw: Array) -> Array:
        values = map_hw[inside].astype(np.float64)
        good = np.isfinite(values)
        number = np.bincount(cell[good], minlength=count)
        total = np.bincount(cell[good], values[good], minlength=count)
        means: Array = np.where(number > 0, total / np.maximum(number, 1), np.nan).reshape(wish.size)
        return means

    new_lat = south + (np.arange(wish.size[0]) + 0.5) * (north - south) / wish.size[0]
    new_lon = west + (np.arange(wish.size[1]) + 0.5) * width / wish.size[1]
    return Grid(new_lat, new_lon, bring)
