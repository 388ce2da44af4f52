"""From histories and captions to pictures, in two phases: the language model first, then Stable Diffusion.

Legend: B wishes, N soft tokens, d width of what the UNet is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sensorium.engine.contract import Host
from sensorium.errors import CheckpointError
from sensorium.families.pmg.conditioning import Told, compose, lengths_of
from sensorium.families.pmg.config import DrawMode
from sensorium.families.pmg.data import padded
from sensorium.families.pmg.diffusion import open_vae
from sensorium.families.pmg.encoders import TextStates
from sensorium.families.pmg.prompts import Prompts
from sensorium.families.pmg.sampling import Sampling, decode, first_noise, sample
from sensorium.families.pmg.task import PMGTask

CAPTION_ONLY: DrawMode = "caption_only"  # what Stable Diffusion does by itself


@dataclass(frozen=True)
class Wish:
    """One picture to be made. ``captions``: of the user's history; ``mode``: a mode of conditioning, or
    ``caption_only``; ``scale``: what the style is multiplied by, None: as the model's ``weights.preference`` says."""

    captions: tuple[str, ...]
    target: str
    style: str
    seed: int
    mode: DrawMode
    scale: float | None = None


@torch.no_grad()
def soft_tokens(
    task: PMGTask, prompts: Prompts, histories: Sequence[tuple[str, ...]], batch: int, host: Host | None = None
) -> dict[tuple[str, ...], Tensor]:
    """Soft tokens ``[N, d]`` float32 on the CPU, once for each different history. ``host``: shows how far it is."""
    different = list(dict.fromkeys(histories))
    device = next(task.llm.parameters()).device
    found: dict[tuple[str, ...], Tensor] = {}
    with (host or Host()).progress("read histories", len(different)) as advance:
        for start in range(0, len(different), batch):
            some = different[start : start + batch]
            ids, mask = padded([prompts.encode(one)[0] for one in some], prompts.padding)
            soft = task.soft(ids.to(device), mask.to(device)).cpu()
            found |= dict(zip(some, soft, strict=True))
            advance(start + len(some), len(different))
    return found


class Painter:
    """Stable Diffusion with its text encoder and VAE, which are opened when first needed. ``task`` gives the UNet."""

    def __init__(self, task: PMGTask, folder: Path, how: Sampling) -> None:
        self.task, self.folder, self.how = task, folder, how
        self.device = str(next(task.unet.parameters()).device)
        self._texts: dict[tuple[str, int], Tensor] = {}
        self._encoders: dict[int, TextStates] = {}
        self._vae = open_vae(folder).to(self.device)

    def paint(
        self, wishes: Sequence[Wish], soft: Mapping[tuple[str, ...], Tensor], negative: str, batch: int
    ) -> Iterator[Image.Image]:
        """A picture for each wish, in their order. Wishes of one mode are made together."""
        shape = self.task.shape
        for start, end in _runs([wish.mode for wish in wishes], batch):
            some = wishes[start:end]
            wanted = self._told(some, soft)
            unwanted = Told(self.text(negative, shape.text_length)[None].expand(len(some), -1, -1))
            seeds = [wish.seed for wish in some]
            noise = first_noise(seeds, shape, self.how.pixels)
            latents = sample(self.task.unet, self.folder, (wanted, unwanted), noise, seeds, self.how)
            yield from decode(self._vae, latents, shape.scaling)

    def _told(self, wishes: Sequence[Wish], soft: Mapping[tuple[str, ...], Tensor]) -> Told:
        mode, settings, length = wishes[0].mode, self.task.settings, self.task.shape.text_length
        if mode == "caption_only":
            return Told(torch.stack([self.text(wish.target, length) for wish in wishes]))
        parts = lengths_of(mode, length, settings.num_image_prompt)
        if parts.soft and self.task.adapter.image_prompt_NH is None:
            raise CheckpointError(f"the adapter has no soft tokens; mode {mode} needs some")

        def texts(words: Sequence[str], tokens: int) -> Tensor | None:
            return torch.stack([self.text(one, tokens) for one in words]) if tokens else None

        found = torch.stack([soft[wish.captions] for wish in wishes]).to(self.device) if parts.soft else None
        style = texts([wish.style for wish in wishes], parts.style)
        if style is not None:
            own = settings.weights.preference
            scales = [own if wish.scale is None else wish.scale for wish in wishes]
            style = style * torch.tensor(scales, device=style.device)[:, None, None]
        weights = settings.weights.model_copy(update={"preference": 1.0})  # a row each, as just done
        return compose(weights, texts([wish.target for wish in wishes], parts.target), found, style)

    def remember(self, text: str, length: int, states: Tensor) -> None:
        """Take ``[length, d]`` for the states of a text that holds more than words."""
        self._texts[text, length] = states.to(self.device)

    def text(self, text: str, length: int) -> Tensor:
        """States of a text, ``[length, d]``, remembered."""
        if (text, length) not in self._texts:
            encoder = self._encoders.setdefault(length, TextStates(self.folder, self.task.shape, length, self.device))
            self._texts[text, length] = encoder.states([text])[0].to(self.device)
        return self._texts[text, length]


def _runs(modes: Sequence[str], most: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of stretches of one mode, at most so long."""
    start = 0
    for place in range(1, len(modes) + 1):
        if place == len(modes) or modes[place] != modes[start] or place - start == most:
            yield start, place
            start = place


def side_by_side(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """Pictures in a row, each squeezed into a square."""
    row = Image.new("RGB", (side * len(pictures), side), "white")
    for place, picture in enumerate(pictures):
        row.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (place * side, 0))
    return row
