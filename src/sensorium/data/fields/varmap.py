"""Which variable of foreign files becomes which channel: a table in YAML, JSON or TOML, or the name of a preset.

::

    channels:
      T2M: {source: t2m}                       # units are taken from the file
      SLP: {source: msl, unit: hPa}            # … or said, where the file does not, or is wrong
      U_48: {source: u, level: 400}            # in the unit of the file's own axis
      SWGNT: {source: ssr, accumulated: 3600}  # J m-2, summed over so many seconds
      EFLUX: {source: slhf, accumulated: 3600, sign: -1}
      SST: {source: sst, channel_unit: K, label: sea surface temperature, fill: mean}  # a channel of one's own
    static: {FRLAND: {source: lsm}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sensorium.config import Section, build, load_file
from sensorium.data.fields import channels
from sensorium.data.fields.channels import LEVELS, nearest_level
from sensorium.errors import ConfigError

FILL: Mapping[str, float] = {"GWETROOT": 1.0, "LAI": 0.0}
"""What stands over the sea in fields that there are on land only."""


class Mapped(Section):
    """How one channel is found."""

    source: str = Field(min_length=1, description="Name of the variable in the files.")
    level: float | None = Field(None, description="Level, in the unit of the file's axis; null where it has one.")
    unit: str | None = Field(None, description="Unit of its numbers; null: as the file says.")
    scale: float | None = Field(None, description="Factor that turns them into the channel's unit, instead of `unit`.")
    offset: float = Field(0.0, description="What is added after `scale`.")
    sign: Literal[-1, 1] = Field(1, description="-1: the file counts the other direction.")
    accumulated: float | None = Field(None, gt=0, description="Seconds over which J m-2 are summed.")
    fill: float | Literal["mean"] | None = Field(None, description="What stands where nothing is measured.")
    filter_by_keys: dict[str, str | int] = Field({}, description="Which messages of a GRIB file.")
    channel_unit: str | None = Field(None, description="Unit of a channel that is none of merra2-160.")
    label: str | None = Field(None, description="What texts call it.")


class VariableMap(Section):
    """All channels, in the order in which they are wanted."""

    channels: dict[str, Mapped] = Field(min_length=1, description="Channels and where they come from.")
    static: dict[str, Mapped] = Field({}, description="Static fields, likewise.")
    approximate: bool = Field(False, description="Whether these stand for the real ones.")


def load(what: str) -> VariableMap:
    """A preset or a file. Raises ConfigError."""
    if what in PRESETS:
        return PRESETS[what]
    path = Path(what).expanduser()
    if not path.suffix:
        raise ConfigError(f"{what!r}: no preset ({', '.join(PRESETS)}), and no file of variables (map.yaml)")
    found = build(VariableMap, load_file(path), str(path))
    for name, one in {**found.channels, **found.static}.items():
        if channels.known(name) is None and one.channel_unit is None and one.unit is None and one.scale is None:
            raise ConfigError(f"{path}: {name}: not a channel of merra2-160; say its unit (channel_unit)")
    return found


def unit_of(name: str, one: Mapped) -> str | None:
    """The unit that a channel has in the end; None: whatever it comes in."""
    known = channels.known(name)
    return known.unit if known is not None else one.channel_unit or one.unit


def _merra2() -> VariableMap:
    surface = {c.name: Mapped(source=c.name, fill=FILL.get(c.name)) for c in channels.MERRA2_160 if c.level is None}
    vertical = {
        c.name: Mapped(source=c.name.partition("_")[0], level=c.level)
        for c in channels.MERRA2_160
        if c.level is not None
    }
    static = {c.name: Mapped(source=c.name) for c in channels.CONSTANT}
    return VariableMap(channels={**surface, **vertical}, static=static)


_SOURCES: Mapping[str, Mapping[str, Any]] = {
    "era5-wb2": {
        "PS": {"source": "surface_pressure"},
        "SLP": {"source": "mean_sea_level_pressure"},
        "T2M": {"source": "2m_temperature"},
        "TQV": {"source": "total_column_water_vapour"},
        "U10M": {"source": "10m_u_component_of_wind"},
        "V10M": {"source": "10m_v_component_of_wind"},
        "H": {"source": "geopotential"},
        "OMEGA": {"source": "vertical_velocity"},
        "QV": {"source": "specific_humidity"},
        "T": {"source": "temperature"},
        "U": {"source": "u_component_of_wind"},
        "V": {"source": "v_component_of_wind"},
    },
    "hrrr": {
        "PS": {"source": "sp", "filter_by_keys": {"typeOfLevel": "surface", "stepType": "instant"}},
        "QV2M": {"source": "sh2", "filter_by_keys": {"typeOfLevel": "heightAboveGround", "level": 2}},
        "SLP": {"source": "mslma", "filter_by_keys": {"typeOfLevel": "meanSea"}},
        "T2M": {"source": "t2m", "filter_by_keys": {"typeOfLevel": "heightAboveGround", "level": 2}},
        "TQV": {"source": "pwat", "filter_by_keys": {"typeOfLevel": "atmosphereSingleLayer"}},
        "U10M": {"source": "u10", "filter_by_keys": {"typeOfLevel": "heightAboveGround", "level": 10}},
        "V10M": {"source": "v10", "filter_by_keys": {"typeOfLevel": "heightAboveGround", "level": 10}},
        "H": {"source": "gh", "unit": "gpm", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}},
        "OMEGA": {"source": "w", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}},
        "QV": {"source": "q", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}},
        "T": {"source": "t", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}},
        "U": {"source": "u", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}},
        "V": {"source": "v", "filter_by_keys": {"typeOfLevel": "isobaricInhPa"}},
    },
}
_STATIC: Mapping[str, Mapping[str, Mapped]] = {
    "era5-wb2": {
        "FRLAND": Mapped(source="land_sea_mask"),
        "PHIS": Mapped(source="geopotential_at_surface"),
    },
    "hrrr": {},
}


def _approximate(preset: str) -> VariableMap:
    found = {}
    for name in channels.SETS[preset]:
        field, _, level = name.partition("_")
        where = {"level": nearest_level(preset, LEVELS[LEVELS.index(int(level))])} if level else {}
        found[name] = Mapped(**_SOURCES[preset][field], **where)
    return VariableMap(channels=found, static=dict(_STATIC[preset]), approximate=True)


PRESETS: Mapping[str, VariableMap] = {
    "merra2-160": _merra2(),
    "era5-wb2": _approximate("era5-wb2"),
    "hrrr": _approximate("hrrr"),
}
"""Maps by the name of the set that they give."""
