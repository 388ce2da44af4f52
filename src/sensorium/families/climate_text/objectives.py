"""What can be learned besides the next word: pairs of field and text, and the published regression.

Legend: B rows, N climate tokens, E width of the language model, F of the fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.parts.attention import full_precision, init_weights
from sensorium.parts.contrastive import Side, Temperature, align, gather_rows, rank, world_size

_FIRST_SCALE = 1 / 0.07  # of the cosines, as in CLIP


def masked_mean(x_BNF: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over what counts, ``[B, F]``, at least float32; zeros where nothing does."""
    weight = mask_BN.to(x_BNF.device, torch.float32)[..., None]
    return (full_precision(x_BNF) * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


class Contrast(nn.Module):
    """Symmetric InfoNCE between the mean of projected climate and a text that never saw it. In training the rows of all
    processes meet; rows of one group are right answers to each other."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.to_text = nn.Linear(text_width, width)
        self.temperature = Temperature(_FIRST_SCALE)
        init_weights(self)

    def forward(self, climate_BF: Tensor, text_BE: Tensor, present_B: Tensor, groups_B: Tensor | None) -> Tensor:
        """A scalar. ``present``: rows that have a field; ``groups`` int64, None: every row is its own."""
        own = torch.arange(len(climate_BF), device=climate_BF.device) + rank() * len(climate_BF)
        groups = own if groups_B is None else groups_B
        text = self.to_text(text_BE.to(self.to_text.weight.dtype))
        vectors = [functional.normalize(full_precision(x), dim=-1) for x in (climate_BF, text)]
        mine = tuple(Side(vector, groups, present_B) for vector in vectors)
        everyone = mine
        if self.training and world_size() > 1:
            everyone = tuple(Side(*map(gather_rows, (one.vectors, one.groups, one.present))) for one in mine)
        return align((mine[0], mine[1]), (everyone[0], everyone[1]), self.temperature)


def regression(fused_BE: Tensor, target_BE: Tensor) -> Tensor:
    """Squared error of two mean vectors, ``[B]``: the published objective, which teaches no words."""
    return (full_precision(fused_BE) - full_precision(target_BE)).square().mean(dim=-1)
