"""Made-up weather over 24 real places: what is usual there, what never changes, and how much it varies.

Temperature follows latitude, season and height; pressure and heights are hydrostatic, the wind is geostrophic, humidity
a share of saturation. Land and mountains are random and look like no coast of the Earth.

Legend: C channels, H rows from the south, W columns from the west.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sensorium.data.fields import channels, places
from sensorium.data.fields.places import Degrees

Array = npt.NDArray[np.float64]

REGIONS: Mapping[str, tuple[float, float]] = {
    "the Pacific Northwest": (47, -121),
    "the Great Plains": (41, -100),
    "the Gulf of Mexico": (25, -90),
    "the Caribbean": (16, -73),
    "the Amazon basin": (-5, -62),
    "Patagonia": (-46, -70),
    "the Andes": (-20, -68),
    "Greenland": (70, -42),
    "the North Atlantic": (45, -35),
    "the British Isles": (54, -4),
    "Scandinavia": (63, 17),
    "the Mediterranean": (38, 16),
    "the Sahara": (23, 8),
    "the Congo basin": (-1, 22),
    "southern Africa": (-27, 24),
    "the Arabian Peninsula": (23, 46),
    "Siberia": (62, 100),
    "the Tibetan Plateau": (33, 88),
    "the Bay of Bengal": (15, 88),
    "Japan": (37, 138),
    "the Philippine Sea": (18, 132),
    "Australia": (-25, 134),
    "New Zealand": (-41, 173),
    "the Southern Ocean": (-56, 60),
}
"""Latitude and longitude of their centres."""

UNSEEN = ("Scandinavia", "southern Africa")
"""These stand in the validation split alone."""

ASKED = ("EFLUX", "HFLUX", "LWTUP", "SLP", "T2M", "TQL", "U10M", "V10M")
"""The channels in which something unusual happens."""

_GRAVITY, _GAS, _LAPSE, _STRATOSPHERE = 9.80665, 287.05, 6.5e-3, 216.0
_TURN, _RADIUS, _STEFAN = 7.292e-5, 6.371e6, 5.67e-8
_SPREAD = {  # standard deviations in the unit of the channel; of the others a share of what is low for them
    "T2M": 3.0,
    "TS": 3.0,
    "T": 2.5,
    "SLP": 500.0,
    "PS": 500.0,
    "PL": 300.0,
    "U10M": 2.0,
    "V10M": 2.0,
    "U": 4.0,
    "V": 4.0,
    "EFLUX": 15.0,
    "HFLUX": 12.0,
    "H": 40.0,
    "OMEGA": 0.1,
    "TQL": 0.03,
    "LWTUP": 8.0,
}
_SHARE = 0.1


def smooth(draw: np.random.Generator, shape: Sequence[int], cells: int = 7) -> Array:
    """Smooth noise ``[..., H, W]`` of mean 0 and standard deviation 1, about ``cells`` waves a side."""
    *outer, H, W = shape
    coarse = draw.standard_normal((*outer, cells, cells))
    maps = [_spread_out(side, cells) for side in (H, W)]
    noise = maps[0] @ coarse @ maps[1].T
    result: Array = noise / np.sqrt(np.outer((maps[0] ** 2).sum(1), (maps[1] ** 2).sum(1)))
    return result


def _spread_out(side: int, cells: int) -> Array:
    """``[side, cells]`` weights of Gaussian bumps."""
    at = np.linspace(-0.5, cells - 0.5, side)
    weights: Array = np.exp(-((at[:, None] - np.arange(cells)) ** 2))
    return weights


@dataclass(frozen=True)
class Region:
    """One place: its grid, season and usual weather. ``hour``: of the day, UTC; the season is that of ``day``."""

    name: str
    height: int
    width: int
    names: tuple[str, ...]

    @cached_property
    def number(self) -> int:
        return list(REGIONS).index(self.name)

    @property
    def day(self) -> int:
        """Day of the year about which its samples lie: seasons are spread over the places."""
        return 15 + (self.number * 7 % 12) * 30

    @property
    def hour(self) -> int:
        return self.number % 4 * 6

    @cached_property
    def lat(self) -> Degrees:
        lat, _ = places.assumed(self.height, self.width)
        return lat + np.float32(REGIONS[self.name][0])

    @cached_property
    def lon(self) -> Degrees:
        _, lon = places.assumed(self.height, self.width)
        return lon + np.float32(REGIONS[self.name][1])

    @cached_property
    def static(self) -> npt.NDArray[np.float32]:
        """``[4, H, W]``: sea ice, land and ocean (shares), surface geopotential (m2 s-2)."""
        draw = np.random.default_rng([7, self.number])
        relief = smooth(draw, (self.height, self.width), 5)
        land = 1 / (1 + np.exp(-8 * relief))
        ice = np.where(np.abs(self.lat)[:, None] > 62, 0.7 * (1 - land), 0)
        hills = _GRAVITY * 900 * np.clip(relief, 0, None) ** 1.5
        return np.stack([ice, land, 1 - land - ice, hills]).astype(np.float32)

    @cached_property
    def usual(self) -> npt.NDArray[np.float32]:
        """The climatology ``[C, H, W]``, in the units of the channels."""
        fields = self._fields()
        return np.stack([self._channel(name, fields) for name in self.names]).astype(np.float32)

    @cached_property
    def spread(self) -> npt.NDArray[np.float32]:
        """``[C]`` standard deviations of the channels about what is usual."""
        low = np.quantile(np.abs(self.usual), 0.05, (1, 2))
        fixed = [_SPREAD.get(name, _SPREAD.get(name.partition("_")[0], 0.0)) for name in self.names]
        share = np.maximum(_SHARE * low, 1e-7)
        return np.where(np.array(fixed) > 0, fixed, share).astype(np.float32)

    def _fields(self) -> dict[str, Array]:
        """What the channels are made of, ``[H, W]`` each."""
        phi = np.deg2rad(self.lat.astype(np.float64))[:, None]
        season = np.cos(2 * np.pi * (self.day - 200) / 366)
        land, relief = self.static[1].astype(np.float64), self.static[3].astype(np.float64) / _GRAVITY
        noon = np.cos(2 * np.pi * (self.hour / 24 + self.lon.astype(np.float64)[None] / 360 - 0.5))
        warmth = 302 - 45 * np.sin(phi) ** 2 + 14 * np.sin(phi) * season * (0.4 + land)
        T = warmth + 3 * noon * land - _LAPSE * relief
        waves = np.sin(3 * np.deg2rad(self.lon.astype(np.float64))[None] * 4 + 5 * phi + self.number)
        sea = 101_325 - 1500 * np.cos(6 * phi) + 400 * waves
        sun = np.clip(noon * np.cos(phi) + 0.2 * season * np.sin(phi), 0, 1)
        surface = sea * (1 - _LAPSE * relief / (T + _LAPSE * relief)) ** (_GRAVITY / (_GAS * _LAPSE))
        return {"T": T, "SLP": sea, "PS": surface, "sun": sun, "land": land, "waves": waves}

    def _channel(self, name: str, of: Mapping[str, Array]) -> Array:
        known = channels.known(name)
        assert known is not None
        if known.level is not None:
            return self._on_level(name.partition("_")[0], known.level, of)
        T, land, sun = of["T"], of["land"], of["sun"]
        q = 0.55 * saturation(T, of["PS"])
        u, v = self._wind(of["SLP"] / (1.2 * _GRAVITY))
        emitted = _STEFAN * T**4
        values = {
            "EFLUX": 60 + 90 * sun * (1 - 0.5 * land),
            "GWETROOT": 1 - 0.6 * land,
            "HFLUX": 20 + 60 * sun * land,
            "LAI": 2.5 * land,
            "LWGAB": 0.8 * emitted,
            "LWGEM": emitted,
            "LWTUP": 0.6 * emitted,
            "PS": of["PS"],
            "QV2M": q,
            "SLP": of["SLP"],
            "SWGNT": 700 * sun,
            "SWTNT": 1000 * sun,
            "T2M": T,
            "TQI": 0.05 + 0 * T,
            "TQL": 0.3 + 0.04 * of["waves"],
            "TQV": 2500 * q,
            "TS": T + 1.5 * sun * land,
            "U10M": 0.6 * u,
            "V10M": 0.6 * v,
            "Z0M": 1e-3 + 0.3 * land,
        }
        return values[name]

    def _on_level(self, field: str, level: int, of: Mapping[str, Array]) -> Array:
        p = 100.0 * channels.LEVEL_HPA[channels.LEVELS.index(level)]
        T_sea = of["T"] + _LAPSE * self.static[3] / _GRAVITY
        top = (T_sea - _STRATOSPHERE) / _LAPSE  # of the troposphere, m
        low = T_sea / _LAPSE * (1 - (p / of["SLP"]) ** (_GAS * _LAPSE / _GRAVITY))
        p_top = of["SLP"] * (_STRATOSPHERE / T_sea) ** (_GRAVITY / (_GAS * _LAPSE))
        high = top + _GAS * _STRATOSPHERE / _GRAVITY * np.log(p_top / p)
        H: Array = np.where(low < top, low, high)
        T: Array = np.maximum(T_sea - _LAPSE * H, _STRATOSPHERE)
        u, v = self._wind(H)
        q = np.minimum(0.5 * saturation(T, np.full_like(T, p)), 0.03)
        cloud = 0.3 + 0.2 * of["waves"]
        values: dict[str, Array] = {
            "CLOUD": cloud,
            "H": H,
            "OMEGA": 0.05 * of["waves"],
            "PL": p + 0 * T,
            "T": T,
            "U": u,
            "V": v,
        }
        return {**values, "QI": 1e-5 * cloud, "QL": 2e-5 * cloud, "QV": q}[field]

    def _wind(self, H: Array) -> tuple[Array, Array]:
        """Geostrophic wind (m s-1) of heights (m); within 15 degrees of the equator the turning is that of 15."""
        phi = np.deg2rad(self.lat.astype(np.float64))[:, None]
        sine = np.where(np.abs(np.sin(phi)) < 0.26, np.where(phi < 0, -0.26, 0.26), np.sin(phi))
        per = _GRAVITY / (2 * _TURN * sine)
        north = np.gradient(H, np.deg2rad(places.STEP[0]) * _RADIUS, axis=0)
        east = np.gradient(H, np.deg2rad(places.STEP[1]) * _RADIUS, axis=1) / np.cos(phi).clip(0.2)
        return np.clip(-per * north, -90, 90), np.clip(per * east, -90, 90)


def saturation(T: Array, p: Array) -> Array:
    """Specific humidity (kg kg-1) of saturated air at ``T`` (K) and ``p`` (Pa), after Bolton 1980."""
    vapour = 611.2 * np.exp(17.67 * (T - 273.15) / (T - 29.65))
    result: Array = 0.622 * vapour / np.maximum(p - 0.378 * vapour, vapour)
    return result
