"""What `thinking` learns from besides alignment: reconstruction of a left-out modality, and matching of pairs.

Legend: B rows of the batch, n modalities in it, D width, E pooled width of an encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.data.items import Modality
from sensorium.families.thinking.model import Pass
from sensorium.parts.attention import full_precision, init_weights
from sensorium.parts.contrastive import hard_negatives

SHARPNESS = 1 / 0.07  # of the draw of hard negatives: where the learned temperatures start


def unit(x: Tensor) -> Tensor:
    """Unit length along the last axis, in float32; zeros stay zeros."""
    return functional.normalize(full_precision(x), dim=-1)


def _head(width: int, out: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
    init_weights(head)
    return head


class Reconstruct(nn.Module):
    """From a unit read-out ``[B, D]`` to the pooled vector ``[B, E]`` of each modality; used in training only."""

    def __init__(self, width: int, pooled_widths: Mapping[Modality, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({modality: _head(width, pooled) for modality, pooled in pooled_widths.items()})

    def forward(self, z_BD: Tensor, modality: Modality) -> Tensor:
        result: Tensor = self.heads[modality](z_BD * z_BD.shape[-1] ** 0.5)  # unit variance, as Linear expects
        return result


class Match(nn.Module):
    """Do the modalities of a row belong together? Logit ``[B]`` from the unit read-out ``[B, D]`` of all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = _head(width, 1)

    def forward(self, z_BD: Tensor) -> Tensor:
        logits: Tensor = self.head(z_BD * z_BD.shape[-1] ** 0.5)
        return full_precision(logits).squeeze(-1)


def leave_one_out(present_Bn: Tensor, offset: int) -> Tensor:
    """Which of its modalities each row leaves out, ``[B]`` int64; -1 for rows with fewer than two.

    Rows take turns, beginning at ``offset``: in each step every modality is left out by about as many rows.
    """
    count = present_Bn.sum(dim=1)
    turn = (torch.arange(len(present_Bn), device=present_Bn.device) + offset) % count.clamp_min(1)
    place = present_Bn.cumsum(dim=1) - 1  # of a modality among those that the row has
    chosen = (present_Bn & (place == turn[:, None])).int().argmax(dim=1)
    return torch.where(count > 1, chosen, -1)


def reconstruction(
    heads: Reconstruct, sources: Mapping[Modality, Tensor], targets: Mapping[Modality, Tensor], used_Bn: Tensor
) -> Tensor:
    """Mean of 1 - cosine between prediction and frozen target, over the entries in use; 0 where there are none.

    ``sources[m]`` ``[B, D]``: unit read-outs that have not seen m. ``targets[m]`` ``[B, E]``: pooled vectors, centred,
    so that a constant answer scores about 1. No gradient reaches a target.
    """
    losses = []
    for modality, target in targets.items():
        guess = full_precision(heads(sources[modality], modality))
        losses.append(1 - functional.cosine_similarity(guess, full_precision(target.detach()), dim=-1))
    total = torch.stack(losses, dim=1).masked_fill(~used_Bn, 0.0).sum()
    return total / used_Bn.sum().clamp_min(1)


@dataclass(frozen=True)
class Pairs:
    """True pairs (first B rows of ``read``) and false ones (last B); ``used`` ``[B]``: rows that have both kinds."""

    read: Pass
    used: Tensor


@torch.no_grad()
def draw_pairs(
    z: Mapping[Modality, Tensor], present_Bn: Tensor, left_out: Tensor, groups: Tensor, sample: bool
) -> Pairs:
    """For each row two of its modalities, and the same with one of them taken from a row much like the true one.

    The stand-in is never of the same group. ``sample``: sides and negatives are drawn from torch's generator; without
    it the side alternates and the negative is the most similar one.
    """
    size, n = present_Bn.shape
    modality_n = torch.arange(n, device=present_Bn.device)
    own = torch.arange(size, device=present_Bn.device)
    several = present_Bn.sum(dim=1, keepdim=True) > 2
    shown = present_Bn & ~(several & (modality_n == left_out[:, None]))
    first, last = shown.int().argmax(dim=1), n - 1 - shown.flip(1).int().argmax(dim=1)
    side = torch.rand(size, device=own.device) < 0.5 if sample else own % 2 == 0
    kept, replaced = torch.where(side, first, last), torch.where(side, last, first)
    z_nBD = torch.stack(list(z.values()))
    with torch.autocast(own.device.type, enabled=False):
        similarity = (z_nBD[kept, own] @ z_nBD.transpose(1, 2))[replaced, own]
    allowed = present_Bn.T[replaced] & (groups[:, None] != groups[None, :])
    other, found = hard_negatives(similarity, allowed, SHARPNESS, sample)
    rows = {m: torch.cat([own, torch.where(replaced == i, other, own)]) for i, m in enumerate(z)}
    keep = {m: shown[:, i].repeat(2) for i, m in enumerate(z)}
    return Pairs(Pass(keep, rows), found & (shown.sum(dim=1) == 2))


def matching(logits_2B: Tensor, used: Tensor) -> Tensor:
    """Binary cross-entropy over true pairs (first half) and false ones; 0 where no row is in use."""
    true, false = full_precision(logits_2B).chunk(2)
    losses = (functional.softplus(-true) + functional.softplus(false)) / 2
    return losses.masked_fill(~used, 0.0).sum() / used.sum().clamp_min(1)


def mean_of(values: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """Mean of the scalars whose count is above 0; 0 where there is none."""
    some = torch.stack(list(counts)) > 0
    return torch.stack(list(values)).masked_fill(~some, 0.0).sum() / some.sum().clamp_min(1)
