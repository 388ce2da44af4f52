"""What normalises the fields of a `climate_text` run, measured on its training split."""

from __future__ import annotations

from sensorium.data.fields.channels import Normal, Scalers
from sensorium.data.fields.writing import Moments
from sensorium.families.climate_text.data import Part, departing, rows_of

_LOOKED = 256  # fields of which the spread of departures is taken


def measured(part: Part) -> Scalers:
    """Mean and standard deviation of the channels over the fields of a split, for a tree without ``stats.json``."""
    parts = {"field": Moments(part.names), "climatology": Moments(part.names), "static": Moments(part.layout.static)}
    seen: set[str] = set()
    for number, entry in enumerate(part.entries):
        if entry.climate_file in seen:
            continue
        found = part.sample(number)
        rows = rows_of(found.names, part.names, part.folder / entry.climate_file, fill=False)
        parts["field"].add(found.field[:, rows].transpose(0, 1).flatten(1).numpy())
        if found.climatology is not None and entry.climatology_file not in seen:
            parts["climatology"].add(found.climatology[rows].flatten(1).numpy())
        if found.static is not None and entry.static_file not in seen:
            parts["static"].add(found.static.flatten(1).numpy())
        seen |= set(entry.files)
    normals = {key: one.normal() if one.count else Normal((), (), ()) for key, one in parts.items()}
    return Scalers(normals["field"], normals["static"], normals["climatology"])


def departures_of(part: Part) -> Normal:
    """Mean and standard deviation of what the fields of a split depart from their climatology by, from ``_LOOKED`` of
    them, evenly spread. Raises DataError for one without a climatology."""
    moments = {name: Moments((name,)) for name in part.names}
    for number in sorted({number * len(part.entries) // _LOOKED for number in range(_LOOKED)}):
        found = part.sample(number)
        departures = departing(found, part.folder / part.entries[number].climate_file)
        for name in moments.keys() & set(found.names):  # a file may lack some: data.fill_missing
            moments[name].add(departures[:, found.names.index(name)].reshape(1, -1).numpy())
    known = {name: one.normal() for name, one in moments.items() if one.count}
    return Normal(
        tuple(known), tuple(one.mean[0] for one in known.values()), tuple(one.std[0] for one in known.values())
    )
