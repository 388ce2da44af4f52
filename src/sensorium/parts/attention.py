"""Pre-norm attention blocks over scaled dot-product attention, with key masks that can never give NaN.

Legend: R rows, M queries (slots) of a row, N keys (tokens) of a row, D width, H heads, d = D / H.

Keys and values are computed once (``CrossAttention.keys``) and may then be used by several passes and several steps:
tokens do not change while a memory thinks about them, so projecting them again would be waste.

``chunk``, where a layer takes it: queries are answered so many at a time wherever PyTorch has no fused kernel for the
call, so that no more than chunk x N scores a head exist at once, in the backward pass too. The result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Keys:
    """Projected tokens of some rows: ``k``, ``v`` ``[R, H, N, d]``; ``mask`` ``[R, N]`` bool (True: may be seen)."""

    k: Tensor
    v: Tensor
    mask: Tensor

    def take(self, rows: Tensor | None, keep: Tensor) -> Keys:
        """The keys of some rows (``[R']`` int64; None: all, in order), seen only where ``keep`` ``[R']`` is True."""
        k, v, mask = self.k, self.v, self.mask
        if rows is not None:
            k, v, mask = k.index_select(0, rows), v.index_select(0, rows), mask.index_select(0, rows)
        return Keys(k, v, mask & keep[:, None])


def join(parts: Sequence[Keys]) -> Keys:
    """Put the keys of the same rows side by side."""
    if len(parts) == 1:
        return parts[0]
    return Keys(
        torch.cat([part.k for part in parts], dim=2),
        torch.cat([part.v for part in parts], dim=2),
        torch.cat([part.mask for part in parts], dim=1),
    )


def full_precision(x: Tensor) -> Tensor:
    """Half precisions become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """For products that autocast must not round; there are devices that have no autocast."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def split_heads(x_RND: Tensor, heads: int) -> Tensor:
    """``[R, N, D] -> [R, H, N, d]``."""
    return x_RND.unflatten(-1, (heads, -1)).transpose(1, 2)


def look(q_RHMd: Tensor, k_RHNd: Tensor, v_RHNd: Tensor, mask_RN: Tensor | None, chunk: int | None = None) -> Tensor:
    """Scaled dot-product attention, ``[R, H, M, d]``. Each row must see at least one key; None: it sees all.

    ``chunk``: at most so many queries at a time, where no fused kernel takes the call (those never hold the scores).
    """
    mask = None if mask_RN is None else mask_RN[:, None, None, :]
    if chunk is None or q_RHMd.shape[2] <= chunk or _fused(q_RHMd, k_RHNd, v_RHNd, mask):
        return functional.scaled_dot_product_attention(q_RHMd, k_RHNd, v_RHNd, attn_mask=mask)
    parts = q_RHMd.split(chunk, dim=2)
    if not torch.is_grad_enabled():
        return torch.cat([_look_plainly(part, k_RHNd, v_RHNd, mask) for part in parts], dim=2)
    # Kept for the backward pass, the scores of all parts together would be as large as without parts.
    found = [
        checkpoint(_look_plainly, part, k_RHNd, v_RHNd, mask, use_reentrant=False, preserve_rng_state=False)
        for part in parts
    ]
    return torch.cat(found, dim=2)


def _fused(q_RHMd: Tensor, k_RHNd: Tensor, v_RHNd: Tensor, mask: Tensor | None) -> bool:
    """Whether PyTorch will choose a kernel that never holds all scores; asked the way it asks itself."""
    return bool(torch._fused_sdp_choice(q_RHMd, k_RHNd, v_RHNd, mask) != SDPBackend.MATH.value)


def _look_plainly(q_RHMd: Tensor, k_RHNd: Tensor, v_RHNd: Tensor, mask: Tensor | None) -> Tensor:
    # Named, so that the second pass takes the same kernel, whatever was switched on or off since the first.
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(q_RHMd, k_RHNd, v_RHNd, attn_mask=mask)


def attend(q_RHMd: Tensor, keys: Keys, competition: bool = False, chunk: int | None = None) -> Tensor:
    """Attention ``[R, H, M, d] -> [R, M, D]``. A row all of whose keys are masked gets exact zeros, never NaN.

    ``competition``: softmax over the queries instead of the keys, then a weighted mean over the keys, as in Slot
    Attention (Locatello et al. 2020, arXiv 2006.15055).
    """
    alive_R = keys.mask.any(dim=-1)
    # A row without any key would be 0/0 in softmax; it sees its (meaningless) keys and is then set to zero.
    mask_RN = keys.mask | ~alive_R[:, None]
    found = _compete(q_RHMd, keys, mask_RN) if competition else look(q_RHMd, keys.k, keys.v, mask_RN, chunk)
    found = found.transpose(1, 2).flatten(2)
    return found.masked_fill(~alive_R[:, None, None], 0.0)


def _compete(q_RHMd: Tensor, keys: Keys, mask_RN: Tensor) -> Tensor:
    logits = full_precision(q_RHMd @ keys.k.transpose(-1, -2)) * q_RHMd.shape[-1] ** -0.5
    shares = logits.softmax(dim=-2) * mask_RN[:, None, None, :]
    weights = shares / shares.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    return weights.to(keys.v.dtype) @ keys.v


class CrossAttention(nn.Module):
    """Multi-head attention from queries to keys, a LayerNorm on both sides; gives the update, without residual.

    ``key_norm``: False for tokens that come out of a LayerNorm already.

    Under a softmax over keys the key half of the bias of ``to_keys`` shifts all scores of a query alike and has no
    effect; one fused projection with one bias is kept all the same, as in most published blocks.
    """

    def __init__(
        self, width: int, heads: int, competition: bool = False, key_norm: bool = True, chunk: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.competition, self.chunk = heads, competition, chunk
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width) if key_norm else nn.Identity()
        self.to_queries = nn.Linear(width, width)
        self.to_keys = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys(self, x_RND: Tensor, mask_RN: Tensor) -> Keys:
        """Project tokens ``[R, N, D]``, to be used by any number of calls."""
        k, v = self.to_keys(self.key_norm(x_RND)).chunk(2, dim=-1)
        return Keys(split_heads(k, self.heads), split_heads(v, self.heads), mask_RN)

    def forward(self, z_RMD: Tensor, groups: Sequence[Keys]) -> Tensor:
        """``z`` ``[R, M, D]``, or ``[1, M, D]`` where all rows ask the same; ``groups``: keys of consecutive rows.

        The groups' rows sum to R. Rows with few keys and rows with many thus share every matrix product without
        any padding of one to the length of the other.
        """
        q = split_heads(self.to_queries(self.query_norm(z_RMD)), self.heads)
        counts = [len(keys.mask) for keys in groups]
        parts = q.expand(sum(counts), -1, -1, -1).split(counts)
        found = [attend(part, keys, self.competition, self.chunk) for part, keys in zip(parts, groups, strict=True)]
        return self.out(found[0] if len(found) == 1 else torch.cat(found))


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention; gives the update, without residual."""

    def __init__(self, width: int, heads: int, chunk: int | None = None) -> None:
        super().__init__()
        self.heads, self.chunk = heads, chunk
        self.norm = nn.LayerNorm(width)
        self.to_all = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, z_RMD: Tensor, mask_RM: Tensor | None = None) -> Tensor:
        """``mask``: True where a vector may be seen, at least one a row; None: everywhere."""
        q, k, v = (split_heads(part, self.heads) for part in self.to_all(self.norm(z_RMD)).chunk(3, dim=-1))
        return self.out(look(q, k, v, mask_RM, self.chunk).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Pre-norm MLP: LayerNorm, Linear to ``expansion`` times the width, GELU, Linear back; without residual."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
        )


class ChannelDropout(nn.Module):
    """Dropout of whole channels: the same ones in all M vectors of a row, others in every row.

    The variational dropout of Gal and Ghahramani 2016 (arXiv 1512.05287). It draws R * D numbers in place of
    R * M * D; drawing took an eighth of a training step on a CPU.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_RMD: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_RMD
        kept = torch.empty_like(x_RMD[:, :1]).bernoulli_(1 - self.rate)
        return x_RMD * (kept / (1 - self.rate))


class Scale(nn.Module):
    """LayerScale (Touvron et al. 2021, arXiv 2103.17239): a learned factor for each channel of an update."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Block(nn.Module):
    """Transformer block, pre-norm: self-attention, then an MLP of four times the width.

    ``layer_scale``: initial LayerScale of both updates; None builds none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        layer_scale: float | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, chunk)
        self.mlp = Mlp(width, 4)
        self.dropout = ChannelDropout(dropout)
        scales = (nn.Identity() if layer_scale is None else Scale(width, layer_scale) for _ in range(2))
        self.attention_scale, self.mlp_scale = scales

    def forward(self, z_RMD: Tensor, mask_RM: Tensor | None = None) -> Tensor:
        """``mask``: see ``SelfAttention``."""
        z = z_RMD + self.attention_scale(self.dropout(self.attention(z_RMD, mask_RM)))
        return z + self.mlp_scale(self.dropout(self.mlp(z)))


class Pool(nn.Module):
    """Attention pooling: LayerNorm, one learned query over the rows' vectors, Linear. ``[R, M, D] -> [R, D]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.empty(width))
        self.to_keys = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.query)

    def forward(self, z_RMD: Tensor) -> Tensor:
        k, v = (split_heads(part, self.heads) for part in self.to_keys(self.norm(z_RMD)).chunk(2, dim=-1))
        q = self.query.to(k.dtype).view(1, self.heads, 1, -1).expand(len(k), -1, -1, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v).flatten(1))


def init_weights(module: nn.Module) -> None:
    """Xavier for every Linear, zero biases. Call it on modules that are trained, never on a pretrained encoder."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
