"""What the two splits of a tree must not have in common: a field, a text with its target, a time at one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.data.fields.tree import SPLITS, Entry


@dataclass(frozen=True)
class Placed:
    """From when to when, and where: south, north, west and east; None: that is not known."""

    begin: np.datetime64
    end: np.datetime64
    box: tuple[float, float, float, float] | None


Found = tuple[int, Entry, str, Placed | None]
"""Number of an entry, the entry, the digest of its field ("" if it has none), and where and when it is."""


def between_splits(found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, int, Entry, str, str]]:
    """For entries of the second split that share something with one of the first: split, number, entry, reason and a
    line about it."""
    first, second = (found[split] for split in SPLITS)
    fields = {digest: number for number, _, digest, _ in reversed(first) if digest}
    texts = {(entry.text, entry.target): number for number, entry, _, _ in reversed(first) if not entry.facts}
    placed = [(number, one) for number, _, _, one in first if one is not None]
    times = np.array([[one.begin, one.end] for _, one in placed], "datetime64[s]").reshape(-1, 2)
    for number, entry, digest, one in second:
        if digest in fields:
            yield SPLITS[1], number, entry, "field in both splits", f"the field of {SPLITS[0]}[{fields[digest]}]"
        if (entry.text, entry.target) in texts:
            other = texts[entry.text, entry.target]
            yield SPLITS[1], number, entry, "text in both splits", f"text and target of {SPLITS[0]}[{other}]"
        if one is None:
            continue
        for row in np.flatnonzero((times[:, 0] <= one.end) & (times[:, 1] >= one.begin)):
            other, theirs = placed[int(row)]
            if _meet(one.box, theirs.box):
                message = f"time and place overlap with {SPLITS[0]}[{other}]"
                yield SPLITS[1], number, entry, "time in both splits", message
                break


def _meet(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    """Whether two boxes share a point, also over the date line; of an unknown one nothing is known, so it does."""
    if one is None or other is None:
        return True
    if one[1] < other[0] or other[1] < one[0]:
        return False
    apart = (other[2] - one[2]) % 360
    return apart <= one[3] - one[2] or 360 - apart <= other[3] - other[2]
