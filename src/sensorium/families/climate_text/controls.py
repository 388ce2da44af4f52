"""Whose field an entry is shown in the control `shuffled`: that of another one, drawn at random among its like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sensorium.data.fields.tree import Entry
from sensorium.errors import DataError

Control = Literal["own", "shuffled", "absent"]
CONTROLS: tuple[Control, ...] = ("own", "shuffled", "absent")


def others(entries: Sequence[Entry], seed: int) -> np.ndarray:
    """``[N]`` for each entry the number of another one with another field.

    A random permutation of those of the same question and place; what stands alone there goes among those of the same
    question, and then among all. Free text (without facts) is exchanged between groups (blocks of time), where it has
    them. The facts themselves are not looked at, so that who answers from the field falls to chance and not below.
    Raises DataError when all entries have the same field.
    """
    draw = np.random.default_rng(seed)
    partner = np.full(len(entries), -1, np.int64)
    for narrow in (_question_place, _question, _all):
        classes: dict[tuple[str, ...], list[int]] = {}
        for number in np.flatnonzero(partner < 0):
            classes.setdefault(narrow(entries[int(number)]), []).append(int(number))
        for members in classes.values():
            _exchange(partner, members, entries, draw)
    for number in np.flatnonzero(partner < 0):  # one is left over: it takes any other field, which is then shown twice
        own = _owner(entries[int(number)])
        allowed = [other for other, entry in enumerate(entries) if _owner(entry) != own]
        if not allowed:
            raise DataError("all samples of the split have the same field; fields cannot be exchanged between them")
        partner[number] = draw.choice(allowed)
    return partner


def _exchange(partner: np.ndarray, members: Sequence[int], entries: Sequence[Entry], draw: np.random.Generator) -> None:
    """A random permutation in which nobody keeps a field; nothing where one of the fields belongs to more than half.

    Members stand in a ring, those of one field beside each other; each takes from as far away as the commonest field
    is long, which is further than its own reaches.
    """
    owners: dict[str, list[int]] = {}
    for number in members:
        owners.setdefault(_owner(entries[number]), []).append(number)
    longest = max(map(len, owners.values()))
    if 2 * longest > len(members):
        return
    keys = list(owners)
    ring = [number for key in draw.permutation(len(keys)) for number in draw.permutation(owners[keys[int(key)]])]
    partner[ring] = np.roll(ring, -longest)


def _owner(entry: Entry) -> str:
    """What two entries with the same field have in common; for free text, with the same block of time."""
    return f"group {entry.group}" if entry.facts is None and entry.group else entry.climate_file


def asked(entry: Entry) -> tuple[str, Mapping[str, Any]]:
    """Kind of an entry's question, empty for free text, and what is true of its field."""
    known = entry.facts or {}
    return str(known.get("asked", "")), known


def _question_place(entry: Entry) -> tuple[str, ...]:
    return (asked(entry)[0], entry.location or "")


def _question(entry: Entry) -> tuple[str, ...]:
    return (asked(entry)[0],)


def _all(entry: Entry) -> tuple[str, ...]:
    del entry
    return ()
