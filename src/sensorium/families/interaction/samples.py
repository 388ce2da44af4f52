"""From the items of several data sets to what one visit shows, and to what an evaluation asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.data.items import MODALITIES, DataSet, Item, Modality, Split
from sensorium.errors import DataError

MOST_TEXTS = 5  # of one picture or recording in an evaluation, the first: so COCO's tables are made


@dataclass(frozen=True)
class Sample:
    """A picture, a recording, or both, with all that is said of them. ``group``: of the whole run, not of a set."""

    set: int
    group: int
    image: Path | None
    audio: Path | None
    captions: tuple[str, ...]
    labels: tuple[int, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        there = {"text": bool(self.captions), "image": self.image is not None, "audio": self.audio is not None}
        return tuple(m for m in MODALITIES if there[m])


@dataclass(frozen=True)
class Row:
    """One text, picture or recording of an evaluation, encoded once however often it is asked for. ``caption``: a text
    that goes with it, or its name, for people."""

    set: int
    group: int
    modality: Modality
    content: str | Path
    caption: str
    labels: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)


def group_numbers(sets: Sequence[DataSet]) -> list[dict[str, int]]:
    """Of each set the number of each of its groups; no two sets share one."""
    numbers: list[dict[str, int]] = []
    first = 0
    for one in sets:
        groups = sorted({item.group for item in one.items})
        numbers.append({group: first + place for place, group in enumerate(groups)})
        first += len(groups)
    return numbers


def samples(sets: Sequence[DataSet], numbers: Sequence[Mapping[str, int]], labels: Mapping[str, int]) -> list[Sample]:
    """What is trained on: items that show the same picture and recording are one sample with several captions.

    Items of a single text have nothing to be learned together with, and are left out.
    """
    found: dict[tuple[int, str, Path | None, Path | None], list[Item]] = {}
    for number, one in enumerate(sets):
        for item in one.of_split("train"):
            if item.image is not None or item.audio is not None:
                found.setdefault((number, item.group, item.image, item.audio), []).append(item)
    return [
        Sample(
            number,
            numbers[number][group],
            image,
            audio,
            tuple(dict.fromkeys(item.text for item in items if item.text is not None)),
            tuple(sorted({labels[label] for item in items for label in item.labels})),
        )
        for (number, group, image, audio), items in found.items()
    ]


def rows(
    sets: Sequence[DataSet], numbers: Sequence[Mapping[str, int]], split: Split, most: int | None = None
) -> list[Row]:
    """What is evaluated: every text, picture and recording of a group once; by set, then by modality. ``most``: of each
    set no more than the first so many groups."""
    found: list[Row] = []
    for number, one in enumerate(sets):
        items = one.of_split(split)
        kept = set(list(dict.fromkeys(item.group for item in items))[:most])
        items = tuple(item for item in items if item.group in kept)
        for modality in MODALITIES:
            contents: dict[tuple[str, str | Path], Item] = {}
            for item in items:
                if (content := item.content(modality)) is not None:
                    contents.setdefault((item.group, content), item)
            if modality == "text":
                contents = _first_texts(contents)
            found += [
                Row(number, numbers[number][group], modality, content, item.text or item.id, item.labels, item.meta)
                for (group, content), item in contents.items()
            ]
    return found


def _first_texts(texts: Mapping[tuple[str, str | Path], Item]) -> dict[tuple[str, str | Path], Item]:
    """Of each picture or recording the first ``MOST_TEXTS``."""
    seen = Counter[tuple[str, Path | None, Path | None]]()
    found = {}
    for key, item in texts.items():
        about = (item.group, item.image, item.audio)
        seen[about] += 1
        if seen[about] <= MOST_TEXTS or about[1:] == (None, None):
            found[key] = item
    return found


def require_apart(sets: Sequence[DataSet]) -> None:
    """Raise DataError when a picture or recording, of whichever set, or a group stands in the training part and in
    another one."""
    files: dict[str | Path, Split] = {}
    for one in sets:
        groups: dict[str | Path, Split] = {}
        for item in one.items:
            for content, seen in ((f"group {item.group}", groups), (item.image, files), (item.audio, files)):
                if content is not None and seen.setdefault(content, item.split) != item.split:
                    raise DataError(
                        f"{one.name}: {content} stands in {seen[content]} and in {item.split}; what is tested must not "
                        "be trained on: mend the split"
                    )
