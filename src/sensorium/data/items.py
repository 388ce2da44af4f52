"""The neutral record of every data set: ``Item`` and ``DataSet``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Modality = Literal["text", "image", "audio", "video"]
Medium = Literal["image", "audio", "video"]
Split = Literal["train", "val", "test"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")  # that are aligned, in the order of masks and tables
MEDIA: tuple[Medium, ...] = ("image", "audio", "video")  # that are files
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Moment:
    """What is said of a stretch of a video, from ``start`` to ``end``, in seconds of the file."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)  # there may be a million of them
class Item:
    """One sample. Items of one ``group`` are positives of each other and stand in one split.

    ``image``, ``audio`` and ``video`` are files; a missing modality is None, never a stand-in. ``span``: the seconds of
    the video that count, from and to; None: all of it. ``moments``: where in the video parts of the text are seen.
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
    video: Path | None = None
    span: tuple[float, float] | None = None
    moments: tuple[Moment, ...] = ()

    def has(self, modality: Modality) -> bool:
        return self.content(modality) is not None

    def content(self, modality: Modality) -> str | Path | None:
        """The caption (str), or the path of the picture, recording or video."""
        return {"text": self.text, "image": self.image, "audio": self.audio, "video": self.video}[modality]

    @property
    def files(self) -> dict[Medium, Path]:
        """The files that it has."""
        found = {"image": self.image, "audio": self.audio, "video": self.video}
        return {medium: path for medium in MEDIA if (path := found[medium]) is not None}


@dataclass(frozen=True)
class DataSet:
    """What a reader found. ``notes``: one line for everything that was dropped or is worth knowing.

    ``label_names``: all labels in the order of the data set's own numbering, where it has one. ``found``: of a split of
    videos, how many are there of how many that its lists name, where some may be missing. ``history``: groups are
    users, and items what they chose one after the other (see ``histories.py``); so many go before one that is foretold.
    """

    name: str
    root: Path
    licence: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    found: Mapping[Split, tuple[int, int]] = field(default_factory=dict)
    history: int | None = None

    def of_split(self, split: Split) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.split == split)
