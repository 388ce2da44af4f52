"""Contrastive losses with several positives, negatives from all processes, and hard negatives.

Legend: R rows of this process, C rows of all processes, D width. All losses are computed in float32 (float64 stays)
whatever autocast says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def rank() -> int:
    """Number of this process; 0 where torch.distributed is not in use."""
    return distributed.get_rank() if world_size() > 1 else 0


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
    as a positive or a negative. ``queued`` ``[R]`` bool, where there are some: rows of earlier steps, which are
    negatives only; those of the query's own group take no part.
    """

    vectors: Tensor
    groups: Tensor
    present: Tensor
    queued: Tensor | None = None


def _compare(queries: Side, gallery: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities ``[R, C]``, which of them are positives, and which take part at all."""
    similarity = full_precision(queries.vectors) @ full_precision(gallery.vectors).T
    same = queries.groups[:, None] == gallery.groups[None, :]
    allowed = gallery.present[None, :].expand_as(same)
    if gallery.queued is not None:
        allowed = allowed & ~(same & gallery.queued[None, :])
    return similarity, same & allowed, allowed


def infonce(queries: Side, gallery: Side, scale: Tensor) -> Tensor:
    """Cross-entropy of each query against the gallery, ``[R]``; 0 for rows that are not present.

    The target is uniform over the query's positives (SupCon's "out" form, Khosla et al. 2020, arXiv 2004.11362); with
    one positive each it is CLIP's loss. Every present query must have a positive in the gallery.
    """
    with torch.autocast(queries.vectors.device.type, enabled=False):
        similarity, positive, allowed = _compare(queries, gallery)
        logits = (similarity * scale).masked_fill(~allowed, _NEVER)
        target = positive.to(logits.dtype)
        target = target / target.sum(dim=1, keepdim=True).clamp_min(1)
        losses = -(target * logits.log_softmax(dim=1)).sum(dim=1)
        return losses.masked_fill(~queries.present, 0.0)


def sigmoid(queries: Side, gallery: Side, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343): each pair by itself, summed over the gallery, ``[R]``."""
    with torch.autocast(queries.vectors.device.type, enabled=False):
        similarity, positive, allowed = _compare(queries, gallery)
        logits = similarity * scale + bias
        losses = functional.softplus(torch.where(positive, -logits, logits))
        return losses.masked_fill(~(queries.present[:, None] & allowed), 0.0).sum(dim=1)


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


class Queue(nn.Module):
    """Unit vectors of earlier steps, kept as further negatives (He et al. 2020, arXiv 1911.05722; without the second
    encoder: Wang et al. 2020, arXiv 1912.06798). Persistent buffers, so that a resumed run has the same ones.

    ``names``: what each row has a vector of; ``size`` rows in all, of all processes.
    """

    def __init__(self, names: Sequence[str], width: int, size: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("vectors", torch.zeros(size, len(self.names), width))
        self.register_buffer("present", torch.zeros(size, len(self.names), dtype=torch.bool))
        self.register_buffer("groups", torch.zeros(size, dtype=torch.int64))
        self._waiting: dict[str, Side] = {}

    def side(self, name: str) -> Side:
        """The kept rows of one modality; those that were never filled are not present."""
        place = self.names.index(name)
        queued = torch.ones_like(self.groups, dtype=torch.bool)
        return Side(self.vectors[:, place], self.groups, self.present[:, place], queued)

    def offer(self, sides: Mapping[str, Side]) -> None:
        """Rows of this step (of all processes); they join with ``commit``, when the step has succeeded."""
        self._waiting = dict(sides)

    @torch.no_grad()
    def commit(self) -> None:
        """The offered rows push the oldest out."""
        if not self._waiting:
            return
        sides = [self._waiting[name] for name in self.names]
        vectors = torch.stack([side.vectors.detach() for side in sides], dim=1).to(self.vectors)
        present = torch.stack([side.present for side in sides], dim=1)
        for kept, new in ((self.vectors, vectors), (self.present, present), (self.groups, sides[0].groups)):
            kept.copy_(torch.cat([new, kept])[: len(kept)])
        self._waiting = {}


def _joined(rows: Side, queue: Side) -> Side:
    live = torch.zeros_like(rows.present)
    assert queue.queued is not None
    return Side(
        torch.cat([rows.vectors, queue.vectors.to(rows.vectors)]),
        torch.cat([rows.groups, queue.groups]),
        torch.cat([rows.present, queue.present]),
        torch.cat([live, queue.queued]),
    )


def align(
    mine: tuple[Side, Side],
    everyone: tuple[Side, Side],
    temperature: Temperature,
    queue: tuple[Side, Side] | None = None,
) -> Tensor:
    """Contrastive loss of one pair of modalities, a scalar: symmetric InfoNCE, or sigmoid where there is a bias.

    ``mine``: both modalities of this process's rows; ``everyone``: the same, gathered; ``queue``: of earlier steps.
    The mean of the results over processes is the loss of the joint batch, and so is the mean of the gradients. 0 where
    no row has both.
    """
    (a, b), (all_a, all_b) = mine, everyone
    scale = temperature.scale()
    stock_a, stock_b = everyone if queue is None else (_joined(all_a, queue[0]), _joined(all_b, queue[1]))
    if temperature.bias is None:
        losses = (infonce(a, stock_b, scale) + infonce(b, stock_a, scale)) / 2
    else:
        losses = sigmoid(a, stock_b, scale, temperature.bias)
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
