"""What is assumed of the fields of a split where its files do not say it."""

from __future__ import annotations

from sensorium.data.fields import channels
from sensorium.families.climate_text.data import Part

_SHOWN = 5  # channels


def assumed(part: Part) -> tuple[str, ...]:
    """A line each, for ``sensorium check`` and the report; nothing where all is known."""
    found, count = [], len(part.entries)
    if bare := sum(entry.lat is None for entry in part.entries):
        found.append(
            f"positions assumed: {bare:,} of {count:,} entries of {part.folder} have no lat and lon: a grid of 0.5 x "
            "0.625 degrees around 0 N 0 E is taken; what else they lack counts as unknown"
        )
    if part.layout.approximate:
        found.append(f"channels are approximate ({part.layout.name or part.folder}): they stand for others")
    there = part.layout.names
    if lacking := [name for name in part.names if there is not None and name not in there]:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        found.append(f"channels that files lack, taken as their mean: {', '.join(lacking[:_SHOWN])}{more}")
    unusual = sum(entry.climatology_file is None for entry in part.entries)
    if unusual and part.names == channels.SETS["merra2-160"]:
        found.append(f"no climatology: {unusual:,} of {count:,} entries; its mean is taken")
    return tuple(found)
