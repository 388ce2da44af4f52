"""The neutral record of every data set: ``Item`` and ``DataSet``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Modality = Literal["text", "image", "audio"]
Split = Literal["train", "val", "test"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)  # there may be a million of them
class Item:
    """One sample. Items of one ``group`` are positives of each other and stand in one split.

    ``image`` and ``audio`` are files; a missing modality is None, never a stand-in.
    """

    id: str
    group: str
    split: Split
    text: str | None = None
    image: Path | None = None
    audio: Path | None = None
    labels: tuple[str, ...] = ()
    time: float | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    def has(self, modality: Modality) -> bool:
        return self.content(modality) is not None

    def content(self, modality: Modality) -> str | Path | None:
        """The caption (str), or the path of the picture or recording."""
        return {"text": self.text, "image": self.image, "audio": self.audio}[modality]


@dataclass(frozen=True)
class DataSet:
    """What a reader found. ``notes``: one line for everything that was dropped or is worth knowing.

    ``label_names``: all labels in the order of the data set's own numbering, where it has one.
    """

    name: str
    root: Path
    licence: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    def of_split(self, split: Split) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.split == split)
