"""Prompts that follow what changes in a video: patches selected within frames, slots between clips.

After the idea of STOP (Liu et al. 2025, arXiv 2503.15973): dynamics in space and time decide where prompts go and how
many there are. What the paper leaves open is ours, and it is done once, on the grid of tokens, not in every block.

Legend: B videos, T frames, P patches, D width, W bottleneck, F clips, N tokens of a clip, g clips that become one, K
slots of a boundary, S = (g - 1) * K.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.families.video_retrieval.state import Slots, TokenState
from sensorium.parts.attention import full_precision, without_autocast

SOFTNESS = 0.25  # of the soft count: how many slots are half there at once
STEEPNESS = 0.5  # of the sigmoid through which a choice of patches is learned
_EPS = 1e-6
_FLOOR = 1e-4  # below this no difference between clips is told from none


class SpatialPrompter(nn.Module):
    """Selects patches that are looked at or that change, and adds a prompt to them.

    ``select``: patches of a frame that are selected; ``side``: patches in a row. With zero up matrix the tokens stay
    as they are.
    """

    def __init__(self, width: int, bottleneck: int, side: int, select: int, alpha: float) -> None:
        super().__init__()
        self.side, self.select, self.alpha = side, select, alpha
        self.down = nn.Linear(width, bottleneck)
        self.change = nn.Conv3d(bottleneck, bottleneck, 3, groups=bottleneck)
        self.local = nn.Conv3d(bottleneck, bottleneck, 3, groups=bottleneck)
        self.point = nn.Linear(bottleneck, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.orthogonal_(self.down.weight)
        nn.init.zeros_(self.change.weight)
        with torch.no_grad():  # the central difference in time: what is found at step 0 is change
            self.change.weight[:, 0, 0, 1, 1] = -0.5
            self.change.weight[:, 0, 2, 1, 1] = 0.5
        for layer in (self.down, self.change, self.up):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, x_BTPD: Tensor, attention_BTP: Tensor, alive_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The update ``[B, T, P, D]`` and the choice ``[B, T, P]``, 1 where a patch is selected and 0 elsewhere, with
        the gradient of a sigmoid. ``attention``: that of CLS, without gradient; ``alive``: frames that are no padding.
        """
        e = self.down(functional.layer_norm(x_BTPD, x_BTPD.shape[-1:]))
        e = _repeat_over_padding(e, alive_BT)
        grid = self._padded(e)
        choice = self._choose(full_precision(self.change(grid)), attention_BTP, alive_BT)
        local = self.local(grid).flatten(3).permute(0, 2, 3, 1)
        prompt = self.up(functional.relu(self.point(local)))
        return choice[..., None].to(prompt.dtype) * prompt, choice

    def _padded(self, e_BTPW: Tensor) -> Tensor:
        """``[B, W, T + 2, side + 2, side + 2]``: the first and the last frame twice, so that a still video does not
        change at its ends; zeros around the picture."""
        grid = e_BTPW.permute(0, 3, 1, 2)
        grid = torch.cat([grid[:, :, :1], grid, grid[:, :, -1:]], dim=2).unflatten(3, (self.side, self.side))
        return functional.pad(grid, (1, 1, 1, 1))

    def _choose(self, change: Tensor, attention_BTP: Tensor, alive_BT: Tensor) -> Tensor:
        alive = alive_BT[:, :, None]
        dynamics = change.square().mean(dim=1).flatten(2)
        whole = alive.to(dynamics.dtype).expand_as(dynamics)
        dynamics = _standardised(dynamics.flatten(1), whole.flatten(1)).view_as(whole)
        looked = _standardised(full_precision(attention_BTP), torch.ones_like(whole))
        wanted = self.alpha * looked + (1 - self.alpha) * dynamics
        values, places = wanted.detach().topk(self.select + 1, dim=-1)
        threshold = (values[..., -2:-1] + values[..., -1:]) / 2
        hard = torch.zeros_like(wanted).scatter(-1, places[..., :-1], 1.0)
        soft = ((wanted - threshold) / STEEPNESS).sigmoid()
        return (hard + (soft - soft.detach())) * alive


def _standardised(values: Tensor, counts: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the last axis, of those that count."""
    total = counts.sum(dim=-1, keepdim=True).clamp_min(1)
    centred = values - (values * counts).sum(dim=-1, keepdim=True) / total
    variance = (centred.square() * counts).sum(dim=-1, keepdim=True) / total
    return centred * (variance + _EPS).rsqrt()


def _repeat_over_padding(e_BTPW: Tensor, alive_BT: Tensor) -> Tensor:
    """Padded frames become copies of the frame before them (after them, at the start): nothing changes there."""
    frames = torch.arange(alive_BT.shape[1], device=alive_BT.device)
    last = torch.where(alive_BT, frames, -1).cummax(dim=1).values
    first = alive_BT.int().argmax(dim=1, keepdim=True)
    source = torch.where(last < 0, first, last)
    rows = torch.arange(len(alive_BT), device=alive_BT.device)[:, None]
    return e_BTPW[rows, source]


class TemporalPrompter(nn.Module):
    """Puts K slots at each inner boundary of a new clip, and says how much they count.

    Learned queries look at the clips on both sides; what they see differently goes into the slots, and how different
    the sides are decides how many slots count: none is cut off, their sizes fade. It follows from the two clips alone.
    """

    def __init__(self, width: int, bottleneck: int, slots: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.down = nn.Linear(width, bottleneck)
        self.queries = nn.Parameter(torch.empty(slots, bottleneck))
        self.up = nn.Linear(bottleneck, width)
        self.embedding = nn.Parameter(torch.empty(slots, width))
        self.count_slope = nn.Parameter(torch.tensor(1.0))
        self.count_offset = nn.Parameter(torch.tensor(2.0))
        nn.init.orthogonal_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.normal_(self.queries)
        nn.init.normal_(self.embedding, std=0.02)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, state: TokenState, group: int, positions_FD: Tensor | None) -> Slots:
        """Slots of the clips to come. ``state``: without slots; ``positions``: of the clips that are joined."""
        content, log_size = self.boundaries(state, group)
        x = self.embedding + self.up(content)
        if positions_FD is not None:
            joined = positions_FD.unflatten(0, (-1, group))
            x = x + ((joined[:, 1:] + joined[:, :-1]) / 2)[None, :, :, None]
        return Slots(x.flatten(2, 3), log_size.flatten(2, 3))

    def boundaries(self, state: TokenState, group: int) -> tuple[Tensor, Tensor]:
        """Of each inner boundary of the new clips what its two sides do not share, ``[B, F / g, g - 1, K, W]``, and the
        logarithm of its slots' sizes ``[B, F / g, g - 1, K]``; -inf beside a clip of padding."""
        videos, clips = state.x.shape[:2]
        e = self.down(functional.layer_norm(state.x, state.x.shape[-1:])).flatten(0, 1)
        bias = state.size.log().masked_fill(~state.alive[..., None], 0.0)
        if state.saliency is not None:
            bias = bias + (self.beta * state.saliency).log1p()
        bias = bias.flatten(0, 1)
        queries = self.queries.to(e.dtype).expand(len(e), -1, -1)
        seen = functional.scaled_dot_product_attention(queries, e, e, attn_mask=bias[:, None].to(e.dtype))
        with without_autocast(e.device):
            mean = (bias.softmax(dim=-1)[:, None] @ full_precision(e)).squeeze(1)
        seen, mean = (part.unflatten(0, (videos, clips // group, group)) for part in (seen, mean))
        content = seen[:, :, 1:] - seen[:, :, :-1]
        log_size = self._log_sizes(mean[:, :, :-1], mean[:, :, 1:])
        alive = state.alive.unflatten(1, (-1, group))
        both = alive[:, :, 1:] & alive[:, :, :-1]
        return content, log_size.masked_fill(~both[..., None], -torch.inf)

    def _log_sizes(self, left: Tensor, right: Tensor) -> Tensor:
        """``[..., W]`` of both sides to ``[..., K]``."""
        ratio = (right - left).square().sum(-1) / ((right.square() + left.square()).sum(-1) / 2 + _EPS)
        places = torch.arange(len(self.queries), device=left.device)
        count = self.count(ratio)
        return functional.logsigmoid((count[..., None] - places - 0.5) / SOFTNESS)

    def count(self, ratio: Tensor) -> Tensor:
        """How many slots count, between 0 and K, for squared distances over squared lengths."""
        share = (self.count_slope * (ratio + _FLOOR).log() + self.count_offset).sigmoid()
        return len(self.queries) * share
