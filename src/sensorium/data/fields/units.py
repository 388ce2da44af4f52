"""Units: how the ones that data come in become those of the channels, and which one numbers look like."""

from __future__ import annotations

from collections.abc import Mapping

from sensorium.data.fields.channels import Channel
from sensorium.errors import DataError

_G = 9.80665
# By unit of a channel: other units, and factor and offset that lead from them.
_TO: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "K": {"degc": (1, 273.15), "degf": (5 / 9, 459.67 * 5 / 9)},
    "Pa": {"hpa": (100, 0), "kpa": (1000, 0)},
    "m s-1": {"knot": (1852 / 3600, 0), "km h-1": (1 / 3.6, 0)},
    "kg kg-1": {"g kg-1": (1e-3, 0)},
    "kg m-2": {"mm": (1, 0), "g m-2": (1e-3, 0)},
    "m": {"m2 s-2": (1 / _G, 0), "km": (1e3, 0), "gpm": (1, 0), "dam": (10, 0), "cm": (0.01, 0)},
    "m2 s-2": {"m": (_G, 0), "gpm": (_G, 0)},
    "1": {"%": (0.01, 0)},
    "Pa s-1": {"hpa s-1": (100, 0)},
    "W m-2": {},
    "m2 m-2": {"1": (1, 0)},
}
_SPELLINGS: Mapping[str, str] = {
    **dict.fromkeys(("degc", "deg c", "celsius", "°c", "degree_celsius", "degrees_celsius", "deg_c", "c"), "degc"),
    **dict.fromkeys(("degf", "deg f", "fahrenheit", "°f", "f"), "degf"),
    **dict.fromkeys(("k", "kelvin", "deg k", "degk", "degrees kelvin"), "k"),
    **dict.fromkeys(("pa", "pascal", "pascals"), "pa"),
    **dict.fromkeys(("hpa", "mb", "mbar", "millibar", "millibars", "hectopascal"), "hpa"),
    **dict.fromkeys(("m s-1", "m/s", "m s**-1", "m s^-1", "meter second-1", "metre/second", "m sec-1"), "m s-1"),
    **dict.fromkeys(("knot", "knots", "kt", "kts"), "knot"),
    **dict.fromkeys(("km h-1", "km/h", "kmh", "km h**-1"), "km h-1"),
    **dict.fromkeys(("kg kg-1", "kg/kg", "kg kg**-1", "kg kg^-1"), "kg kg-1"),
    **dict.fromkeys(("g kg-1", "g/kg", "g kg**-1"), "g kg-1"),
    **dict.fromkeys(("1", "", "-", "(0 - 1)", "fraction", "dimensionless", "(0-1)", "proportion", "none"), "1"),
    **dict.fromkeys(("%", "percent", "per cent"), "%"),
    **dict.fromkeys(("w m-2", "w/m2", "w m**-2", "w/m^2", "w m^-2"), "w m-2"),
    **dict.fromkeys(("j m-2", "j/m2", "j m**-2", "j/m^2"), "j m-2"),
    **dict.fromkeys(("m2 s-2", "m**2 s**-2", "m2/s2", "m^2/s^2", "m2 s**-2", "m+2 s-2", "m^2 s^-2"), "m2 s-2"),
    **dict.fromkeys(("gpm", "geopotential meter", "geopotential metre"), "gpm"),
    **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), "m"),
    **dict.fromkeys(("kg m-2", "kg/m2", "kg m**-2", "kg m^-2"), "kg m-2"),
    **dict.fromkeys(("mm", "millimeter"), "mm"),
    **dict.fromkeys(("pa s-1", "pa/s", "pa s**-1", "pa s^-1"), "pa s-1"),
    **dict.fromkeys(("m2 m-2", "m2/m2", "m**2 m**-2"), "m2 m-2"),
}


def spelled(unit: str) -> str:
    """One spelling of a unit, in small letters; of an unknown one its own."""
    small = " ".join(unit.lower().split())
    return _SPELLINGS.get(small, small)


def factors(unit: str, wanted: str, seconds: float | None = None) -> tuple[float, float]:
    """Factor and offset that turn numbers in ``unit`` into ``wanted``. ``seconds``: over which J m-2 were summed.

    Raises DataError: nobody knows how.
    """
    found, goal = spelled(unit), spelled(wanted)
    if found == goal:
        return 1.0, 0.0
    if found == "j m-2" and goal == "w m-2":
        if seconds is None:
            raise DataError("J m-2 are summed over a time; say over how many seconds (accumulated)")
        return 1 / seconds, 0.0
    ways = next((ways for known, ways in _TO.items() if spelled(known) == goal), {})
    if found not in ways:
        allowed = ", ".join([wanted, *ways, *(["J m-2"] if goal == "w m-2" else [])])
        raise DataError(f"unit {unit!r}; expected {allowed}; say which it is (unit), or how to turn it (scale, offset)")
    return ways[found]


_CALLED = {"degc": "°C", "degf": "°F", "hpa": "hPa", "kpa": "kPa"}


def guess(channel: Channel, low: float, high: float) -> str:
    """What numbers from ``low`` to ``high`` look like that are outside of the channel's range."""
    for unit, (factor, offset) in _TO.get(channel.unit, {}).items():
        if channel.holds(low * factor + offset, high * factor + offset) and (unit != "%" or high > 2):
            return f"looks like {_CALLED.get(unit, unit)}, {channel.unit} expected"
    if channel.unit == "W m-2" and channel.holds(low / 3600, high / 3600):
        return f"looks like J m-2 summed over an hour, {channel.unit} expected"
    return f"expected {channel.low:g} to {channel.high:g} {channel.unit}"
