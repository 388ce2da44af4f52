"""The tokens of videos between two blocks of the image tower: passed on and returned, never changed.

Legend: B videos, F clips, C CLS tokens of a clip (one a frame), S slots, M patch tokens, N = C + S + M, D width, T
frames, P patches of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sensorium.parts.merging import Match, Weighted, merge


@dataclass(frozen=True)
class Slots:
    """Prompt slots of the clips to come: ``x`` ``[B, F, S, D]``, ``log_size`` ``[B, F, S]``, -inf: a slot that counts
    for nothing."""

    x: Tensor
    log_size: Tensor


@dataclass(frozen=True)
class TokenState:
    """``x`` ``[B, F, N, D]`` in the order CLS, slots, patches.

    ``size`` ``[B, F, C + M]`` float32, always, without gradient: how many tokens of a frame one stands for, of CLS and
    patches; 0 for those of padded frames. (bfloat16 counts to 256.) ``slot_log`` ``[B, F, S]``: logarithms of the
    slots' sizes, with gradient; None without slots. ``saliency`` ``[B, F, C + M]`` in 0..1, or None where nothing was
    selected. ``source`` ``[B, T * (P + 1)]``: for each CLS and patch of each frame, in the order of frames, which
    token now holds it: clip * (C + M) + number; None where no picture is wanted.
    """

    x: Tensor
    size: Tensor
    n_cls: int
    n_slot: int = 0
    slot_log: Tensor | None = None
    saliency: Tensor | None = None
    source: Tensor | None = None

    @property
    def cls(self) -> Tensor:
        """``[B, F, C, D]``."""
        return self.x[:, :, : self.n_cls]

    @property
    def slots(self) -> Tensor:
        """``[B, F, S, D]``."""
        return self.x[:, :, self.n_cls : self.fixed]

    @property
    def patches(self) -> Tensor:
        """``[B, F, M, D]``."""
        return self.x[:, :, self.fixed :]

    @property
    def fixed(self) -> int:
        """Tokens that never merge."""
        return self.n_cls + self.n_slot

    @property
    def alive(self) -> Tensor:
        """``[B, F]`` bool: clips with a frame that is not padding."""
        return self.size[:, :, : self.n_cls].any(dim=-1)


def begin(x_BTND: Tensor, frame_mask_BT: Tensor, *, traced: bool) -> TokenState:
    """Every frame a clip of its own. ``traced``: keep account of where every token goes."""
    videos, frames, count, _ = x_BTND.shape
    size = frame_mask_BT.to(torch.float32)[:, :, None].expand(-1, -1, count)
    source = None
    if traced:
        source = torch.arange(frames * count, device=x_BTND.device).expand(videos, -1)
    return TokenState(x_BTND, size, n_cls=1, source=source)


def key_bias(state: TokenState) -> Tensor:
    """What attention adds to the scores of every key, ``[B, F, N]``: the logarithm of its size.

    A clip without any frame that is not padding is computed as if there were nothing special about it: its softmax
    would be over nothing.
    """
    logs = state.size.log()
    if state.slot_log is not None:
        logs = torch.cat([logs[:, :, : state.n_cls], state.slot_log, logs[:, :, state.n_cls :]], dim=2)
    return logs.masked_fill(~state.alive[:, :, None], 0.0)


def drop_slots(state: TokenState) -> TokenState:
    """The clips without their slots."""
    if not state.n_slot:
        return state
    x = torch.cat([state.cls, state.patches], dim=2)
    return replace(state, x=x, n_slot=0, slot_log=None)


def _joined(values: Tensor, n_cls: int, group: int) -> tuple[Tensor, Tensor]:
    """CLS and patches of ``group`` neighbouring clips each side by side."""
    clips = values.shape[1] // group
    cls, patches = values[:, :, :n_cls], values[:, :, n_cls:]
    return cls.unflatten(1, (clips, group)).flatten(2, 3), patches.unflatten(1, (clips, group)).flatten(2, 3)


def join(state: TokenState, group: int, slots: Slots | None) -> TokenState:
    """``group`` neighbouring clips become one: all their CLS tokens, the slots, all their patches.

    ``state`` without slots; ``slots`` ``[B, F / group, S, D]``: those of the new clips.
    """
    cls, patches = _joined(state.x, state.n_cls, group)
    parts = [cls, patches] if slots is None else [cls, slots.x.to(cls.dtype), patches]
    saliency = state.saliency
    return TokenState(
        x=torch.cat(parts, dim=2),
        size=torch.cat(_joined(state.size, state.n_cls, group), dim=2),
        n_cls=state.n_cls * group,
        n_slot=0 if slots is None else slots.x.shape[2],
        slot_log=None if slots is None else slots.log_size,
        saliency=None if saliency is None else torch.cat(_joined(saliency, state.n_cls, group), dim=2),
        source=None if state.source is None else _joined_source(state, group),
    )


def _joined_source(state: TokenState, group: int) -> Tensor:
    assert state.source is not None
    clips, count = state.size.shape[1:]
    old = torch.arange(clips * count, device=state.x.device).view(1, clips, count)
    order = torch.cat(_joined(old, state.n_cls, group), dim=2).flatten()
    new = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return new[state.source]


def weighted_patches(state: TokenState) -> Weighted:
    """Sizes and saliency of the patches, clips as rows."""
    saliency = None if state.saliency is None else state.saliency[:, :, state.n_cls :].flatten(0, 1)
    return Weighted(state.size[:, :, state.n_cls :].flatten(0, 1), saliency)


def merged(state: TokenState, found: Match) -> TokenState:
    """The state after a match of its patches (clips as rows)."""
    videos, clips = state.x.shape[:2]
    x, tokens = merge(state.x.flatten(0, 1), weighted_patches(state), found, state.fixed)
    size = torch.cat([state.size[:, :, : state.n_cls], tokens.size.view(videos, clips, -1)], dim=2)
    saliency = state.saliency
    if saliency is not None and tokens.saliency is not None:
        saliency = torch.cat([saliency[:, :, : state.n_cls], tokens.saliency.view(videos, clips, -1)], dim=2)
    source = None if state.source is None else _merged_source(state, found)
    return replace(state, x=x.unflatten(0, (videos, clips)), size=size, saliency=saliency, source=source)


def _merged_source(state: TokenState, found: Match) -> Tensor:
    assert state.source is not None
    videos, clips, count = state.size.shape
    left = state.n_cls + found.kept.shape[1]
    rows = torch.arange(clips, device=state.x.device)[:, None] * left
    same = torch.arange(state.n_cls, device=state.x.device).expand(videos * clips, -1)
    places = torch.cat([same, state.n_cls + found.moved_to()], dim=1).view(videos, clips, count)
    return (rows + places).flatten(1).gather(1, state.source)
