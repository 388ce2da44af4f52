"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): one new word, learned from the pictures that a user liked.

Legend: B pictures, T tokens of a text, d width of the text encoder, h and w sides of latents, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.data.media import load_image
from sensorium.data.tastes import Liked, Taste
from sensorium.errors import DataError
from sensorium.families.pmg.conditioning import Told
from sensorium.families.pmg.diffusion import open_text_encoder, open_tokenizer
from sensorium.families.pmg.encoders import Resize, VaeMoments, latents_of
from sensorium.families.pmg.task import PMGTask

BEFORE = ", in the style of"  # what stands between a caption and the new word, in training and in generation
_FIRST = "style"  # the word whose vector the new one begins with


class Vocabulary:
    """A text encoder that can be told one word more, as a vector ``[d]``."""

    def __init__(self, folder: Path, device: str) -> None:
        self._tokenizer: Any = open_tokenizer(folder)
        self._encoder = open_text_encoder(folder).to(device)
        self._table = self._encoder.get_input_embeddings()
        self.device = device

    def first(self) -> Tensor:
        """Where learning begins."""
        ids = self._tokenizer(_FIRST, add_special_tokens=False)["input_ids"]
        return self._table.weight[ids].detach().float().mean(0).clone()

    def states(self, captions: Sequence[str], vector: Tensor, length: int) -> Tensor:
        """Of ``CAPTION, in the style of WORD``, ``[B, length, d]``; captions are cut, the word is always there."""
        rows, places = zip(*(self._ids(caption, length) for caption in captions), strict=True)
        ids = torch.tensor(rows, device=self.device)
        here = torch.arange(length, device=self.device) == torch.tensor(places, device=self.device)[:, None]

        def replace(module: Any, given: Any, found: Tensor) -> Tensor:
            del module, given
            return torch.where(here[..., None], vector.to(found.dtype), found)

        handle = self._table.register_forward_hook(replace)
        try:
            states: Tensor = self._encoder(ids).last_hidden_state
            return states.float()
        finally:
            handle.remove()

    def _ids(self, caption: str, length: int) -> tuple[list[int], int]:
        """Tokens, and the place of the new word."""
        before = self._words(BEFORE)
        words = (self._words(caption)[: length - 3 - len(before)] + before)[: length - 3]
        tokenizer = self._tokenizer
        ids = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id, tokenizer.eos_token_id]
        return ids + [tokenizer.pad_token_id] * (length - len(ids)), len(words) + 1

    def _words(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


@dataclass(frozen=True)
class Lesson:
    """How a word is learned."""

    steps: int
    lr: float
    batch: int
    side: int
    resize: Resize
    seed: int


def pictures_of(user: str, samples: Sequence[Taste]) -> list[Liked]:
    """What a user liked before, without the pictures that are targets: a word learned from those would know the answer.
    Raises DataError where nothing is left."""
    own = [taste for taste in samples if taste.user == user]
    targets = {taste.target.path for taste in own}
    found = {liked.path: liked for taste in own for liked in taste.history if liked.path not in targets}
    if not found:
        raise DataError(f"user {user}: every picture of the history is also a target; leave textual_inversion out")
    return list(found.values())


def learn(task: PMGTask, folder: Path, words: Vocabulary, liked: Sequence[Liked], how: Lesson) -> Tensor:
    """The vector ``[d]`` float32 on the CPU: Adam on the task's own error, everything else frozen."""
    shape, device = task.shape, words.device
    encoder = VaeMoments(folder, shape, how.side, how.resize, device)
    moments = [one.tokens for one in encoder.encode([encoder.prepare(load_image(one.path)) for one in liked])]
    sides = shape.latent_sides(how.side)
    drawn = torch.Generator().manual_seed(how.seed)
    vector = words.first().requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=how.lr)
    for _ in range(how.steps):
        rows = torch.randint(len(liked), (min(how.batch, len(liked)),), generator=drawn).tolist()
        size = (shape.channels, sides, sides)
        latents = torch.stack([latents_of(moments[row], torch.randn(size, generator=drawn), shape) for row in rows])
        batch = {
            "latents": latents.to(device),
            "noise": torch.randn((len(rows), 1, *size), generator=drawn).to(device),
            "timestep": torch.randint(shape.timesteps, (len(rows), 1), generator=drawn).to(device),
        }
        states = words.states([liked[row].caption for row in rows], vector, shape.text_length)
        loss = task.errors(batch, Told(states)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vector.detach().cpu()
