"""What the training guide of `interaction` speaks of: the keys of its ``config.yaml``, and its data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sensorium import config as configuration
from sensorium.config import Section
from sensorium.data import readers
from sensorium.data.items import SPLITS, DataSet, Modality
from sensorium.engine.contract import Sources, Table
from sensorium.families.interaction.data import EvalSource, TrainSource

SETS = ("coco", "clotho", "audiocaps", "voxceleb")
"""Names of the data sets: of their readers, and of their folders below ``paths.data_root``."""

JUDGED = ("esc50",)
"""Likewise, of those that serve the evaluation alone."""

DEMO: dict[str, Any] = {
    "model": {"text": {"word_vectors": "none", "tokenizer": "learn"}, "use_checkpoint": False},
    "data": {"sets": {"shapes": {"reader": "synthetic", "options": {"variants": 2}}}},
}
"""Settings of the demonstration: 256 embedded items, nothing to be fetched."""

_MEDIA = frozenset({".jpg", ".jpeg", ".png", ".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"})
_NOUNS: dict[Modality, str] = {"image": "pictures", "audio": "recordings", "text": "texts"}


class ModelKeys(Section):
    """``embed_dim``: None takes the width of the size."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    embed_dim: int | None = None
    use_checkpoint: bool = True


class TrainingKeys(Section):
    """``gradient_accumulation_steps``: so many parts of ``batch_size`` rows meet in one loss."""

    epochs: float = Field(100, gt=0)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    use_amp: bool = True
    gradient_accumulation_steps: int = Field(4, ge=1)


class PathKeys(Section):
    data_root: str = Field("./data", min_length=1)
    output_dir: str = Field("./outputs", min_length=1)


class Keys(Section):
    """The guide's ``config.yaml``; the defaults are its values."""

    model: ModelKeys = ModelKeys()
    training: TrainingKeys = TrainingKeys()
    paths: PathKeys = PathKeys()

    def settings(self) -> dict[str, Any]:
        """As settings of a run, but for the data sets."""
        model, training = self.model, self.training
        parts = training.gradient_accumulation_steps
        return {
            "model": {"size": model.size, "embed_dim": model.embed_dim, "use_checkpoint": model.use_checkpoint},
            "train": {
                "epochs": training.epochs,
                "batch_size": training.batch_size * parts,
                "micro_batches": parts,
                "precision": "fp16" if training.use_amp else "fp32",
            },
            "optim": {"lr": training.learning_rate},
            "track": {"tensorboard_dir": str(curves(Path(self.paths.output_dir)))},
        }


def curves(output_dir: Path) -> Path:
    """Where TensorBoard looks."""
    return output_dir / "logs" / "tensorboard"


def keys(path: Path, flags: dict[str, Any]) -> Keys:
    """The file's values, and over them what was given as ``flags``. Raises ConfigError with all problems of either."""
    content = configuration.load_file(path)
    configuration.build(Keys, content, str(path))
    return configuration.build(Keys, configuration.merge(content, flags), "command line")


@dataclass(frozen=True)
class Place:
    """Where a data set should be. ``data``: what was read there; None where there is none: ``absent`` says why."""

    name: str
    root: Path
    data: DataSet | None = None
    absent: str = ""


def look(data_root: Path) -> list[Place]:
    """The guide's data sets below a folder. One that is there must be whole: raises DataError where it is not."""
    return [_place(name, data_root / name) for name in (*SETS, *JUDGED)]


def _place(name: str, root: Path) -> Place:
    if not root.is_dir():
        return Place(name, root, absent="no such folder")
    files = (file for _, _, names in os.walk(root) for file in names)
    if not any(os.path.splitext(file)[1].lower() in _MEDIA for file in files):  # noqa: PTH122  (a million names)
        return Place(name, root, absent="no picture or recording in it")
    options = {"labels": False} if name == "coco" else {}  # they need not be counted, and are slow to read
    return Place(name, root, readers.read(name, root, options))


def settings_of(places: Sequence[Place]) -> dict[str, Any]:
    """The data sets that are there, as settings of a run; empty where there is none to train on."""
    there = [place for place in places if place.data is not None]
    if all(place.name in JUDGED for place in there):
        return {}
    return {place.name: {"reader": place.name, "root": str(place.root)} for place in there}


def table(places: Sequence[Place]) -> Table:
    """What is there and what is not; numbers are those of the parts for training, validation and test."""
    columns = ("set", "state", *_NOUNS.values(), "folder")
    rows = []
    for place in places:
        state = place.absent and f"absent: {place.absent}"
        rows.append((place.name, state or "found", *(_numbers(place.data, m) for m in _NOUNS), str(place.root)))
    return Table("Data sets", columns, tuple(rows), "training / validation / test")


def _numbers(data: DataSet | None, modality: Modality) -> str:
    if data is None:
        return "-"
    if modality == "text":
        counts = [sum(item.text is not None for item in data.of_split(split)) for split in SPLITS]
    else:
        counts = [len({item.content(modality) for item in data.of_split(split)} - {None}) for split in SPLITS]
    return " / ".join(f"{count:,}" for count in counts)


def used(found: Sources, names: Sequence[str]) -> list[dict[str, Any]]:
    """What a run really uses of each of its data sets, for the report."""
    train = found.train
    assert isinstance(train, TrainSource)
    counted: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        mine = [sample for sample in train.everything if sample.set == number]
        counts: dict[str, Any] = {
            "pictures": len({sample.image for sample in mine} - {None}),
            "recordings": len({sample.audio for sample in mine} - {None}),
            "texts": sum(len(sample.captions) for sample in mine),
        }
        line: dict[str, Any] = {"name": name, "train": {"samples": len(mine), **counts}}
        for split, source in (("val", found.val), ("test", found.test)):
            if isinstance(source, EvalSource):
                line[split] = {noun: len(source.numbers(m, number)) for m, noun in _NOUNS.items()}
        counted.append(line)
    return counted
