"""What the UNet is told: the target's caption, the user's soft tokens, the text of the user's style, side by side.

Cross attention has no positions: the order of the parts is free, their lengths and weights are not.
Legend: B batch, M length of the text encoder, N soft tokens, d width, S length of what is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sensorium.errors import ConfigError
from sensorium.families.pmg.config import Mode, WeightsConfig

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_CAPTION_SHARE = 40, 77  # of the published generation: 40 tokens of 77 for the caption where a style text follows
_SHORTEST = 3  # beginning, a word, end


@dataclass(frozen=True)
class Lengths:
    """Tokens of each part; 0: the part is not there."""

    target: int
    soft: int
    style: int


def lengths_of(mode: Mode, text_length: int, soft: int) -> Lengths:
    """Together M, but for ``soft_only``. Raises ConfigError where nothing is left for the caption."""
    if mode == "soft_only":
        return Lengths(0, soft, 0)
    if mode == "target_soft":
        found = Lengths(text_length - soft, soft, 0)
    else:
        soft = 0 if mode == "keywords" else soft
        caption = text_length * _CAPTION_SHARE[0] // _CAPTION_SHARE[1]
        found = Lengths(caption, soft, text_length - caption - soft)
    shortest = min(length for length in (found.target, found.style or found.target))
    if shortest < _SHORTEST:
        raise ConfigError(
            f"model.num_image_prompt {soft} leaves {shortest} of {text_length} tokens for a text in conditioning "
            f"{mode}; take fewer"
        )
    return found


@dataclass(frozen=True)
class Told:
    """``states`` ``[B, S, d]``; ``mask`` ``[B, S]`` bool, None: all of it counts."""

    states: Tensor
    mask: Tensor | None = None

    def rows(self, chosen: slice) -> Told:
        """Some of the batch."""
        return Told(self.states[chosen], None if self.mask is None else self.mask[chosen])


def compose(
    weights: WeightsConfig,
    target_BTd: Tensor | None,
    soft_BNd: Tensor | None,
    style_BUd: Tensor | None,
    soft_given_B: Tensor | None = None,
) -> Told:
    """The parts that are there, weighted. ``soft_given_B``: rows where the soft tokens count; None: all."""
    pairs = ((weights.target, target_BTd), (weights.soft, soft_BNd), (weights.preference, style_BUd))
    parts = [weight * part for weight, part in pairs if part is not None]
    states = torch.cat([part.float() for part in parts], dim=1)
    if soft_given_B is None or soft_BNd is None:
        return Told(states)
    before = 0 if target_BTd is None else target_BTd.shape[1]
    mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    mask[:, before : before + soft_BNd.shape[1]] = soft_given_B[:, None]
    return Told(states, mask)


def predict(unet: UNet2DConditionModel, latents: Tensor, timestep_B: Tensor, told: Told) -> Tensor:
    """What the UNet says of noisy latents ``[B, C, h, w]``, float32."""
    dtype = next(unet.parameters()).dtype
    mask = None if told.mask is None else told.mask.to(dtype)
    found: Tensor = unet(
        latents.to(dtype), timestep_B, told.states.to(dtype), encoder_attention_mask=mask, return_dict=False
    )[0]
    return found.float()


def joined(parts: Sequence[Told]) -> Told:
    """Batches behind each other; shorter ones are padded, and the padding is masked."""
    longest = max(part.states.shape[1] for part in parts)
    states, masks = [], []
    for part in parts:
        rows, length, width = part.states.shape
        mask = part.mask if part.mask is not None else part.states.new_ones(rows, length, dtype=torch.bool)
        states.append(torch.cat([part.states, part.states.new_zeros(rows, longest - length, width)], dim=1))
        masks.append(torch.cat([mask, mask.new_zeros(rows, longest - length)], dim=1))
    together = torch.cat(masks)
    return Told(torch.cat(states), None if bool(together.all()) else together)


def guided(
    unet: UNet2DConditionModel, latents: Tensor, timestep: Tensor, pair: tuple[Told, Told], guidance: float
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) in one call: ``pair`` is what is wanted, and what is not.

    Equals two calls: wanted and unwanted may differ in length.
    """
    wanted, unwanted = pair
    if guidance == 1:
        return predict(unet, latents, timestep.expand(len(latents)), wanted)
    both = joined((unwanted, wanted))
    without, with_it = predict(unet, torch.cat([latents] * 2), timestep.expand(2 * len(latents)), both).chunk(2)
    return without + guidance * (with_it - without)
