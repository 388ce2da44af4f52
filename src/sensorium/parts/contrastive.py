"""Contrastive losses with several positives, negatives from all processes, and hard negatives.

Legend: R rows of this process, C rows of all processes, D width. All losses are computed in float32 (float64 stays)
whatever autocast says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from sensorium.parts.attention import full_precision

LARGEST_SCALE = 100.0  # as in CLIP: similarities are never divided by less than 0.01
_NEVER = -1e9  # a logit that exp() turns into an exact zero beside any similarity


class _Gather(torch.autograd.Function):
    """All-gather along the rows. Each process's loss depends on all rows, so the gradients are summed backwards."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]


def world_size() -> int:
    """Number of processes; 1 where torch.distributed is not in use."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(x: Tensor) -> Tensor:
    """``[R, ...] -> [C, ...]``: the rows of all processes in the order of their ranks, with correct gradient.

    Every process must call it with the same shape. With one process ``x`` itself comes back.
    """
    if world_size() == 1:
        return x
    x = x.contiguous()
    gathered: Tensor = _Gather.apply(x)
    return gathered


@dataclass(frozen=True)
class Side:
    """One modality of some rows: unit ``vectors`` ``[R, D]``, ``groups`` ``[R]`` int64, ``present`` ``[R]`` bool.

    Rows of equal group are positives of each other. A row that is not present takes no part, neither as a query nor
    as a positive or a negative.
    """

    vectors: Tensor
    groups: Tensor
    present: Tensor


def _compare(queries: Side, gallery: Side) -> tuple[Tensor, Tensor]:
    """Similarities ``[R, C]`` and which of them are positives."""
    similarity = full_precision(queries.vectors) @ full_precision(gallery.vectors).T
    return similarity, queries.groups[:, None] == gallery.groups[None, :]


def infonce(queries: Side, gallery: Side, scale: Tensor) -> Tensor:
    """Cross-entropy of each query against the gallery, ``[R]``; 0 for rows that are not present.

    The target is uniform over the query's positives (SupCon's "out" form, Khosla et al. 2020, arXiv 2004.11362); with
    one positive each it is CLIP's loss. Every present query must have a positive in the gallery.
    """
    with torch.autocast(queries.vectors.device.type, enabled=False):
        similarity, positive = _compare(queries, gallery)
        logits = (similarity * scale).masked_fill(~gallery.present[None, :], _NEVER)
        target = (positive & gallery.present[None, :]).to(logits.dtype)
        target = target / target.sum(dim=1, keepdim=True).clamp_min(1)
        losses = -(target * logits.log_softmax(dim=1)).sum(dim=1)
        return losses.masked_fill(~queries.present, 0.0)


def sigmoid(queries: Side, gallery: Side, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343): each pair by itself, summed over the gallery, ``[R]``."""
    with torch.autocast(queries.vectors.device.type, enabled=False):
        similarity, positive = _compare(queries, gallery)
        logits = similarity * scale + bias
        losses = functional.softplus(torch.where(positive, -logits, logits))
        return losses.masked_fill(~(queries.present[:, None] & gallery.present[None, :]), 0.0).sum(dim=1)


class Temperature(nn.Module):
    """A learned factor for similarities, kept as its logarithm, never above 100; for the sigmoid loss also a bias.

    Scalars, hence free of weight decay by ``default_group``. ``clamp_`` belongs after each optimizer step, as in
    CLIP: a parameter beyond the limit gets no gradient and could not come back.
    """

    def __init__(self, scale: float, bias: float | None = None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def scale(self) -> Tensor:
        """The factor, float32 scalar."""
        return self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


def align(mine: tuple[Side, Side], everyone: tuple[Side, Side], temperature: Temperature) -> Tensor:
    """Contrastive loss of one pair of modalities, a scalar: symmetric InfoNCE, or sigmoid where there is a bias.

    ``mine``: both modalities of this process's rows; ``everyone``: the same, gathered. The mean of the results over
    processes is the loss of the joint batch, and so is the mean of the gradients. 0 where no row has both.
    """
    (a, b), (all_a, all_b) = mine, everyone
    scale = temperature.scale()
    if temperature.bias is None:
        losses = (infonce(a, all_b, scale) + infonce(b, all_a, scale)) / 2
    else:
        losses = sigmoid(a, all_b, scale, temperature.bias)
    processes = len(all_a.present) / len(a.present)
    return losses.sum() * (processes / all_a.present.sum().clamp_min(1))


@torch.no_grad()
def hard_negatives(similarity: Tensor, allowed: Tensor, sharpness: float, sample: bool) -> tuple[Tensor, Tensor]:
    """For each row a negative, ``[R]`` int64, and whether there is one, ``[R]`` bool (else the number means nothing).

    ``similarity``, ``allowed`` ``[R, C]``. With ``sample`` it is drawn with probability softmax(sharpness *
    similarity) over the allowed ones (Li et al. 2021, ALBEF, arXiv 2107.07651), else the most similar is taken.
    """
    found = allowed.any(dim=1)
    logits = (full_precision(similarity) * sharpness).masked_fill(~allowed, -torch.inf)
    if sample:  # the largest of logits + Gumbel noise is a draw from their softmax
        logits = logits - torch.empty_like(logits).exponential_().log()
    return logits.argmax(dim=1), found
