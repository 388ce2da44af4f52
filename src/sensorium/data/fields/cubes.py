"""Several gridded files as one cube: the wanted channels, in their units, on one grid, at the times that all have.

Legend: C channels, H rows from the south, W columns from the west.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sensorium.data.fields import opening, units
from sensorium.data.fields.grids import Grid, Wish, plan
from sensorium.data.fields.places import Times, time_text
from sensorium.data.fields.varmap import Mapped, VariableMap, unit_of
from sensorium.errors import DataError

if TYPE_CHECKING:
    import xarray

Array = npt.NDArray[np.floating[Any]]

_HALF_HOUR = np.timedelta64(1800, "s")
_HELD = 1 << 30  # bytes of files that are read as a whole, which is a hundred times as fast as map after map


@dataclass(frozen=True)
class _Found:
    """A variable in a file. ``steps``: numbers of its times on its own time axis, None where it has none."""

    dataset: xarray.Dataset
    name: str
    axes: opening.Axes
    level: int | None
    factor: float
    offset: float
    times: Times
    steps: int | None
    where: str

    def map(self, step: int) -> Array:
        """``[h, w]`` at one of its times, in the channel's unit."""
        array = self.dataset[self.name]
        chosen: dict[str, int] = {str(axis): 0 for axis in array.dims if array.sizes[axis] == 1}
        if self.steps is not None and self.axes.time is not None:
            time_axis = str(self.dataset[self.axes.time].dims[0])
            if time_axis in array.dims:
                chosen[time_axis] = step
        if self.level is not None and self.axes.level is not None:
            chosen[self.axes.level] = self.level
        flat = [str(a) for name in (self.axes.lat, self.axes.lon) for a in self.dataset[name].dims]
        rows = list(dict.fromkeys(flat))
        chosen = {axis: number for axis, number in chosen.items() if axis not in rows}
        values = array.isel(chosen).transpose(*rows).values
        return np.asarray(values, np.float64) * self.factor + self.offset


@dataclass(frozen=True)
class Cube:
    """What was found. ``units`` of the channels, where they are known; ``fill``: what stands for what is not measured;
    ``static`` the fields that do not change, None where the map names none."""

    names: tuple[str, ...]
    grid: Grid
    times: Times
    units: Mapping[str, str]
    fill: Mapping[str, float | str | None]
    static: tuple[tuple[str, ...], npt.NDArray[np.float32]] | None
    notes: tuple[str, ...]
    _found: tuple[Mapping[np.datetime64, tuple[_Found, int]], ...]

    @property
    def lat(self) -> Array:
        return self.grid.lat

    @property
    def lon(self) -> Array:
        return self.grid.lon

    def read(self, number: int) -> npt.NDArray[np.float32]:
        """``[C, H, W]`` at a time; NaN only where nothing was measured and ``fill`` is ``mean``. Raises DataError."""
        time = self.times[number]
        maps = []
        for name, steps in zip(self.names, self._found, strict=True):
            found, step = steps[time]
            here = filled(self.grid.bring(found.map(step)), self.fill.get(name), f"{name} ({found.where})")
            maps.append(here)
        return np.stack(maps).astype(np.float32)


def filled(values: Array, fill: float | str | None, what: str) -> Array:
    """The map with a number where nothing was measured; ``mean`` is left to who knows of what. Raises DataError."""
    if np.isinf(values).any():
        raise DataError(f"{what}: infinite numbers")
    missing = np.isnan(values)
    if missing.any() and fill is None:
        raise DataError(
            f"{what}: {missing.mean():.0%} of the map are NaN; say what stands there (fill: a number, or mean)"
        )
    if missing.any() and isinstance(fill, int | float):
        return np.where(missing, fill, values)
    return values


def gather(paths: Sequence[Path], wanted: VariableMap, wish: Wish, keys: Mapping[str, Any]) -> Cube:
    """Find every channel in the files. ``keys``: which messages of GRIB files. Raises DataError: no file, a variable
    that none has, a unit that nobody knows, files on different grids, no time that all channels have."""
    if not paths:
        raise DataError("no file of that name")
    opened: dict[tuple[Path, str], xarray.Dataset] = {}
    notes: list[str] = []
    steps: list[dict[np.datetime64, tuple[_Found, int]]] = []
    grid: Grid | None = None
    shape: tuple[Array, Array] | None = None
    for name, one in wanted.channels.items():
        table: dict[np.datetime64, tuple[_Found, int]] = {}
        for found in _search(paths, name, one, keys, opened):
            coordinates = tuple(found.dataset[axis].values for axis in (found.axes.lat, found.axes.lon))
            if shape is None or grid is None:
                shape = (coordinates[0], coordinates[1])
                grid = _planned(*shape, wish, found.where)
            elif not all(np.array_equal(*pair) for pair in zip(shape, coordinates, strict=True)):
                raise DataError(f"{found.where}: lies on another grid than the other files")
            times, moved = _whole_hours(found.times)
            notes += [f"{name}: stamps at half past are means of the hour before and count as full hours"] * moved
            table.update({time: (found, number) for number, time in enumerate(times)})
        steps.append(table)
    assert grid is not None
    common = set.intersection(*(set(table) for table in steps))
    if not common:
        example = ", ".join(time_text(min(table)) for table in steps[:3])
        raise DataError(f"no time that all channels have (first times: {example})")
    lost = len(set.union(*(set(table) for table in steps))) - len(common)
    notes += [f"{lost:,} times are left out that not all channels have"] * bool(lost)
    if sum(dataset.nbytes for dataset in opened.values()) <= _HELD:
        for dataset in opened.values():
            dataset.load()
    static = _static(paths, wanted, keys, opened, grid)
    known = {name: unit_of(name, one) or "" for name, one in wanted.channels.items()}
    return Cube(
        names=tuple(wanted.channels),
        grid=grid,
        times=np.array(sorted(common), "datetime64[s]"),
        units=known,
        fill={name: one.fill for name, one in wanted.channels.items()},
        static=static,
        notes=tuple(dict.fromkeys([*notes, *grid.notes])),
        _found=tuple(steps),
    )


def _planned(lat: Array, lon: Array, wish: Wish, where: str) -> Grid:
    try:
        return plan(np.asarray(lat), np.asarray(lon), wish)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _search(
    paths: Sequence[Path],
    name: str,
    one: Mapped,
    keys: Mapping[str, Any],
    opened: dict[tuple[Path, str], xarray.Dataset],
) -> Iterator[_Found]:
    """The files that have the variable of a channel. Raises DataError when there is none."""
    there: dict[str, None] = {}
    any_found = False
    chosen = {**keys, **one.filter_by_keys}
    for path in paths:
        place = (path, repr(sorted(chosen.items())))
        if place not in opened:
            opened[place] = opening.open_dataset(path, chosen)
        dataset = opened[place]
        there |= dict.fromkeys(str(variable) for variable in dataset.data_vars)
        if one.source in dataset.data_vars:
            any_found = True
            yield _found(path, dataset, name, one)
    if not any_found:
        raise DataError(f"{paths[0]}: no variable {one.source!r} for {name}; there are {', '.join(list(there)[:30])}")


def _found(path: Path, dataset: xarray.Dataset, name: str, one: Mapped) -> _Found:
    where = f"{path}: {one.source}"
    try:
        axes = opening.axes(dataset, one.source)
        level = None
        if axes.level is not None:
            if one.level is None:
                raise DataError(f"has several levels ({axes.level}); say which (level)")
            level = opening.level_number(dataset, axes.level, one.level, one.source)
        unit, wanted = one.unit or str(dataset[one.source].attrs.get("units", "")), unit_of(name, one)
        if one.scale is not None:
            factor, offset = one.scale, one.offset
        else:
            factor, offset = units.factors(unit, wanted, one.accumulated) if wanted is not None else (1.0, 0.0)
            offset += one.offset
        times = opening.times(dataset, axes.time) if axes.time is not None else np.zeros(0, "datetime64[s]")
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not len(times):
        times = np.array(["0000-01-01T00:00:00"], "datetime64[s]")
    return _Found(dataset, one.source, axes, level, one.sign * factor, one.sign * offset, times, len(times), where)


def _whole_hours(times: Times) -> tuple[Times, bool]:
    """Means of an hour are stamped in its middle; they count as its beginning."""
    half = (times - times.astype("datetime64[h]")) == _HALF_HOUR
    if len(times) and half.all():
        return times - _HALF_HOUR, True
    return times, False


def _static(
    paths: Sequence[Path],
    wanted: VariableMap,
    keys: Mapping[str, Any],
    opened: dict[tuple[Path, str], xarray.Dataset],
    grid: Grid,
) -> tuple[tuple[str, ...], npt.NDArray[np.float32]] | None:
    if not wanted.static:
        return None
    maps = []
    for name, one in wanted.static.items():
        found = next(_search(paths, name, one, keys, opened))
        maps.append(filled(grid.bring(found.map(0)), one.fill, f"{name} ({found.where})"))
    return tuple(wanted.static), np.stack(maps).astype(np.float32)
