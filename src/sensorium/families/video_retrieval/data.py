"""From videos and captions to batches of frames and tokens: the data of the family `video_retrieval`.

Legend: B rows, T frames, R side of a frame in pixels, L tokens.

A training batch holds ``video`` ``[B, T, 3, R, R]`` uint8, ``video_mask`` ``[B, T]`` bool, ``input_ids`` and
``attention_mask`` ``[B, L]`` int64, and ``groups`` ``[B]`` int64: rows of one group are right answers to each other.

A batch of an evaluation holds videos, captions, or some of both, each encoded once however often it is asked for:
``video`` and ``video_mask`` of its videos, ``input_ids`` and ``attention_mask`` of its captions, ``video_rows`` and
``text_rows`` int64, the rows of the batch that these are; what there is none of is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from sensorium.config import Section
from sensorium.data.augment import randaugment
from sensorium.data.frames import FrameReader, Stretch, stacked
from sensorium.data.items import Moment
from sensorium.data.sampling import RULES, Rule
from sensorium.engine.contract import Batch, Mix
from sensorium.engine.seeds import derive
from sensorium.families.video_retrieval.words import Words

_STACKED = ("video", "video_mask", "input_ids", "attention_mask")


class EvaluationConfig(Section):
    """What is reported besides ranks by cosine."""

    dsl: bool = Field(False, description="Also with dual softmax, which looks at all test queries at once.")
    qb_norm: bool = Field(False, description="Also with QB-Norm, which knows training captions.")
    localise: bool = Field(False, description="Also how well the segment of a caption is found, where times are known.")


class DataConfig(Section):
    """Where the videos come from, and what of them is seen."""

    datatype: Literal["msrvtt", "didemo", "activitynet", "vatex"] = Field(
        "msrvtt", description="What they are like, which sets frames and words; of published sets, which one it is."
    )
    format: str = Field("auto", description="Name of a reader (`sensorium data list`); `auto` looks what lies there.")
    root: str | None = Field(None, description="Folder of the data set; null where the reader knows it.")
    train: str | None = Field(None, description="In place of the root: folder of videos/ and annotations.json.")
    val: str | None = Field(None, description="Likewise, of the validation part.")
    test: str | None = Field(None, description="Likewise, of the test part.")
    options: dict[str, Any] = Field({}, description="The reader's own options.")
    sampling: Rule = Field(
        "segments",
        description="Which instants are seen: one of each of so many equal parts, or evenly of those of whole seconds.",
    )
    augment: Literal["none", "randaugment"] = Field(
        "none", description="What training does to pictures, alike in all frames of a video."
    )
    frame_cache: Literal["jpeg", "raw", "none"] = Field(
        "jpeg", description="Keep the frames of training and validation, packed or as they are; none decodes each time."
    )
    cache_fps: float = Field(3.0, gt=0, le=60, description="Instants of a second that can be seen at all.")
    cache_max_frames: int = Field(192, ge=1, le=10_000, description="Of a video no more instants than these.")
    cache: str | None = Field(None, description="Folder of the caches; null takes SENSORIUM_CACHE or ~/.cache.")
    allow_missing: int = Field(0, ge=0, description="So many videos of the lists may be missing.")
    val_videos: int = Field(
        1000, ge=0, description="Training videos held out for validation where a set has none; at most 15 % of them."
    )
    protocol: Literal["honest", "paper"] = Field(
        "honest", description="`paper` trains on all training videos and validates on the test part, as papers do."
    )

    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _one_place(self) -> DataConfig:
        if self.root is not None and self.train is not None:
            raise ValueError("root and train are both given; give the root above train/, val/ and test/, or each apart")
        if self.train is None and (self.val is not None or self.test is not None):
            raise ValueError("val and test are given without train")
        if self.train is not None and self.format not in ("auto", "videos"):
            raise ValueError(f"train is a folder of videos/ and annotations.json, which format {self.format!r} is not")
        return self


@dataclass(frozen=True)
class Clip:
    """A video, or a stretch of one, or a still picture. ``group``: its number; ``text``: for people."""

    id: str
    stretch: Stretch
    group: int
    text: str = ""
    moments: tuple[Moment, ...] = ()


@dataclass(frozen=True)
class Media:
    """How samples become arrays. ``frames``: of a video, T."""

    reader: FrameReader
    words: Words
    frames: int
    rule: Rule
    augment: bool = False

    def video(self, stretch: Stretch, seed: int | None) -> np.ndarray:
        """``[T, 3, R, R]`` uint8; random instants, and changed pictures, only with a seed."""
        drawn = None if seed is None else derive(seed, "instants")
        found = self.reader.read(stretch, lambda length: RULES[self.rule](length, self.frames, drawn))
        if self.augment and seed is not None:
            found = randaugment(found, derive(seed, "augment"))
        return stacked(found, self.reader.look.side)

    def seen(self, stretch: Stretch, seed: int | None) -> dict[str, Any]:
        """The part of an example that is a video. Its mask is one throughout: short videos repeat frames."""
        return {"video": torch.from_numpy(self.video(stretch, seed)), "video_mask": torch.ones(self.frames).bool()}

    def said(self, text: str) -> dict[str, Any]:
        """The part of an example that is a text."""
        ids_BL, mask_BL = self.words.encode([text])
        return {"input_ids": ids_BL[0], "attention_mask": mask_BL[0]}


@dataclass(eq=False)
class TrainSource:
    """Pairs of a video and one of its captions. ``pairs``: number of the clip, and the caption."""

    clips: Sequence[Clip]
    pairs: Sequence[tuple[int, str]]
    media: Media
    groups: np.ndarray = field(init=False)
    mix: Mix | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.groups = np.array([self.clips[clip].group for clip, _ in self.pairs], np.int64)
        self.fingerprint = _fingerprint(self.clips, ([clip, text] for clip, text in self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        clip, text = self.pairs[index]
        seen = self.media.seen(self.clips[clip].stretch, seed)
        return {"groups": self.clips[clip].group, **seen, **self.media.said(text)}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(examples)


@dataclass(eq=False)
class EvalSource:
    """Every video once, then every caption once. Query number ``q`` is the caption ``caption_of[q]``, and the right
    answer to it the video ``video_of[q]``, both ``[Q]`` int64; equal captions of two videos are two queries.

    ``bank``: training captions, for QB-Norm. ``there``: how many videos are there of how many that the lists name;
    ``opened``: how many were looked into so far, in this process.
    """

    videos: Sequence[Clip]
    queries: Sequence[tuple[str, int]]
    media: Media
    there: tuple[int, int]
    bank: Sequence[str] = ()
    groups: np.ndarray | None = None
    mix: Mix | None = None
    opened: int = 0
    captions: tuple[str, ...] = field(init=False)
    caption_of: np.ndarray = field(init=False)
    video_of: np.ndarray = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        numbers: dict[str, int] = {}
        self.caption_of = np.array([numbers.setdefault(text, len(numbers)) for text, _ in self.queries], np.int64)
        self.video_of = np.array([video for _, video in self.queries], np.int64)
        self.captions = tuple(numbers)
        self.fingerprint = _fingerprint(self.videos, (list(query) for query in self.queries))

    @property
    def note(self) -> str:
        """What the title of every number has to say; empty where nothing is missing."""
        found, named = self.there
        return "" if found == named else f"{found:,} of {named:,} videos"

    def __len__(self) -> int:
        return len(self.videos) + len(self.captions)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        del seed
        if index >= len(self.videos):
            return self.media.said(self.captions[index - len(self.videos)])
        self.opened += 1
        return self.media.seen(self.videos[index].stretch, None)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = collate(examples)
        for name, key in (("video_rows", "video"), ("text_rows", "input_ids")):
            batch[name] = torch.tensor([row for row, one in enumerate(examples) if key in one], dtype=torch.int64)
        return batch


def collate(examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Examples side by side; of a part that only some of them have, those alone."""
    batch: Batch = {}
    for name in _STACKED:
        if found := [example[name] for example in examples if name in example]:
            batch[name] = torch.stack(found)
    if "groups" in examples[0]:
        batch["groups"] = torch.tensor([int(example["groups"]) for example in examples])
    return batch


def _fingerprint(clips: Sequence[Clip], rows: Iterable[list[Any]]) -> str:
    """Of names, sizes and words. Not of the bytes: those of a test part stay unread until it is evaluated."""
    digest = hashlib.sha256()
    for clip in clips:
        path = clip.stretch.path
        size = path.stat().st_size if path.is_file() else None
        digest.update(json.dumps([clip.id, clip.group, path.name, size, clip.stretch.span]).encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()
