"""Whose voice, whose face: matching among a few people, and verification of pairs, each with random rivals and with
rivals of the same gender, as gender alone explains much.

Only rows of the split are used, so that nobody in a trial was trained on. Trials are a pure function of the seed, the
set's name and its rows; each speaker has as many as any other. Legend: T trials, G candidates, P pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from sensorium.data.items import Modality
from sensorium.engine.contract import Table
from sensorium.engine.seeds import generator
from sensorium.families.interaction.data import EvalSource
from sensorium.metrics.verification import CHANCE, area_under_curve, equal_error_rate, matching_accuracy

SIZES = (2, 4, 6, 8, 10)  # candidates, the right one included
TRIALS, PAIRS = 1000, 2000  # of each kind; half of the pairs are of one speaker
ANYONE, SAME_GENDER = "anyone", "same gender"
SENSE: Mapping[Modality, str] = {"audio": "voice", "image": "face"}
_WAYS: tuple[tuple[Modality, Modality], ...] = (("audio", "image"), ("image", "audio"))
Rows: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Speakers:
    """The people of one set who are both heard and seen: their rows by modality, and who may stand beside whom."""

    rows: Mapping[Modality, Rows]
    genders: Mapping[str, str]

    def rivals(self, kind: str) -> dict[str, list[str]]:
        """Of each speaker the others who may be mistaken for them; speakers without any are left out."""
        people = sorted(self.rows["image"])
        if kind == SAME_GENDER:
            found = {p: [o for o in people if o != p and self._alike(p, o)] for p in people}
        else:
            found = {p: [o for o in people if o != p] for p in people}
        return {person: others for person, others in found.items() if others}

    def _alike(self, one: str, other: str) -> bool:
        return one in self.genders and self.genders[one] == self.genders.get(other)


@dataclass(frozen=True)
class Trials:
    """``matching``: by (query, gallery, kind of rivals) trials ``[probe, right, wrong …]``, of rows, up to nine wrong
    ones, each of another person; ``pairs``: by kind ``[voice, face, same]``."""

    matching: Mapping[tuple[Modality, Modality, str], Sequence[Sequence[int]]]
    pairs: Mapping[str, Sequence[tuple[int, int, bool]]]

    def named(self, name: Callable[[int], str]) -> dict[str, list[Any]]:
        """The lists as JSON values, with rows by their names."""
        return {
            "matching": [
                [*kind, [[name(row) for row in trial] for trial in trials]] for kind, trials in self.matching.items()
            ],
            "pairs": [[kind, [[name(a), name(b), same] for a, b, same in pairs]] for kind, pairs in self.pairs.items()],
        }

    def digest(self, source: EvalSource) -> str:
        """sha256 of the lists, with recordings and pictures named by their content."""

        def key(row: int) -> str:
            content = source.rows[row].content
            return content if isinstance(content, str) else source.media.keys[content]

        return hashlib.sha256(json.dumps(self.named(key)).encode()).hexdigest()


def speakers(source: EvalSource, number: int) -> Speakers | None:
    """Those of a set; None when fewer than two are both heard and seen."""
    rows: dict[Modality, dict[str, list[int]]] = {"audio": {}, "image": {}}
    genders: dict[str, str] = {}
    for modality, found in rows.items():
        for row in source.numbers(modality, number).tolist():
            meta = source.rows[row].meta
            if "speaker" in meta:
                found.setdefault(meta["speaker"], []).append(row)
                if "gender" in meta:
                    genders[meta["speaker"]] = meta["gender"]
    both = sorted(rows["audio"].keys() & rows["image"].keys())
    if len(both) < 2:
        return None
    return Speakers({m: {person: found[person] for person in both} for m, found in rows.items()}, genders)


def trials(people: Speakers, name: str, seed: int) -> Trials:
    """The trials of one set of this name."""
    matching, pairs = {}, {}
    for kind in (ANYONE, SAME_GENDER):
        rivals = people.rivals(kind)
        if rivals:
            for query, gallery in _WAYS:
                draw = generator(seed, "speakers", name, query, kind)
                matching[query, gallery, kind] = list(_galleries(people, (query, gallery), rivals, draw))
            pairs[kind] = list(_pairs(people, rivals, generator(seed, "speakers", name, "pairs", kind)))
    return Trials(matching, pairs)


def _turns(people: Sequence[str], count: int, draw: np.random.Generator) -> Iterator[str]:
    """Everybody as often, in an order that says nothing."""
    order = draw.permutation(len(people))
    return (people[order[turn % len(order)]] for turn in range(count))


def _one(rows: Sequence[int], draw: np.random.Generator) -> int:
    return rows[int(draw.integers(len(rows)))]


def _galleries(
    people: Speakers, way: tuple[Modality, Modality], rivals: Mapping[str, Sequence[str]], draw: np.random.Generator
) -> Iterator[list[int]]:
    asked, found = (people.rows[modality] for modality in way)
    for person in _turns(sorted(rivals), TRIALS, draw):
        others = draw.permutation(len(rivals[person]))[: SIZES[-1] - 1]
        wrong = [_one(found[rivals[person][other]], draw) for other in others]
        yield [_one(asked[person], draw), _one(found[person], draw), *wrong]


def _pairs(
    people: Speakers, rivals: Mapping[str, Sequence[str]], draw: np.random.Generator
) -> Iterator[tuple[int, int, bool]]:
    voices, faces = people.rows["audio"], people.rows["image"]
    for person in _turns(sorted(rivals), PAIRS // 2, draw):
        other = rivals[person][int(draw.integers(len(rivals[person])))]
        yield _one(voices[person], draw), _one(faces[person], draw), True
        yield _one(voices[person], draw), _one(faces[other], draw), False


def lists(source: EvalSource, seed: int) -> dict[str, Any]:
    """All trials by set, with recordings and pictures named by their files, to be stored with the result."""
    found = {name: speakers(source, number) for number, name in enumerate(source.names)}
    return {
        name: trials(people, name, seed).named(lambda row: str(source.rows[row].content))
        for name, people in found.items()
        if people is not None
    }


def tables(z: np.ndarray, source: EvalSource, seed: int) -> Iterator[Table]:
    """Matching and verification, for every set with people who are both heard and seen. ``z`` ``[N, D]``: of all
    rows of the split."""
    matched: list[tuple[str | float | int | None, ...]] = []
    verified: list[tuple[str | float | int | None, ...]] = []
    digests: list[str] = []
    for number, name in enumerate(source.names):
        people = speakers(source, number)
        if people is None:
            continue
        found = trials(people, name, seed)
        digests.append(f"{name} {found.digest(source)}")
        count = len(people.rows["audio"])
        for (query, gallery, kind), lists in found.matching.items():
            accuracies = [accuracy(z, lists, size) for size in SIZES]
            matched.append((name, SENSE[query], SENSE[gallery], kind, *accuracies, len(lists), count))
        for kind, pairs in found.pairs.items():
            verified.append((name, kind, *verification(z, pairs), CHANCE, CHANCE, len(pairs), count))
    if not matched:
        return
    told = (
        "People of this split alone. The trials follow from the run's seed and are stored with the result; their "
        f"sha256: {'; '.join(digests)}."
    )
    matched.append(("chance", "", "", "", *(100 / size for size in SIZES), None, None))
    columns = ("set", "query", "finds", "rivals", *(f"of {size}" for size in SIZES), "trials", "speakers")
    note = (
        "Percent of trials in which the right one of so many candidates scores above all others; n/a: too few people. "
        f"Gender alone explains much where rivals are anyone. {told}"
    )
    yield Table("Matching voices and faces", columns, tuple(matched), note)
    columns = ("set", "rivals", "EER", "AUC", "chance EER", "chance AUC", "pairs", "speakers")
    note = (
        "Whether a voice and a face are of one person, which half of the pairs are. EER: percent of errors where both "
        f"kinds are as frequent, less is better; AUC: area under the curve, percent. {told}"
    )
    yield Table("Verification of voices and faces", columns, tuple(verified), note)


def accuracy(z: np.ndarray, lists: Sequence[Sequence[int]], size: int) -> float | None:
    """Of the trials with so many candidates; None where there are none."""
    whole = np.array([trial[: 1 + size] for trial in lists if len(trial) > size], np.int64)
    if not len(whole):
        return None
    scores_TG = np.einsum("td,tgd->tg", z[whole[:, 0]].astype(np.float64), z[whole[:, 1:]].astype(np.float64))
    return matching_accuracy(scores_TG.astype(np.float32))


def verification(z: np.ndarray, pairs: Sequence[tuple[int, int, bool]]) -> tuple[float, float]:
    """Equal error rate and area under the curve, percent."""
    voices, faces, same = (np.array(side) for side in zip(*pairs, strict=True))
    scores_P = (z[voices].astype(np.float64) * z[faces]).sum(axis=1).astype(np.float32)
    return equal_error_rate(scores_P, same), area_under_curve(scores_P, same)
