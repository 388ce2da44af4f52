"""From samples to batches: the data of the family `pmg`.

Legend: B rows, C channels and h, w sides of latents, S draws of noise for a sample (1 in training), T tokens of the
longest prompt, d width of what the UNet is told.

A batch holds ``latents`` ``[B, C, h, w]``, ``noise`` ``[B, S, C, h, w]`` and ``timestep`` ``[B, S]`` int64, all drawn
here from the sample's seed; ``caption_states`` and ``style_states`` ``[B, n, d]``, where the conditioning has them;
``input_ids`` ``[B, T]`` and ``text_mask`` ``[B, T]``, the question about the history, padded on the right;
``soft_given`` ``[B]`` bool, false where the soft tokens are withheld.

With a preference loss also ``wrong_ids`` and ``wrong_mask`` (another user's history), or ``wrong_latents`` and
``wrong_caption_states`` (another user's target). Of an evaluation ``wrong_ids`` and ``wrong_mask`` are those of the
control, and ``plain_states`` ``[B, M, d]`` is the caption as Stable Diffusion alone would be told it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.data.features import FeatureStore
from sensorium.data.tastes import Taste
from sensorium.engine.contract import Batch, Mix
from sensorium.engine.seeds import derive, generator
from sensorium.errors import DataError
from sensorium.families.pmg.config import ModelConfig
from sensorium.families.pmg.diffusion import DiffusionShape
from sensorium.families.pmg.encoders import latents_of

ROUND = 8  # lengths of prompts are rounded up to a multiple of this
DRAWS = 4  # noises and timesteps of a sample in an evaluation
_STATES = ("caption_states", "style_states", "plain_states", "wrong_caption_states")


@dataclass(frozen=True)
class Frozen:
    """What frozen models made of pictures and texts. ``captions``, ``styles``: None where the conditioning has none."""

    shape: DiffusionShape
    pictures: FeatureStore
    plain: FeatureStore
    captions: FeatureStore | None
    styles: FeatureStore | None

    def latents(self, path: Path, noise: Tensor) -> Tensor:
        """Of a picture, ``[C, h, w]``. Raises DataError where it cannot be decoded."""
        reason = self.pictures.skipped.get(str(path))
        if reason is not None:
            raise DataError(reason)
        return latents_of(self.pictures.get(self.pictures.key(path)).tokens, noise, self.shape)

    @staticmethod
    def states(store: FeatureStore, text: str) -> Tensor:
        """Of a text, ``[length, d]`` float32."""
        return torch.from_numpy(store.get(store.key(text)).tokens.astype(np.float32))


@dataclass(frozen=True)
class Split:
    """The samples of a split and their questions as tokens."""

    tastes: Sequence[Taste]
    questions: Sequence[Sequence[int]]
    frozen: Frozen
    model: ModelConfig
    sides: int  # of the latents
    padding: int

    @property
    def noise_size(self) -> tuple[int, int, int]:
        """C, h, w."""
        return (self.frozen.shape.channels, self.sides, self.sides)

    def target(self, index: int, generated: torch.Generator) -> Tensor:
        """Latents of a sample's target; the VAE's sample is drawn from ``generated``."""
        return self.frozen.latents(self.tastes[index].target.path, torch.randn(self.noise_size, generator=generated))

    def told(self, index: int, *, style: bool = True) -> dict[str, Any]:
        """Caption and style of a sample, as far as the conditioning has them; ``style=False``: an empty one."""
        taste, frozen = self.tastes[index], self.frozen
        found = {}
        if frozen.captions is not None:
            found["caption_states"] = frozen.states(frozen.captions, taste.target.caption)
        if frozen.styles is not None:
            found["style_states"] = frozen.states(frozen.styles, taste.style if style else "")
        return found

    def histories(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Questions about so many samples, evenly spread, or about all: ids ``[1, T]`` and which of them are text."""
        count = min(count, len(self.questions))
        for number in range(count):
            yield padded([self.questions[number * len(self.questions) // count]], self.padding)

    def require_good(self, index: int) -> None:
        """Raise DataError for a sample from which nothing can be learned."""
        problem = self.tastes[index].problem()
        if problem is not None:
            raise DataError(problem)

    def fingerprint(self) -> str:
        """Changes with users, captions, order and pictures."""
        digest = hashlib.sha256(f"{self.frozen.pictures.namespace} {self.sides}".encode())
        for taste, question in zip(self.tastes, self.questions, strict=True):
            gone = str(taste.target.path) in self.frozen.pictures.skipped
            picture = "" if gone else self.frozen.pictures.key(taste.target.path)
            words = (taste.user, taste.target.id, taste.target.caption, taste.style, picture, *map(str, question))
            digest.update("\x1f".join(words).encode() + b"\n")
        return digest.hexdigest()


@dataclass(eq=False)
class TrainSource:
    """Samples with one draw of noise each."""

    split: Split
    groups: np.ndarray | None = None
    mix: Mix | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = self.split.fingerprint()
        users: dict[str, list[int]] = {}
        for number, taste in enumerate(self.split.tastes):
            users.setdefault(taste.user, []).append(number)
        self._users = users
        if self.split.model.negative.weight and len(users) < 2:
            raise DataError("model.negative needs samples of two users; all samples are of one. Set its weight to 0")

    def __len__(self) -> int:
        return len(self.split.tastes)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        split, model = self.split, self.split.model
        split.require_good(index)
        drawn = torch.Generator().manual_seed(derive(seed, "noise"))
        coins = generator(seed, "dropout")
        latents = split.target(index, drawn)
        noise = torch.randn(split.noise_size, generator=drawn)
        if model.noise_offset:
            noise = noise + model.noise_offset * torch.randn((split.noise_size[0], 1, 1), generator=drawn)
        soft_given = bool(coins.random() >= model.soft_dropout)
        return {
            "latents": latents,
            "noise": noise[None],
            "timestep": torch.randint(split.frozen.shape.timesteps, (1,), generator=drawn),
            **split.told(index, style=bool(coins.random() >= model.style_dropout)),
            "ids": split.questions[index],
            "soft_given": soft_given,
            **(self._wrong(index, seed) if model.negative.weight else {}),
        }

    def _wrong(self, index: int, seed: int) -> dict[str, Any]:
        """Of a sample of another user, drawn anew each time."""
        draws = generator(seed, "negative")
        names = [user for user in self._users if user != self.split.tastes[index].user]
        numbers = self._users[names[int(draws.integers(len(names)))]]
        other = numbers[int(draws.integers(len(numbers)))]
        if self.split.model.negative.kind == "user":
            return {"wrong_ids": self.split.questions[other]}
        drawn = torch.Generator().manual_seed(derive(seed, "negative noise"))
        found: dict[str, Any] = {"wrong_latents": self.split.target(other, drawn)}
        told = self.split.told(other)
        return found | ({"wrong_caption_states": told["caption_states"]} if "caption_states" in told else {})

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(examples, self.split)


@dataclass(eq=False)
class SortableSource(TrainSource):
    """Samples whose questions are padded to the longest of a batch, so that they may be sorted by length."""

    def length(self, index: int) -> int:
        """Tokens of the question."""
        return len(self.split.questions[index])


@dataclass(eq=False)
class EvalSource:
    """Samples with four timesteps each, one in each quarter. Timesteps and noise follow from the sample's number alone.

    ``partners``: for each sample the question about another user's history, None where there is no other user.
    ``number``: tells the splits of a run apart.
    """

    split: Split
    partners: Sequence[Sequence[int]] | None
    number: int = 0
    groups: np.ndarray | None = None
    mix: Mix | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = self.split.fingerprint()

    def __len__(self) -> int:
        return len(self.split.tastes)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        del seed
        split = self.split
        split.require_good(index)
        drawn = torch.Generator().manual_seed(derive(0, "validation", index))
        quarter = split.frozen.shape.timesteps / DRAWS
        places = (torch.arange(DRAWS) + torch.rand(DRAWS, generator=drawn)) * quarter
        caption = "" if split.model.conditioning == "soft_only" else split.tastes[index].target.caption
        return {
            "latents": split.target(index, drawn),
            "noise": torch.randn((DRAWS, *split.noise_size), generator=drawn),
            "timestep": places.long(),
            **split.told(index),
            "plain_states": split.frozen.states(split.frozen.plain, caption),
            "ids": split.questions[index],
            "soft_given": True,
            "split": self.number,
            **({} if self.partners is None else {"wrong_ids": self.partners[index]}),
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = collate(examples, self.split)
        batch["split"] = torch.tensor([one["split"] for one in examples])
        return batch


def collate(examples: Sequence[Mapping[str, Any]], split: Split) -> Batch:
    """Examples side by side, questions padded on the right."""
    stacked = ("latents", "noise", "timestep", "wrong_latents", *_STATES)
    batch: Batch = {name: torch.stack([one[name] for one in examples]) for name in stacked if name in examples[0]}
    batch["soft_given"] = torch.tensor([bool(one["soft_given"]) for one in examples])
    longest = split.model.max_sequence_length - split.model.num_image_prompt
    for name, ids, mask in (("ids", "input_ids", "text_mask"), ("wrong_ids", "wrong_ids", "wrong_mask")):
        if name in examples[0]:
            rows = [one[name] for one in examples]
            batch[ids], batch[mask] = padded(rows, split.padding, longest if split.model.pad_to == "max" else None)
    return batch


def padded(rows: Sequence[Sequence[int]], padding: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids ``[B, T]`` and which of them are text; ``length`` None: the longest, rounded up."""
    longest = length or math.ceil(max(map(len, rows)) / ROUND) * ROUND
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = True
    return ids, mask
