"""The losses of `interaction` beside the contrastive one: each a value a row, and which rows have it.

Legend: B rows, D width of an embedding, E width of the fused features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.data.items import Modality
from sensorium.parts.attention import Keys, full_precision
from sensorium.parts.contrastive import Side, Temperature, align, gather_rows, hard_negatives, world_size

Vectors: TypeAlias = Mapping[Modality, Tensor]
Projected: TypeAlias = Mapping[Modality, Sequence[Keys]]
SHARPNESS = 20.0  # of the draw of wrong pairs; the learned temperature would make it greedy


@dataclass(frozen=True)
class PerRow:
    """``values`` ``[B]``, 0 where a row is not ``used`` ``[B]`` bool."""

    values: Tensor
    used: Tensor


def contrast(
    z: Vectors, has: Vectors, groups: Tensor, temperatures: nn.ModuleDict, *, everywhere: bool
) -> dict[str, Tensor]:
    """Multi-positive InfoNCE of each pair of modalities that occurs together, by ``"image-text"``; and, as
    ``"chance/..."``, what a model that tells nothing apart would get.

    ``everywhere``: against the rows of all processes, as in training; else against those of this one.
    """
    names = list(z)
    mine = {m: Side(z[m], groups, has[m]) for m in names}
    everyone = mine
    if everywhere and world_size() > 1:
        known = gather_rows(torch.stack([groups, *(has[m].long() for m in names)], dim=1))
        # What no row has anywhere would get gradients of zero in place of none, and the optimizer would move it.
        there = [True, *known[:, 1:].any(dim=0).tolist()]
        known, names = known[:, there], [m for m, any_row in zip(names, there[1:], strict=True) if any_row]
        vectors = gather_rows(torch.cat([z[m] for m in names], dim=1)).chunk(len(names), dim=1)
        everyone = {m: Side(vectors[i], known[:, 0], known[:, 1 + i].bool()) for i, m in enumerate(names)}
    found: dict[str, Tensor] = {}
    for a, b in combinations(names, 2):
        here, there = (_both(side[a], side[b]) for side in (mine, everyone))
        count = there[0].present.sum()
        if bool(count):  # the same on all processes
            temperature = temperatures[f"{a}-{b}"]
            assert isinstance(temperature, Temperature)
            found[f"{a}-{b}"] = align(here, there, temperature)
            found[f"chance/{a}-{b}"] = count.float().log()
    return found


def _both(a: Side, b: Side) -> tuple[Side, Side]:
    present = a.present & b.present
    return Side(a.vectors, a.groups, present), Side(b.vectors, b.groups, present)


def matching(
    z: Vectors,
    has: Vectors,
    groups: Tensor,
    judge: Callable[[Mapping[Modality, Tensor | None]], Tensor],
    *,
    sample: bool,
) -> PerRow:
    """Binary cross-entropy of true pairs against wrong ones that look most alike, mean over the pairs of modalities.

    ``judge``: of each modality the numbers of the rows that it is taken from (None: the rows themselves) to logits.
    Wrong ones are of another group; with ``sample`` they are drawn by similarity (ALBEF, arXiv 2107.07651).
    """
    total, count = torch.zeros(len(groups), device=groups.device), torch.zeros(len(groups), device=groups.device)
    for a, b in combinations(z, 2):
        both = has[a] & has[b]
        with torch.autocast(groups.device.type, enabled=False):
            similarity = z[a].detach() @ z[b].detach().T
        allowed = both[None, :] & (groups[:, None] != groups[None, :])
        other, found = hard_negatives(similarity, allowed, SHARPNESS, sample)
        used = both & found
        true, wrong = full_precision(judge({a: None, b: None})), full_precision(judge({a: None, b: other}))
        losses = (functional.softplus(-true) + functional.softplus(wrong)) / 2
        total, count = total + losses.masked_fill(~used, 0.0), count + used
    return PerRow(total / count.clamp_min(1), count > 0)


def reconstruction(guesses: Mapping[Modality, Tensor], targets: Vectors, means: Vectors, has: Vectors) -> PerRow:
    """1 - cosine between what was guessed of a left-out modality ``[B, D]`` and its target, mean over modalities.

    Both less the mean target would make a constant answer right; only the target is centred, so it scores about 1. No
    gradient reaches a target. Rows that have the modality alone have nothing to guess from.
    """
    some = torch.stack([has[m] for m in has]).sum(dim=0)
    total = count = torch.zeros(len(some), device=some.device)
    for modality, lost in distances(guesses, targets, means).items():
        used = has[modality] & (some > 1)
        total, count = total + lost.masked_fill(~used, 0.0), count + used
    return PerRow(total / count.clamp_min(1), count > 0)


def distances(
    guesses: Mapping[Modality, Tensor], targets: Vectors, means: Mapping[str, Tensor]
) -> dict[Modality, Tensor]:
    """1 - cosine between guesses and centred targets, ``[B]`` by modality; no gradient reaches a target."""
    found = {}
    for modality, guess in guesses.items():
        target = full_precision(targets[modality]).detach()
        if modality in means:
            target = target - means[modality].to(target)
        found[modality] = 1 - functional.cosine_similarity(full_precision(guess), target, dim=1)
    return found


def classification(logits: Tensor, labels: Tensor) -> PerRow:
    """Binary cross-entropy of each label, mean over labels, of the rows that have some. ``logits`` of more classes than
    ``labels`` ``[B, C]`` bool names: the first C count."""
    target = labels.to(torch.float32)
    losses = functional.binary_cross_entropy_with_logits(
        full_precision(logits[:, : labels.shape[1]]), target, reduction="none"
    ).mean(dim=1)
    used = labels.any(dim=1)
    return PerRow(losses.masked_fill(~used, 0.0), used)


def mean_of_used(found: PerRow, *, everywhere: bool) -> Tensor:
    """Mean over the rows in use, a scalar; 0 where there are none. ``everywhere``: the mean of the results over
    processes is then that over the rows of all of them, and so is the mean of the gradients."""
    count = found.used.sum().float()
    if everywhere and world_size() > 1:
        count = gather_rows(count[None]).sum() / world_size()
    return found.values.sum() / count.clamp_min(1 / world_size())
