"""Opening gridded files through xarray: which axes a variable has, its unit, and its times.

NetCDF (``.nc .nc4 .cdf``), Zarr (``.zarr``), GRIB (``.grib .grib2 .grb .grb2``), and arrays by name (``.npz``, and
``.pt`` of a dictionary): their axes are [time, level, lat, lon], [time, lat, lon] or [lat, lon], and ``lat``, ``lon``,
``time`` (texts or seconds since 1970) and ``level`` are arrays beside them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sensorium import reading
from sensorium.data.fields.places import Times, parse_times
from sensorium.data.fields.tree import read_json
from sensorium.errors import DataError

if TYPE_CHECKING:
    import xarray

Array = npt.NDArray[np.floating[Any]]

_ENGINES: Mapping[str, tuple[str, ...]] = {  # modules, the first that is installed
    ".nc": ("h5netcdf", "netCDF4"),
    ".nc4": ("h5netcdf", "netCDF4"),
    ".cdf": ("netCDF4",),
    ".zarr": ("zarr",),
    ".grib": ("cfgrib",),
    ".grib2": ("cfgrib",),
    ".grb": ("cfgrib",),
    ".grb2": ("cfgrib",),
}
SUFFIXES = (*_ENGINES, ".npz", ".pt")
_NAMES = {
    "lat": ("lat", "latitude", "nav_lat", "xlat"),
    "lon": ("lon", "longitude", "nav_lon", "xlong"),
    "time": ("valid_time", "time"),
}
_UNITS = {"lat": re.compile(r"degrees?_?n(orth)?$", re.I), "lon": re.compile(r"degrees?_?e(ast)?$", re.I)}
_SINCE = re.compile(r"(second|minute|hour|day|sec|min|hr|h|s|d)s?\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})(.*)", re.I)
_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600}
_USUAL = ("standard", "gregorian", "proleptic_gregorian", "")
_GREGORIAN = 1583  # the first whole year


def engine(path: Path) -> str:
    """The engine of xarray for a file. Raises DataError: no such suffix, or what has to be installed."""
    wanted = _ENGINES[path.suffix.lower()]
    if path.suffix.lower() in (".nc", ".nc4") and path.is_file():
        with reading.open_plain(path) as file:
            if file.read(3) == b"CDF":  # the classic format, which is no HDF5
                wanted = ("netCDF4",)
    for module in ("xarray", *wanted):
        if importlib.util.find_spec(module) is not None and module != "xarray":
            return module.lower()
        if importlib.util.find_spec(module) is None and module == "xarray":
            break
    raise DataError(f"{path}: needs xarray and {wanted[0]}; run: pip install 'sensorium[climate]' {' '.join(wanted)}")


def open_dataset(path: Path, filter_by_keys: Mapping[str, Any]) -> xarray.Dataset:
    """A file without its times decoded. Raises DataError naming file and reason."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown kind of file; there are {', '.join(SUFFIXES)}")
    if suffix in (".npz", ".pt"):
        return _arrays(path)
    chosen = engine(path)
    import xarray

    options: dict[str, Any] = {}
    if chosen == "cfgrib":
        options = {"backend_kwargs": {"indexpath": "", "filter_by_keys": dict(filter_by_keys)}}
    elif chosen == "zarr":
        options = {"consolidated": (path / ".zmetadata").is_file() or _consolidated(path / "zarr.json")}
    try:
        return xarray.open_dataset(path, engine=chosen, decode_times=False, decode_timedelta=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, EOFError) as error:
        words = " ".join(str(error).split())
        keys = re.findall(r"filter_by_keys=(\{[^}]*\})", words)
        if keys:
            shown = "; ".join(dict.fromkeys(keys))
            raise DataError(f"{path}: holds several cubes; choose one with filter_by_keys: {shown}") from None
        raise DataError(f"{path}: cannot be read ({words[:200] or type(error).__name__})") from error


def _consolidated(path: Path) -> bool:
    """Whether the description of a Zarr store of version 3 holds those of its arrays."""
    if not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and bool(content.get("consolidated_metadata"))


def _arrays(path: Path) -> xarray.Dataset:
    import xarray

    found = _load_arrays(path)
    for name in ("lat", "lon"):
        if name not in found:
            raise DataError(f"{path}: lacks the array {name!r}; arrays by name need lat and lon, and time")
    axes = {4: ("time", "level", "lat", "lon"), 3: ("time", "lat", "lon"), 2: ("lat", "lon")}
    coordinates = {name: found.pop(name) for name in ("lat", "lon", "time", "level") if name in found}
    try:
        variables = {name: (axes[array.ndim], array) for name, array in found.items()}
        return xarray.Dataset(variables, {name: ((name,), array) for name, array in coordinates.items()})
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: arrays do not fit lat, lon, time and level ({str(error)[:150]})") from None


def _load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    import zipfile

    from sensorium import tensor_files
    from sensorium.errors import CheckpointError

    if path.suffix.lower() == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read ({str(error)[:150]})") from None
    try:
        found = tensor_files.read(path)
        if not isinstance(found, dict):
            raise DataError(f"{path}: expected a dictionary of tensors by name, with lat and lon")
        tensor_files.require_plain(path, {name: one for name, one in found.items() if name != "time"})
    except CheckpointError as error:
        raise DataError(str(error)) from None
    return {str(name): np.asarray(one) if isinstance(one, list | tuple) else one.numpy() for name, one in found.items()}


@dataclass(frozen=True)
class Axes:
    """Names of a variable's axes; ``lat`` and ``lon`` name variables, of one dimension or two."""

    lat: str
    lon: str
    time: str | None
    level: str | None


def axes(dataset: xarray.Dataset, variable: str) -> Axes:
    """Which axis is which, by CF attributes, else by name. Raises DataError."""
    array = dataset[variable]
    found = {}
    for what in ("lat", "lon"):
        named = next((str(name) for name in dataset.variables if _is(dataset, str(name), what, array)), None)
        if named is None:
            raise DataError(f"{variable}: no {what}itude among its axes {list(array.dims)}".replace("lonit", "longit"))
        found[what] = named
    flat = {*dataset[found["lat"]].dims, *dataset[found["lon"]].dims}
    times = [str(name) for name in dataset.variables if _is_time(dataset, str(name))]
    time = next((name for name in _NAMES["time"] if name in times), times[0] if times else None)
    time_axes = set() if time is None else set(dataset[time].dims)
    rest = [str(one) for one in array.dims if one not in flat and one not in time_axes and array.sizes[one] > 1]
    if len(rest) > 1:
        raise DataError(f"{variable}: has the axes {', '.join(rest)} besides time and place; expected one, of levels")
    return Axes(found["lat"], found["lon"], time, rest[0] if rest else None)


def _is(dataset: xarray.Dataset, name: str, what: str, array: xarray.DataArray) -> bool:
    one = dataset[name]
    if not one.dims or not set(one.dims) <= set(array.dims) or one.ndim > 2 or name == array.name:
        return False
    unit, standard = str(one.attrs.get("units", "")), str(one.attrs.get("standard_name", ""))
    full = {"lat": "latitude", "lon": "longitude"}[what]
    return standard == full or bool(_UNITS[what].match(unit)) or (name.lower() in _NAMES[what] and not standard)


def _is_time(dataset: xarray.Dataset, name: str) -> bool:
    one = dataset[name]
    if one.ndim > 1:
        return False
    kind = one.dtype.kind
    return kind in "MU" or bool(_SINCE.match(str(one.attrs.get("units", "")))) or name == "time"


def times(dataset: xarray.Dataset, name: str) -> Times:
    """The times of an axis ``[t]``, one of a scalar. Raises DataError: a calendar or unit that cannot be read."""
    one = dataset[name]
    values = np.atleast_1d(one.values)
    if values.dtype.kind == "M":
        return np.asarray(values.astype("datetime64[s]"))
    if values.dtype.kind in "UO":
        return parse_times([str(text) for text in values])
    unit, calendar = str(one.attrs.get("units", "")), str(one.attrs.get("calendar", "")).lower()
    found = _SINCE.match(unit or "seconds since 1970-01-01")
    if found is None:
        raise DataError(f"{name}: unit {unit!r}; expected seconds, minutes, hours or days since a date")
    kind, year, month, day, clock = found.groups()
    if calendar in _USUAL and (int(year) >= _GREGORIAN or int(year) == 0):  # year 0: months of no year
        start = np.datetime64(f"{int(year):04d}-{int(month):02d}-{int(day):02d}", "s") + _clock(clock)
        seconds = np.round(values.astype(np.float64) * _SECONDS.get(kind.lower(), 86400))
        return np.asarray(start + seconds.astype("timedelta64[s]"))
    return _by_cftime(name, values, unit, calendar or "standard")


def _clock(text: str) -> np.timedelta64:
    found = re.match(r"[T ]+(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?", text)
    hour, minute, second = (int(one or 0) for one in found.groups()) if found else (0, 0, 0)
    return np.timedelta64(hour * 3600 + minute * 60 + second, "s")


def _by_cftime(name: str, values: npt.NDArray[Any], unit: str, calendar: str) -> Times:
    if importlib.util.find_spec("cftime") is None:
        raise DataError(f"{name}: {unit!r} in the calendar {calendar!r} needs cftime; run: pip install cftime")
    import cftime

    try:
        found = cftime.num2date(values, unit, calendar, only_use_cftime_datetimes=True)
        return np.array([np.datetime64(one.isoformat(), "s") for one in np.atleast_1d(found)])
    except ValueError as error:
        raise DataError(f"{name}: {unit!r} in the calendar {calendar!r} gives no dates ({error})") from None


def level_number(dataset: xarray.Dataset, axis: str, level: float, variable: str) -> int:
    """Where a level stands on its axis. Raises DataError that lists what there is."""
    values: Sequence[float] = np.asarray(dataset[axis].values, np.float64).tolist()
    close = [number for number, value in enumerate(values) if abs(value - level) < 1e-3 * max(1.0, abs(level))]
    if not close:
        there = ", ".join(f"{value:g}" for value in values[:20])
        raise DataError(f"{variable}: no level {level:g} on the axis {axis!r} ({there})")
    return close[0]
