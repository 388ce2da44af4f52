"""Merging tokens that are alike, by bipartite soft matching (Bolya et al. 2022, Token Merging, arXiv 2210.09461).

Legend: R sequences, N tokens, M of them take part in the matching, A and B its two halves, D width.

All shapes follow from N and from how many are removed: nothing here waits for a device, or branches on what is in a
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sensorium.parts.attention import full_precision, without_autocast


@dataclass(frozen=True)
class Match:
    """Which of M tokens go where, by number.

    ``kept`` ``[R, M - r]``: those that are left, in their new order: A without those that go, then B. ``gone``
    ``[R, r]``: those that go, and ``into`` ``[R, r]`` the places in the new order that take them.
    """

    kept: Tensor
    gone: Tensor
    into: Tensor
    half: int  # of B

    def moved_to(self) -> Tensor:
        """``[R, M]``: the new place of every token."""
        rows, count = self.kept.shape
        places = torch.arange(count, device=self.kept.device).expand(rows, -1)
        new = self.kept.new_zeros(rows, count + self.gone.shape[1])
        return new.scatter(1, self.kept, places).scatter(1, self.gone, self.into)


@dataclass(frozen=True)
class Weighted:
    """What a token stands for: ``size`` ``[R, M]``, how many it is made of (0: nothing, and it counts for nothing);
    ``saliency`` ``[R, M]``, or None where none is known."""

    size: Tensor
    saliency: Tensor | None


@torch.no_grad()
def match(metric_RMD: Tensor, tokens: Weighted, *, first: int, remove: int, protect: float = 0.0) -> Match:
    """Pair the tokens ``first``, ``first`` + 2, … (A; ``first`` is 0 or 1) with the most alike of the others (B).

    Alike is the cosine of ``metric``, in float32. The ``remove`` pairs with the largest cosine, less ``protect`` times
    the saliency of the token in A, are the ones to merge; of equals the first. Tokens of size 0 go before all others,
    and nothing chooses one of them while there is another. Raises ValueError unless 0 < ``remove`` <= M // 2.
    """
    count = metric_RMD.shape[1]
    if not 0 < remove <= count // 2:
        raise ValueError(f"{remove} of {count} tokens cannot be merged: matching halves them at most")
    numbers = torch.arange(count, device=metric_RMD.device)
    numbers_a, numbers_b = numbers[first::2], numbers[1 - first :: 2]
    with without_autocast(metric_RMD.device):
        unit = functional.normalize(full_precision(metric_RMD), dim=-1)
        cosines = unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)
    cosines = cosines.masked_fill(tokens.size[:, None, 1 - first :: 2] == 0, -torch.inf)
    best, chosen = cosines.max(dim=-1)
    if protect and tokens.saliency is not None:
        best = best - protect * tokens.saliency[:, first::2]
    best = best.masked_fill(tokens.size[:, first::2] == 0, torch.inf)
    order = best.sort(dim=-1, descending=True, stable=True).indices
    leave, stay = order[:, :remove], order[:, remove:].sort(dim=-1).values
    kept = torch.cat([numbers_a[stay], numbers_b.expand(len(best), -1)], dim=1)
    return Match(kept, numbers_a[leave], stay.shape[1] + chosen.gather(1, leave), len(numbers_b))


def merge(x_RND: Tensor, tokens: Weighted, found: Match, fixed: int) -> tuple[Tensor, Weighted]:
    """Tokens, sizes and saliency after a match of all but the first ``fixed`` tokens, which stay as they are.

    ``x`` ``[R, N, D]``, with N = ``fixed`` + M; ``tokens`` of those M. A merged token is the mean weighted by size, in
    float32, with gradient; its size is the sum.
    """
    rows, count, width = x_RND.shape
    head, into = found.kept.shape[1] - found.half, found.into
    size = tokens.size
    size_gone = size.gather(1, found.gone)
    total = size.gather(1, found.kept).scatter_add(1, into, size_gone)
    # Tokens that take none keep a share of exactly 1; so do those of size 0, which take none that has a size.
    share = torch.where(total == 0, 1.0, size.gather(1, found.kept) / total)
    share_gone = torch.where(size_gone == 0, 0.0, size_gone / total.gather(1, into))
    flat = full_precision(x_RND).reshape(rows * count, width)
    starts = torch.arange(rows, device=flat.device)[:, None]
    stay = torch.arange(fixed, device=flat.device).expand(rows, -1)
    left = torch.cat([stay, fixed + found.kept], dim=1)
    shares = torch.cat([share.new_ones(rows, fixed + head), share[:, head:]], dim=1)
    # Rows of a matrix are copied whole, several times as fast as by `gather` with an index for every number.
    out = flat.index_select(0, (starts * count + left).flatten()) * shares.to(flat.dtype).view(-1, 1)
    added = flat.index_select(0, (starts * count + fixed + found.gone).flatten())
    added = added * share_gone.to(flat.dtype).view(-1, 1)
    out = out.index_add(0, (starts * left.shape[1] + fixed + into).flatten(), added)
    saliency = tokens.saliency
    if saliency is not None:
        moved = share_gone * saliency.gather(1, found.gone)
        saliency = (share * saliency.gather(1, found.kept)).scatter_add(1, into, moved)
    return out.view(rows, -1, width).to(x_RND.dtype), Weighted(total, saliency)
