"""What the report shows of `climate_text`: a map, the question, the truth, answers with and without the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sensorium.data.fields import channels, grammar
from sensorium.data.fields.places import time_text
from sensorium.data.fields.samples import Sample
from sensorium.data.fields.tree import Entry
from sensorium.engine.contract import Card, Gallery, Shown
from sensorium.families.climate_text.data import EvalSource, Part
from sensorium.families.climate_text.maps import FieldMap, draw

_ATTENTION = (
    " Beside them, where the words of the answer with the own field look: weights of the gated cross attention, mean "
    "over words, blocks and heads, as multiples of an even share. Weights are no reasons: they do not say how much a "
    "gate lets pass, nor what a window has been told of the others before."
)
LAND, ANOMALY = "FRLAND", "standard deviations"  # the latter is the unit of imported anomalies


@dataclass(frozen=True)
class Answered:
    """Entry ``row``, its answers by whose field was shown (the own one first), whether that one tells the truth, and
    what its words look at, ``[h, w]`` (``attention.py``), where that can be said."""

    row: int
    texts: Mapping[str, str]
    right: bool | None
    attention: np.ndarray[Any, Any] | None = None


def gallery(answered: Sequence[Answered], source: EvalSource) -> tuple[tuple[Gallery, ...], dict[str, bytes]]:
    """The gallery and its pictures by file name; nothing of nothing."""
    cards, pictures = [], {}
    for number, one in enumerate(answered):
        entry = source.part.entries[one.row]
        name = f"map-{number}.png"
        field = field_map(source.part, one.row, next(iter(one.texts.values())))
        pictures[name] = draw(replace(field, attention=one.attention))
        rights = [one.right, *[None] * (len(one.texts) - 1)]
        found = [Shown(f"truth: {entry.target}")]
        found += [
            Shown(f"with {whose}: {text or '(nothing)'}", right=right)
            for (whose, text), right in zip(one.texts.items(), rights, strict=True)
        ]
        cards.append(Card(Shown(entry.text, image=name), tuple(found)))
    note = "Maps show the variable that is asked about, or the first one. The last answers are the controls."
    note += _ATTENTION if any(one.attention is not None for one in answered) else ""
    return ((Gallery("questions about fields", tuple(cards), note, large=True),) if cards else ()), pictures


def field_map(part: Part, row: int, answer: str) -> FieldMap:
    """The map of an entry: departure from its climatology, where it has one, at the last time."""
    entry, sample = part.entries[row], part.sample(row)
    channel = sample.names.index(_about(entry, sample, part.layout.labels))
    values = sample.field[-1, channel]
    if sample.climatology is not None:
        values = values - sample.climatology[channel]
    name = sample.names[channel]
    label = part.layout.labels.get(name, name)
    known = channels.known(name)
    land = None
    if sample.static is not None and LAND in part.layout.static:
        land = sample.static[part.layout.static.index(LAND)].numpy()
    when = f", {time_text(sample.times[-1])[:16]}" if len(sample.times) else ""
    where = f", {entry.location}" if entry.location else ""
    unit = part.layout.units.get(name, known.unit if known is not None else "")
    departure = sample.climatology is not None or unit == ANOMALY
    facts = entry.facts or {}
    return FieldMap(
        title=f"{label}{where}{when}" + (", departure from normal" if departure else ""),
        unit=unit,
        values=values.numpy(),
        lat=sample.lat,
        lon=sample.lon,
        anomaly=departure,
        land=land,
        true=str(facts["location"]) if "location" in facts else None,
        told=str(grammar.read(answer, list(part.layout.labels.values())).get("location", "")) or None,
    )


def _about(entry: Entry, sample: Sample, labels: Mapping[str, str]) -> str:
    """The channel that the text is about; the first one where that is not known."""
    facts = entry.facts or {}
    wanted = facts.get("about", facts.get("variable"))
    return next((name for name in sample.names if labels.get(name, name) == wanted), sample.names[0])
