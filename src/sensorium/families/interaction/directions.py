"""The questions that an evaluation puts to a split: set by set, which items of one modality belong to those of another.

Legend: N rows of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from sensorium.data.items import MODALITIES, Modality
from sensorium.families.interaction.data import EvalSource

KS = (1, 5, 10)
LETTER: Mapping[Modality, str] = {"text": "t", "image": "i", "audio": "a"}
NOUN: Mapping[Modality, str] = {"text": "text", "image": "picture", "audio": "sound"}


@dataclass(frozen=True)
class Direction:
    """A question to one set: which of its ``gallery`` items belong to a ``query``. Numbers are rows of the split."""

    set: int
    query: Modality
    gallery: Modality
    asked: np.ndarray
    stock: np.ndarray

    @property
    def short(self) -> str:
        return f"{LETTER[self.query]}2{LETTER[self.gallery]}"


def directions(source: EvalSource) -> Iterator[Direction]:
    """What the split can be asked, set by set; queries without an answer in the gallery are left out."""
    groups = np.array([row.group for row in source.rows], np.int64)
    for number in range(len(source.names)):
        mine = {m: source.numbers(m, number) for m in MODALITIES}
        for query, gallery in permutations(MODALITIES, 2):
            asked = mine[query][np.isin(groups[mine[query]], groups[mine[gallery]])]
            if len(asked):
                yield Direction(number, query, gallery, asked, mine[gallery])
