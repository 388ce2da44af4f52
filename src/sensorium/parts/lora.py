"""LoRA for a fused projection (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class FusedLora(nn.Module):
    """An update of low rank for several projections of the same input at once: one down matrix, shared by all of them,
    and one up matrix. No factor, no dropout. It begins as zero.

    ``inner``: width of the input; ``outer``: of all outputs together.
    """

    def __init__(self, inner: int, outer: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inner))
        self.up = nn.Parameter(torch.zeros(outer, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inner] -> [..., outer]``: what is to be added to the projection."""
        return functional.linear(functional.linear(x, self.down), self.up)

    def weight(self) -> Tensor:
        """``[outer, inner]``: what is to be added to the projection's weight instead."""
        return self.up @ self.down
