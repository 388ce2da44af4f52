"""Texts for imported fields, and the tree that they make: facts computed and evenly spread, or texts of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.fields import channels, facts, grammar, joining
from sensorium.data.fields.facts import CLOSED, KINDS
from sensorium.data.fields.importing import Import, Options, Piece, Place, prepare, thinned
from sensorium.data.fields.places import time_text
from sensorium.data.fields.writing import Progress, Writer, new_tree, require_place
from sensorium.data.grouping import draw
from sensorium.errors import DataError

Row = dict[str, Any]
"""An entry to be: ``split``, ``piece`` (a Piece), and what the index says of it."""

_SPREAD = ("location", "variable", "sign", "trend", "comparison")  # whose answers are evened out


@dataclass(frozen=True)
class Done:
    """``entries`` and ``fields`` by split."""

    entries: Mapping[str, int]
    fields: Mapping[str, int]
    notes: tuple[str, ...]


def write(target: Path, options: Options, *, overwrite: bool = False, progress: Progress | None = None) -> Done:
    """Import into a new tree. Raises ConfigError and DataError before the folder appears, and DiskError."""
    require_place(target, overwrite=overwrite)
    ready = prepare(options)
    notes = list(ready.notes)
    rows = templated(ready) if options.targets == "templated" else _joined(ready, notes)
    rows = [dict(row) for row in thinned(rows, options.max_samples, options.seed)]
    rows.sort(key=lambda row: (row["piece"].steps, row["piece"].place))  # each step of the files is read once
    wanted = {row["piece"] for row in rows}
    size = sum(_bytes(ready, piece) for piece in wanted)
    static = ready.cube.static
    names = channels.STATIC_8[4:] if static is None else static[0]
    lost = 0
    with new_tree(target, size, overwrite=overwrite) as folder:
        writer = Writer(folder, ready.names, names)
        files: dict[Piece, dict[str, str] | None] = {}
        for number, row in enumerate(rows, start=1):
            piece = row["piece"]
            if piece not in files:
                files[piece] = _write(writer, ready, piece)
            there = files[piece]
            if there is None:
                lost += 1
            else:
                content = {key: value for key, value in row.items() if key not in ("piece", "split")}
                writer.entry(piece.split, {**there, **_where(ready, piece), **content})
            if progress is not None:
                progress(number, len(rows))
        writer.finish(_about(ready))
    if lost:
        notes.append(f"{lost:,} samples are left out: less than half of one of their channels was measured")
    return Done({split: len(some) for split, some in writer.entries.items()}, dict(writer.numbers), tuple(notes))


def _about(ready: Import) -> dict[str, Any]:
    approximate = any(note.startswith("the channels of") for note in ready.notes)
    units = ["standard deviations"] * len(ready.names) if ready.options.anomaly else list(ready.cube.units.values())
    return {
        "set": ready.options.variables if ready.options.variables in channels.SETS else None,
        "approximate": approximate,
        "units": dict(zip(ready.names, units, strict=True)),
        "labels": dict(zip(ready.names, ready.labels, strict=True)),
        "source": ready.options.source,
    }


def _bytes(ready: Import, piece: Piece) -> int:
    crop = ready.places[piece.place].crop
    return 4 * len(piece.steps) * len(ready.names) * crop.height * crop.width + 2048


def _write(writer: Writer, ready: Import, piece: Piece) -> dict[str, str] | None:
    """The files of a piece; None where too little was measured."""
    values = ready.values(piece)
    if values is None:
        return None
    found = {"climate_file": writer.field(piece.split, values)}
    if (climatology := ready.climatology(piece)) is not None:
        found["climatology_file"] = writer.constant(piece.split, "climatology", *climatology)
    if ready.cube.static is not None:
        part = ready.cut(ready.cube.static[1], piece.place)
        found["static_file"] = writer.constant(piece.split, "static", f"{piece.place:04d}", part)
    return found


def _where(ready: Import, piece: Piece) -> Row:
    place = ready.places[piece.place]
    times = [ready.cube.times[step] for step in piece.steps]
    return {
        "lat": _ends(place.lat),
        "lon": _ends(place.lon),
        "time": [time_text(time) for time in times],
        "group": time_text(times[-1])[:10],
    }


def _ends(degrees: np.ndarray[Any, np.dtype[Any]]) -> list[float]:
    """The first and the last, or all where they are not evenly spaced."""
    even = np.allclose(np.diff(degrees), degrees[1] - degrees[0], atol=1e-4)
    return [round(float(one), 5) for one in (degrees[[0, -1]] if even else degrees)]


# --- texts that are computed ---


def templated(ready: Import) -> list[Row]:
    """Questions about every piece whose answers are sure, evened out. Raises DataError when there are none."""
    grammar.require_labels(ready.labels)
    rows: list[Row] = []
    for piece in ready.pieces:
        seen = facts.look(ready.anomalies(piece), ready.labels)
        if seen is not None:
            rows += _questions(ready, piece, seen)
    kept = [row for split in ("train", "val") for row in _even([row for row in rows if row["split"] == split])]
    if not any(row["split"] == "train" for row in kept) or not any(row["split"] == "val" for row in kept):
        raise DataError("no field shows anything that is sure enough to be told; take other crops or more times")
    return kept


def _questions(ready: Import, piece: Piece, seen: facts.Seen) -> Iterator[Row]:
    """An entry for each kind of question whose answer is sure."""
    place = ready.places[piece.place]
    crop = place.crop
    position = [piece.steps[-1], crop.row, crop.column]
    for number, kind in enumerate(KINDS):
        if kind not in seen.sure or (kind == "variable" and len(ready.labels) < 2):
            continue
        random = np.random.default_rng([ready.options.seed, number, *position])
        known: Row = {**seen.facts, "about": seen.facts["variable"]}
        words = {"place": place.name}
        if kind == "comparison":
            words["variable"], words["comparison"] = seen.halves[int(random.integers(len(seen.halves)))]
            known |= {"comparison": words["comparison"], "about": words["variable"]}
        held_out = piece.split == "val" and bool(random.random() < 0.5)
        question = grammar.ask(kind, words, random, held_out=held_out)
        unseen = [*(["region"] if _unseen(ready.options, place) else []), *(["phrasing"] if held_out else [])]
        yield {
            "split": piece.split,
            "piece": piece,
            "text": question.text,
            "target": grammar.tell(kind, known, random),
            "location": place.name,
            "facts": {"asked": kind, **known, "phrasing": question.phrasing, "unseen": unseen},
        }


def _unseen(options: Options, place: Place) -> bool:
    return options.split == "region" and place.state == 1


def _even(rows: Sequence[Row]) -> list[Row]:
    """Rows of which no answer is much more frequent than the others: neither at one place, so that knowing the place
    tells little, nor over all, so that the question tells nothing. What is too much is left out at random."""
    for where in (lambda row: row["location"], lambda row: ""):
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            groups.setdefault((row["facts"]["asked"], where(row)), []).append(row)
        rows = [row for (kind, _), some in groups.items() for row in _trimmed(kind, some, strict=not where(rows[0]))]
    return list(rows)


def _trimmed(kind: str, rows: Sequence[Row], *, strict: bool) -> list[Row]:
    """``strict``: no answer more often than the rarest, or than half the usual number where one is rarer still;
    otherwise at most its fair share."""
    if kind not in _SPREAD:
        return list(rows)
    counts = Counter(str(row["facts"][kind]) for row in rows)
    classes = max(len(counts), len(CLOSED.get(kind, ())) if kind != "comparison" else 0)
    fair = max(1, -(-len(rows) // classes))
    most = max(min(counts.values()), sorted(counts.values())[len(counts) // 2] // 2) if strict else fair
    taken: Counter[str] = Counter()
    kept = []
    for row in sorted(rows, key=lambda row: draw(0, "even", kind, str(row["piece"]))):
        answer = str(row["facts"][kind])
        if taken[answer] < most:
            taken[answer] += 1
            kept.append(row)
    return kept


# --- texts of others ---


def _joined(ready: Import, notes: list[str]) -> list[Row]:
    """Each text with the field of its time, and of the place whose centre is nearest to its own. Raises DataError when
    none finds a field."""
    assert ready.options.text is not None
    said = joining.read_texts(Path(ready.options.text).expanduser())
    pairs = sorted({piece.steps for piece in ready.pieces})
    ends = ready.cube.times[[steps[-1] for steps in pairs]]
    by_place: dict[tuple[tuple[int, ...], int], Piece] = {(piece.steps, piece.place): piece for piece in ready.pieces}
    rows: list[Row] = []
    for one in said:
        number = joining.nearest(one.time, ends, ready.options.text_hours)
        place = _place_of(ready.places, one.place)
        piece = None if number is None or place is None else by_place.get((pairs[number], place))
        if piece is not None:
            location = one.location or ready.places[piece.place].name
            rows.append(
                {"split": piece.split, "piece": piece, "text": one.text, "target": one.target, "location": location}
            )
    if not rows:
        raise DataError(f"{ready.options.text}: none of {len(said):,} texts has a field at its time and place")
    if len(rows) < len(said):
        notes.append(f"{len(said) - len(rows):,} of {len(said):,} texts have no field at their time and place")
    return rows


def _place_of(places: Sequence[Place], wanted: tuple[float, float] | None) -> int | None:
    """The place that holds a point, the one with the nearest centre; of a text without a point, the only one."""
    if wanted is None:
        return 0 if len(places) == 1 else None
    best: tuple[float, int] | None = None
    for number, place in enumerate(places):
        lat, lon = wanted
        inside = place.lat[0] <= lat <= place.lat[-1] and (lon - place.lon[0]) % 360 <= place.lon[-1] - place.lon[0]
        centre = float(place.lat[[0, -1]].mean()), float(place.lon[[0, -1]].mean())
        apart = abs(lat - centre[0]) + abs((lon - centre[1] + 180) % 360 - 180)
        if inside and (best is None or apart < best[0]):
            best = (apart, number)
    return None if best is None else best[1]
