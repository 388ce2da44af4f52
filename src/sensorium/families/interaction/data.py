"""From several data sets to batches of pixels, words and log-mel frames: the data of the family `interaction`.

Legend: B rows, S side of a picture, L words, T mel frames.

A batch holds ``has`` ``[B, 3]`` bool (text, image, audio), ``group`` ``[B]`` int64, and of each modality that occurs:
``ids`` and ``ids_mask`` ``[B, L]``, ``pixels`` ``[B, 3, S, S]`` uint8, ``mel`` ``[B, T, bands]`` float32, standardised,
and ``mel_mask`` ``[B, T]``; in training ``labels`` ``[B, C]`` bool, where the data are labelled, and ``target_*``
``[B, 256]`` and ``teacher_*`` ``[B, W]``, where a stage or the configuration gives some.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator

from sensorium.config import Section
from sensorium.data import features
from sensorium.data.feature_keys import ContentKeys
from sensorium.data.feature_store import MEMO
from sensorium.data.items import MODALITIES, Modality
from sensorium.data.pictures import Pictures
from sensorium.engine.contract import Batch, Mix
from sensorium.engine.seeds import generator
from sensorium.families.interaction.samples import Row, Sample
from sensorium.families.interaction.words import WordTokenizer

SMALLEST_CROP = 0.6  # of a picture's area; captions speak of the whole
RESIZE = 256 / 224  # short side before the centre crop of an evaluation
NAMES: Mapping[Modality, str] = {"text": "ids", "image": "pixels", "audio": "mel"}  # in a batch
Stores: TypeAlias = Mapping[Modality, features.FeatureSource]
ONE_PLACE = r"^[^{}]*\{\}[^{}]*$"  # of a name in a text
TURNED = Image.Transpose.FLIP_LEFT_RIGHT


class SetConfig(Section):
    """One data set."""

    reader: str = Field("native", description="Format of the data set: a name that `sensorium data list` shows.")
    root: str | None = Field(None, description="Folder of the data set; null where the reader knows it.")
    options: dict[str, Any] = Field({}, description="The reader's own options.")
    weight: float | None = Field(
        None, gt=0, description="How often the set has its turn, relative to others; null: in proportion to its size."
    )


class TeachersConfig(Section):
    """Frozen encoders whose vectors the towers learn to predict; each sample is shown to them once."""

    text: str | None = Field(None, description="Hub name, local folder, `package:` or `random:`; null: no teacher.")
    image: str | None = Field(None, description="Likewise.")
    audio: str | None = Field(None, description="Likewise.")


class DataConfig(Section):
    """Where the data come from, and what of them is seen."""

    sets: dict[str, SetConfig] = Field({}, description="The data sets by any name; null takes one of the preset out.")
    teachers: TeachersConfig = TeachersConfig()
    batches: Literal["one_kind", "mixed"] = Field(
        "one_kind", description="Whether a step holds samples of one set and the same modalities, or of all."
    )
    audio_max_seconds: float = Field(30.0, ge=0.5, le=300, description="Longer recordings are cut here.")
    audio_crop_frames: int = Field(
        1024, ge=16, le=30_000, description="Training sees so many frames of 10 ms at a time; evaluation sees all."
    )
    validation_groups: int | None = Field(
        1000, ge=1, description="Validation takes so many pictures or clips of each set; null takes all."
    )
    zero_shot_sound: str = Field(
        "the sound of {}", pattern=ONE_PLACE, description="What a class of sounds is called in a text; {} is its name."
    )
    zero_shot_picture: str = Field(
        "a picture of {}", pattern=ONE_PLACE, description="What a class of pictures is called in a text."
    )
    cache: str | None = Field(None, description="Folder of the caches; null takes SENSORIUM_CACHE or ~/.cache.")
    keep_pictures: bool = Field(True, description="Keep small copies of large pictures, which decode faster.")

    @field_validator("sets", mode="before")
    @classmethod
    def _taken_out(cls, sets: Any) -> Any:
        return {name: one for name, one in sets.items() if one is not None} if isinstance(sets, Mapping) else sets


@dataclass(frozen=True)
class Media:
    """How samples become arrays. ``mean`` and ``std`` ``[bands]`` of the training set's log-mel frames; ``keys``: the
    content key of every picture and recording."""

    tokenizer: WordTokenizer
    pictures: Pictures
    side: int
    mels: features.FeatureSource | None
    mean: np.ndarray
    std: np.ndarray
    crop_frames: int
    keys: Mapping[Path, str]

    def picture(self, path: Path, seed: int | None) -> np.ndarray:
        """``[3, S, S]`` uint8: a random part, perhaps mirrored; without a seed the middle."""
        image = self.pictures.load(path, self.keys[path])
        image = middle(image, self.side) if seed is None else _part(image, self.side, seed)
        return np.asarray(image, np.uint8).transpose(2, 0, 1)

    def sound(self, path: Path, seed: int | None) -> np.ndarray:
        """``[T, bands]`` float32, standardised: a random stretch; without a seed all of it."""
        assert self.mels is not None
        frames = self.mels.get(self.keys[path]).tokens
        if seed is not None and len(frames) > self.crop_frames:
            first = int(generator(seed, "stretch").integers(len(frames) - self.crop_frames + 1))
            frames = frames[first : first + self.crop_frames]
        standard: np.ndarray = (frames.astype(np.float32) - self.mean) / self.std
        return standard


def middle(image: Image.Image, side: int) -> Image.Image:
    """The middle square, resized."""
    scale = max(side / min(image.size), side * RESIZE / min(image.size))
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _part(image: Image.Image, side: int, seed: int) -> Image.Image:
    """A rectangle of 60 to 100 % of the area and about the shape of a square, resized, every second time mirrored."""
    draw = generator(seed, "part")
    area, shape = draw.uniform(SMALLEST_CROP, 1.0), np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
    whole = image.width * image.height
    width = min(image.width, max(1, round((whole * area * shape) ** 0.5)))
    height = min(image.height, max(1, round((whole * area / shape) ** 0.5)))
    left, top = draw.integers(image.width - width + 1), draw.integers(image.height - height + 1)
    box = (float(left), float(top), float(left + width), float(top + height))
    part = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return part.transpose(TURNED) if draw.random() < 0.5 else part


class TrainSource:
    """Samples of several modalities to learn from. ``others``: those of one, which are for ``alone`` only; ``targets``:
    of each modality the stored vectors that the last stage wants predicted; ``teachers``: those of frozen encoders,
    which the other stages do."""

    def __init__(self, samples: Sequence[Sample], media: Media, label_names: Sequence[str], mix: Mix | None) -> None:
        self.samples, self.media, self.label_names, self.mix = list(samples), media, tuple(label_names), mix
        self.others: Sequence[Sample] = ()
        self.groups: np.ndarray | None = np.array([sample.group for sample in samples], np.int64)
        self.targets: Stores = {}
        self.teachers: Stores = {}
        self.teacher_means: Mapping[Modality, np.ndarray] = {}
        keys = media.keys
        lines = (
            json.dumps([s.set, s.group, [keys[path] for path in (s.image, s.audio) if path], s.captions, s.labels])
            for s in samples
        )
        words = json.dumps(media.tokenizer.vocabulary.values())
        self.fingerprint = hashlib.sha256("\n".join([words, *lines]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        sample, media = self.samples[index], self.media
        found: dict[str, Any] = {"group": sample.group}
        contents: dict[Modality, str | Path] = {}
        if sample.captions:
            contents["text"] = sample.captions[int(generator(seed, "caption").integers(len(sample.captions)))]
            found["ids"] = media.tokenizer.encode(str(contents["text"]))[0]
        if sample.image is not None:
            contents["image"] = sample.image
            found["pixels"] = media.picture(sample.image, seed)
        if sample.audio is not None:
            contents["audio"] = sample.audio
            found["mel"] = media.sound(sample.audio, seed)
        if self.label_names:
            found["labels"] = np.isin(np.arange(len(self.label_names)), sample.labels)
        for modality, content in contents.items():
            found |= _stored(f"target_{modality}", self.targets.get(modality), content, media.keys)
            found |= _stored(f"teacher_{modality}", self.teachers.get(modality), content, media.keys)
        return found

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        there = {name for example in examples for name in example}
        likes = [self.example(one, 0) for one, names in self._firsts.items() if not names <= there]
        return collate(examples, self.media.tokenizer.pad, likes)

    @cached_property
    def _firsts(self) -> Mapping[int, set[str]]:
        """Where a step holds samples of all kinds: the first of each kind, and what it has. Every batch then has all
        modalities, though perhaps in no row: processes that differ in them would wait for each other."""
        if self.mix is not None:
            return {}
        kinds = {sample.modalities: number for number, sample in reversed(list(enumerate(self.samples)))}
        return {n: {NAMES[m] for m in modalities} for modalities, n in kinds.items()} if len(kinds) > 1 else {}

    @property
    def everything(self) -> Sequence[Sample]:
        """The samples, and those of one modality."""
        return [*self.samples, *self.others]

    @property
    def by_labels(self) -> bool:
        """Whether pictures by themselves are to teach the image tower their labels."""
        return "image" not in self.teachers and any(sample.image and sample.labels for sample in self.everything)

    def alone(self) -> TrainSource | None:
        """Every picture and every recording by itself, to learn from without words; None where there is neither.

        Where pictures have labels to learn from, those that have none are left out.
        """
        alone: dict[Path, Sample] = {}
        by_labels = self.by_labels
        for sample in self.everything:
            picture = None if by_labels and not sample.labels else sample.image
            for path, image, audio in ((picture, True, False), (sample.audio, False, True)):
                if path is not None:
                    labels = sample.labels if image else ()
                    one = Sample(sample.set, sample.group, path if image else None, path if audio else None, (), labels)
                    alone.setdefault(path, one)
        found = list(alone.values())
        kinds = np.array([int(sample.image is None) for sample in found], np.int64)
        mix = Mix(kinds) if 0 < kinds.sum() < len(kinds) else None
        source = TrainSource(found, self.media, self.label_names, mix)
        source.groups = None  # nothing is told apart here, so equals may meet
        source.teachers = self.teachers
        return source


@dataclass(eq=False)
class EvalSource:
    """Texts, pictures and recordings one by one, and what they belong to. ``names``: of the sets; ``notes``: what is
    missing of them, for the tables; ``label_names``: those that training knows; ``teachers``: as in ``TrainSource``, of
    pictures and recordings."""

    rows: Sequence[Row]
    media: Media
    names: Sequence[str]
    notes: Sequence[str] = ()
    groups: np.ndarray | None = None
    mix: Mix | None = None
    label_names: Sequence[str] = ()
    teachers: Stores = field(default_factory=dict)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        keys = self.media.keys
        lines = (f"{r.set} {r.group} {r.modality} {keys.get(r.content, r.content)} {r.labels}" for r in self.rows)  # type: ignore[call-overload]
        words = json.dumps(self.media.tokenizer.vocabulary.values())
        self.fingerprint = hashlib.sha256("\n".join([words, *self.names, *lines]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        del seed
        return {"group": self.rows[index].group, **self._shown(self.rows[index])}

    def _shown(self, row: Row) -> dict[str, Any]:
        if isinstance(row.content, str):
            return {"ids": self.media.tokenizer.encode(row.content)[0]}
        told = _stored(f"teacher_{row.modality}", self.teachers.get(row.modality), row.content, self.media.keys)
        if row.modality == "image":
            labels = {"labels": np.isin(self.label_names, row.labels)} if self.label_names else {}
            return {"pixels": self.media.picture(row.content, None), **labels, **told}
        return {"mel": self.media.sound(row.content, None), **told}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(examples, self.media.tokenizer.pad)

    def numbers(self, modality: Modality, set_number: int) -> np.ndarray:
        """Rows of one modality of one set."""
        chosen = [i for i, row in enumerate(self.rows) if row.modality == modality and row.set == set_number]
        return np.array(chosen, np.int64)

    def together(self, *sides: Sequence[int]) -> Batch:
        """Rows that hold one of each side, of different modalities: the first of each, then the second."""
        examples = []
        for numbers in zip(*sides, strict=True):
            found: dict[str, Any] = {"group": self.rows[numbers[0]].group}
            for number in numbers:
                found |= self._shown(self.rows[number])
            examples.append(found)
        return self.collate(examples)

    def texts(self, texts: Sequence[str]) -> Batch:
        """Texts that stand in no data set, such as class names."""
        return self.collate([{"group": i, "ids": self.media.tokenizer.encode(t)[0]} for i, t in enumerate(texts)])


def _stored(
    name: str, store: features.FeatureSource | None, content: str | Path, keys: Mapping[Path, str]
) -> dict[str, np.ndarray]:
    """What a store holds of a text or a file, under this name; nothing without a store."""
    if store is None:
        return {}
    key = store.key(content) if isinstance(content, str) else keys[content]
    return {name: store.get(key).pooled.astype(np.float32)}


def collate(examples: Sequence[Mapping[str, Any]], pad: int, likes: Sequence[Mapping[str, Any]] = ()) -> Batch:
    """Examples side by side, padded to the longest. What neither they nor ``likes`` have is left out; what only
    ``likes`` have is there, and empty."""
    batch: Batch = {
        "group": torch.tensor([int(example["group"]) for example in examples]),
        "has": torch.tensor([[NAMES[m] in example for m in MODALITIES] for example in examples]),
    }
    for name, empty in (("ids", pad), ("mel", 0)):
        like = next((np.asarray(one[name]) for one in (*examples, *likes) if name in one), None)
        if like is not None:
            length = max((len(example[name]) for example in examples if name in example), default=1)
            kind = np.int64 if name == "ids" else np.float32
            values = np.full((len(examples), length, *like.shape[1:]), empty, kind)
            mask = np.zeros((len(examples), length), bool)
            for row, example in enumerate(examples):
                if name in example:
                    values[row, : len(example[name])] = example[name]
                    mask[row, : len(example[name])] = True
            batch[name], batch[f"{name}_mask"] = torch.from_numpy(values), torch.from_numpy(mask)
    for name in ("pixels", "labels", *(f"{kind}_{m}" for kind in ("target", "teacher") for m in MODALITIES)):
        like = next((one[name] for one in (*examples, *likes) if name in one), None)
        if like is not None:
            stacked = np.stack([example.get(name, np.zeros_like(like)) for example in examples])
            batch[name] = torch.from_numpy(stacked)
    return batch


def mel_statistics(store: features.FeatureSource, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band over all frames of these recordings, float64."""
    count, total, squares = 0, 0.0, 0.0
    for key in keys:
        frames = store.get(key).tokens.astype(np.float64)
        count, total, squares = count + len(frames), total + frames.sum(axis=0), squares + (frames**2).sum(axis=0)
    mean = np.asarray(total / count)
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 1e-4))


def content_keys(root: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """The content key of every file, remembered between runs. Raises DataError for one that cannot be read."""
    distinct = list(dict.fromkeys(paths))
    return dict(zip(distinct, ContentKeys(root / MEMO).keys(distinct), strict=True))
