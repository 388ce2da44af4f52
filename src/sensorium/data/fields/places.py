"""Where and when a field lies: degrees of its rows and columns, and its times.

Row 0 is the south, and longitudes go on over the date line: 170 … 200.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensorium.errors import DataError

Degrees = npt.NDArray[np.float32]
Times = npt.NDArray[np.datetime64]

STEP = (0.5, 0.625)
"""Degrees between rows and columns of MERRA-2, which a file without positions is taken to have."""

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?)?(?:Z|\+00:?00)?")


def assumed(height: int, width: int) -> tuple[Degrees, Degrees]:
    """Latitudes ``[H]`` and longitudes ``[W]`` of a grid of MERRA-2 centred on 0° N 0° E; finer where that is larger
    than the globe."""
    tall, wide = min(STEP[0], 180 / height), min(STEP[1], 360 / width)
    lat = (np.arange(height) - (height - 1) / 2) * tall
    lon = (np.arange(width) - (width - 1) / 2) * wide
    return lat.astype(np.float32), lon.astype(np.float32)


def latitudes(given: Sequence[float], height: int) -> tuple[Degrees, bool]:
    """``[H]`` from south to north, and whether the rows are given from north to south. ``given``: the centres of the
    first and the last row, or of all. Raises DataError."""
    lat = _spread(given, height, "lat")
    if np.abs(lat).max() > 90.001:
        raise DataError(f"lat: {np.abs(lat).max():g} is no latitude; allowed are -90 to 90")
    step = np.diff(lat)
    if height > 1 and not ((step > 0).all() or (step < 0).all()):
        raise DataError("lat: neither rises nor falls throughout")
    falls = bool(height > 1 and step[0] < 0)
    return (lat[::-1] if falls else lat).astype(np.float32), falls


def longitudes(given: Sequence[float], width: int) -> Degrees:
    """``[W]`` from west to east without a jump at the date line; ``given`` as for ``latitudes``. Raises DataError."""
    ends = [*given[:1], *given[-1:]]
    if len(given) == 2 < width and ends[1] < ends[0]:  # 170 to -160
        given = [ends[0], ends[1] + 360]
    lon = _spread(given, width, "lon")
    if lon.min() < -360 or lon.max() > 720:
        raise DataError("lon: outside of -180 to 360 degrees")
    lon = unwrapped(lon)
    if width > 1 and not (np.diff(lon) > 0).all():
        raise DataError("lon: does not rise from west to east")
    if lon[-1] - lon[0] >= 360.001:
        raise DataError(f"lon: {lon[-1] - lon[0]:g} degrees wide; the globe has 360")
    return lon.astype(np.float32)


def unwrapped(lon: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same meridians without a jump by 360 degrees."""
    return lon + 360.0 * np.concatenate([[0], np.cumsum(np.diff(lon) < -180)])


def _spread(given: Sequence[float], count: int, what: str) -> npt.NDArray[np.float64]:
    values = np.asarray(given, np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{what}: holds what is no number")
    if len(values) == count:
        return values
    if len(values) != 2:
        raise DataError(f"{what}: {len(values)} numbers for {count}; give all, or the first and the last")
    return np.linspace(values[0], values[1], count)


def parse_times(given: str | Sequence[str] | None) -> Times:
    """Times ``[0]``, ``[1]`` or ``[T]``, in seconds, from ISO 8601 in UTC. Raises DataError."""
    texts = [] if given is None else [given] if isinstance(given, str) else list(given)
    return np.array([parse_time(text) for text in texts], "datetime64[s]")


def parse_time(text: str) -> np.datetime64:
    """A time in UTC. Raises DataError."""
    found = _TIME.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        year, month, day, *clock = found.groups()
        hour, minute, second = (part or "00" for part in clock)
        return np.datetime64(f"{year}-{month}-{day}T{hour}:{minute}:{second}", "s")
    except ValueError:
        raise DataError(f"time: {text!r} is no time; write 2020-01-31T06:00:00Z (UTC)") from None


def time_text(time: np.datetime64) -> str:
    """ISO 8601, as ``parse_time`` takes it."""
    return f"{np.datetime_as_string(time.astype('datetime64[s]'))}Z"


def time_code(time: np.datetime64 | None) -> npt.NDArray[np.float32]:
    """``[4]``: cos and sin of the day of the year / 366 and of the hour / 24; zeros where the time is not known."""
    if time is None:
        return np.zeros(4, np.float32)
    day = (time.astype("datetime64[D]") - time.astype("datetime64[Y]").astype("datetime64[D]")).astype(int) + 1
    hour = (time - time.astype("datetime64[D]")) / np.timedelta64(1, "h")
    angles = 2 * np.pi * np.array([day / 366, hour / 24])
    return np.stack([np.cos(angles), np.sin(angles)], 1).reshape(4).astype(np.float32)
