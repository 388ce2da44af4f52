"""Names, units and physical ranges of the channels of a gridded field, and the numbers that normalise them.

The set ``merra2-160`` is what Prithvi WxC was trained on (Schmude 2024, arXiv:2409.13598): 20 surface fields of MERRA-2
at the channels 0 to 19, then 10 fields on 14 model levels, variable after variable: field ``v`` on the ``l``-th level
is channel ``20 + 14 v + l``. A field on a level is called by both, ``T_48``.

``era5-wb2`` and ``hrrr`` are those of its channels that these archives have, taken from the nearest pressure level
instead of the model level: approximate inputs for an encoder that was trained on ``merra2-160``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sensorium.errors import ConfigError, DataError

LEVELS = (34, 39, 41, 43, 44, 45, 48, 51, 53, 56, 63, 68, 71, 72)
"""Model levels, from the highest to the ground."""

LEVEL_HPA = (48, 109, 150, 208, 245, 288, 412, 525, 600, 700, 850, 925, 970, 985)
"""Nominal pressure of each of ``LEVELS``, hPa (from the paper)."""

SIGMA = (1e-4, 1e4)
"""Standard deviations are kept within these when they divide."""


@dataclass(frozen=True, slots=True)
class Channel:
    """``label``: what texts call it. ``low``, ``high``: no right value lies far outside, in ``unit``. ``level``: the
    model level of a field that has several."""

    name: str
    unit: str
    low: float
    high: float
    label: str
    level: int | None = None

    def holds(self, low: float, high: float) -> bool:
        """Whether numbers from ``low`` to ``high`` can be right, but for a thousandth of the range."""
        slack = 1e-3 * (self.high - self.low)
        return self.low - slack <= low and high <= self.high + slack


_SURFACE = (
    Channel("EFLUX", "W m-2", -1500, 2000, "latent heat flux"),
    Channel("GWETROOT", "1", 0, 1, "root zone soil wetness"),
    Channel("HFLUX", "W m-2", -2000, 2000, "sensible heat flux"),
    Channel("LAI", "m2 m-2", 0, 15, "leaf area index"),
    Channel("LWGAB", "W m-2", 0, 800, "absorbed longwave radiation"),
    Channel("LWGEM", "W m-2", 0, 1000, "emitted longwave radiation"),
    Channel("LWTUP", "W m-2", 0, 600, "outgoing longwave radiation"),
    Channel("PS", "Pa", 40_000, 115_000, "surface pressure"),
    Channel("QV2M", "kg kg-1", -1e-4, 0.06, "specific humidity"),
    Channel("SLP", "Pa", 85_000, 110_000, "sea level pressure"),
    Channel("SWGNT", "W m-2", -5, 1400, "net shortwave radiation"),
    Channel("SWTNT", "W m-2", -5, 1500, "net solar radiation at the top"),
    Channel("T2M", "K", 165, 345, "air temperature"),
    Channel("TQI", "kg m-2", -0.01, 30, "cloud ice"),
    Channel("TQL", "kg m-2", -0.01, 30, "cloud water"),
    Channel("TQV", "kg m-2", -0.1, 150, "water vapour"),
    Channel("TS", "K", 165, 365, "skin temperature"),
    Channel("U10M", "m s-1", -120, 120, "eastward wind"),
    Channel("V10M", "m s-1", -120, 120, "northward wind"),
    Channel("Z0M", "m", 0, 30, "roughness length"),
)
_VERTICAL = (
    Channel("CLOUD", "1", 0, 1, "cloud fraction"),
    Channel("H", "m", -1500, 90_000, "geopotential height"),
    Channel("OMEGA", "Pa s-1", -100, 100, "vertical velocity"),
    Channel("PL", "Pa", 0.5, 115_000, "pressure"),
    Channel("QI", "kg kg-1", -1e-4, 0.05, "ice content"),
    Channel("QL", "kg kg-1", -1e-4, 0.05, "liquid content"),
    Channel("QV", "kg kg-1", -1e-4, 0.06, "specific humidity"),
    Channel("T", "K", 120, 360, "temperature"),
    Channel("U", "m s-1", -250, 250, "eastward wind"),
    Channel("V", "m s-1", -250, 250, "northward wind"),
)


def _on_levels() -> tuple[Channel, ...]:
    return tuple(
        Channel(f"{v.name}_{level}", v.unit, v.low, v.high, f"{v.label} at {hpa} hPa", level)
        for v in _VERTICAL
        for level, hpa in zip(LEVELS, LEVEL_HPA, strict=True)
    )


MERRA2_160 = (*_SURFACE, *_on_levels())

TIME_CODE = ("cos_doy", "sin_doy", "cos_hod", "sin_hod")
"""Day of the year / 366 and hour of the day / 24 as angles: the first four of the 8 static inputs."""

CONSTANT = (
    Channel("FRACI", "1", 0, 1, "sea ice fraction"),
    Channel("FRLAND", "1", 0, 1, "land fraction"),
    Channel("FROCEAN", "1", 0, 1, "ocean fraction"),
    Channel("PHIS", "m2 s-2", -15_000, 90_000, "surface geopotential"),
)
"""The other four, fields that do not change with the hour."""

STATIC_8 = (*TIME_CODE, *(channel.name for channel in CONSTANT))

_BY_NAME = {channel.name: channel for channel in (*MERRA2_160, *CONSTANT)}

_PRESSURES: Mapping[str, Sequence[int]] = {
    "era5-wb2": (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000),
    "hrrr": range(50, 1001, 25),
}


def nearest_level(preset: str, level: int) -> int:
    """The pressure level (hPa) of an archive that stands for a model level of MERRA-2."""
    wanted = LEVEL_HPA[LEVELS.index(level)]
    return min(_PRESSURES[preset], key=lambda hpa: abs(hpa - wanted))


def _approximate(preset: str, surface: Sequence[str], vertical: Sequence[str]) -> tuple[str, ...]:
    """Names in the order of ``merra2-160``; where two model levels share a pressure level, the nearer one has it."""
    owner: dict[int, int] = {}
    for level, hpa in sorted(zip(LEVELS, LEVEL_HPA, strict=True), key=lambda one: -one[1]):
        found = nearest_level(preset, level)
        held = owner.get(found)
        if held is None or abs(LEVEL_HPA[LEVELS.index(held)] - found) > abs(hpa - found):
            owner[found] = level
    levels = set(owner.values())
    return tuple(
        channel.name
        for channel in MERRA2_160
        if (channel.level is None and channel.name in surface)
        or (channel.level in levels and channel.name.partition("_")[0] in vertical)
    )


SETS: Mapping[str, tuple[str, ...]] = {
    "merra2-160": tuple(channel.name for channel in MERRA2_160),
    "era5-wb2": _approximate(
        "era5-wb2", ("PS", "SLP", "T2M", "TQV", "U10M", "V10M"), ("H", "OMEGA", "QV", "T", "U", "V")
    ),
    "hrrr": _approximate(
        "hrrr", ("PS", "QV2M", "SLP", "T2M", "TQV", "U10M", "V10M"), ("H", "OMEGA", "QV", "T", "U", "V")
    ),
}
"""Sets of channels by name."""

APPROXIMATE = frozenset({"era5-wb2", "hrrr"})
"""Sets whose values stand for others; ``check`` and the report say so."""


def known(name: str) -> Channel | None:
    """The channel of that name; None where only its owner knows what it is."""
    return _BY_NAME.get(name)


def names_of(what: str | Sequence[str]) -> tuple[str, ...]:
    """The channels of a set, or of a list of any names. Raises ConfigError: no such set, no name, a name twice."""
    if isinstance(what, str):
        if what not in SETS:
            raise ConfigError(f"no set of channels {what!r}; there are {', '.join(SETS)}, or a list of names")
        return SETS[what]
    names = tuple(what)
    if not names or any(not name for name in names):
        raise ConfigError("a list of channels needs at least one name, and no empty ones")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"channel {twice[0]!r} is named twice")
    return names


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation of channels, in their units, by the order of ``names``."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.mean) == len(self.std):
            raise DataError(f"{len(self.names)} channels, {len(self.mean)} means, {len(self.std)} standard deviations")
        bad = [name for name, value in zip(self.names, self.std, strict=True) if not value >= 0]
        if bad or not np.isfinite([*self.mean, *self.std]).all():
            raise DataError(f"mean and standard deviation of {(bad or ['a channel'])[0]} are no sensible numbers")

    def of(self, names: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and divisor ``[C]`` of these channels; the divisor lies within ``SIGMA``. Raises DataError."""
        place = {name: number for number, name in enumerate(self.names)}
        if lacking := [name for name in names if name not in place]:
            raise DataError(f"no mean and standard deviation for {', '.join(lacking[:5])}")
        rows = [place[name] for name in names]
        mean = np.asarray(self.mean, np.float32)[rows]
        return mean, np.asarray(self.std, np.float64)[rows].clip(*SIGMA).astype(np.float32)


@dataclass(frozen=True)
class Scalers:
    """What normalises a field, its static fields and its climatology; a part of no names normalises nothing.
    ``departure``: of fields minus their climatology, where those are read in place of the fields."""

    field: Normal
    static: Normal = Normal((), (), ())
    climatology: Normal = Normal((), (), ())
    departure: Normal = Normal((), (), ())

    def plain(self) -> dict[str, Any]:
        """JSON values; ``read_scalers`` takes them back."""
        parts = {"field": self.field, "static": self.static, "climatology": self.climatology}
        parts |= {"departure": self.departure} if self.departure.names else {}
        return {
            part: {"names": list(normal.names), "mean": list(normal.mean), "std": list(normal.std)}
            for part, normal in parts.items()
        }


def read_scalers(content: Any) -> Scalers:
    """From JSON values. Raises DataError that says what is wrong with them."""
    if not isinstance(content, Mapping) or "field" not in content:
        raise DataError('expected {"field": {"names": […], "mean": […], "std": […]}, "static": …, "climatology": …}')
    empty: Mapping[str, Any] = {"names": [], "mean": [], "std": []}
    return Scalers(
        *(_normal(part, content.get(part, empty)) for part in ("field", "static", "climatology", "departure"))
    )


def _normal(part: str, content: Any) -> Normal:
    lists = [content.get(key) if isinstance(content, Mapping) else None for key in ("names", "mean", "std")]
    names, mean, std = lists
    if not (isinstance(names, list) and isinstance(mean, list) and isinstance(std, list)):
        raise DataError(f"{part}: expected the lists names, mean and std")
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{part}: names: expected texts")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (*mean, *std)):
        raise DataError(f"{part}: mean and std: expected numbers")
    return Normal(tuple(names), tuple(map(float, mean)), tuple(map(float, std)))
