"""How climate enters a language model: gated blocks between its layers, tokens before the text, or one added vector.

Legend: B rows, N climate tokens, S text positions, E width of the language model, D of the encoder, F of the fusion,
H heads, d = F / H.

Every gate is the tanh of numbers that begin as 0, so that the language model begins as itself. What is to be left out
of a row is left out by a mask, never by skipping a module: where ranks run different modules, ZeRO-3 hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.errors import ConfigError
from sensorium.families.climate_text.tokens import PLACE_WIDTH, WITHIN_WIDTH, place_code, within_code
from sensorium.parts.attention import CrossAttention, Keys, Mlp, attend, full_precision, init_weights, split_heads


@dataclass
class Running:
    """The climate of the forward pass that runs now.

    ``climate`` ``[B, N, F]`` as the next block will find it; ``mask`` ``[B, N]`` bool; ``given`` ``[B]`` bool: the row
    has climate or not; ``prompt`` ``[B, S]`` bool: positions that climate may read. ``kept``: what text reads in
    each block, once the prompt was read. ``prefix`` ``[B, N + 2, E]``, ``added`` ``[B, E]``: of the other modes.
    ``chosen``: ``[B, S]`` bool, positions whose logits are wanted; None: all. ``shares``: where blocks are to leave how
    much each position looks at each token, ``[B, S, N]``; None: nowhere.
    """

    climate: Tensor
    mask: Tensor
    given: Tensor
    prompt: Tensor
    kept: dict[int, Keys] = field(default_factory=dict)
    prefix: Tensor | None = None
    added: Tensor | None = None
    chosen: Tensor | None = None
    shares: list[Tensor] | None = None

    def repeated(self, times: int) -> Running:
        """Every row so many times, one after the other, as beams are."""

        def rows(value: Tensor) -> Tensor:
            return value.repeat_interleave(times, dim=0)

        prefix = None if self.prefix is None else rows(self.prefix)
        added = None if self.added is None else rows(self.added)
        climate, mask, given, prompt = map(rows, (self.climate, self.mask, self.given, self.prompt))
        return Running(climate, mask, given, prompt, prefix=prefix, added=added)


class Holder:
    """Where hooks find the climate of the pass that runs now; empty outside of one."""

    def __init__(self) -> None:
        self.running: Running | None = None

    @contextmanager
    def holding(self, running: Running) -> Iterator[None]:
        """For the time of the block, also where it fails; what was held before is held again afterwards."""
        before, self.running = self.running, running
        try:
            yield
        finally:
            self.running = before


def fusion_width(wanted: int | str, text_width: int, heads: int) -> int:
    """Width inside the fusion; ``auto``: 1024 or the model's own, in multiples of the heads."""
    width = min(1024, text_width) // heads * heads if isinstance(wanted, str) else wanted
    if width < heads:
        raise ConfigError(f"model.fusion_heads {heads}: more than the {text_width} numbers of this model's vectors")
    return width


def places(depth: int, count: int) -> tuple[int, ...]:
    """Numbers of the layers before which ``count`` blocks stand: evenly over the depth, none before the first layer."""
    if count >= depth:
        raise ConfigError(
            f"model.num_fusion_layers {count}: this language model has {depth} layers, with room for {depth - 1} "
            "blocks between them; take fewer"
        )
    return tuple(round(depth * (number + 1) / (count + 1)) for number in range(count))


class Projector(nn.Module):
    """Tokens of the encoder ``[B, N, D]`` to ``[B, N, F]``, with codes of where on the globe and in the field each
    lies."""

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(token_width)
        self.inner, self.outer = nn.Linear(token_width, width), nn.Linear(width, width)
        self.place, self.within = nn.Linear(PLACE_WIDTH, width), nn.Linear(WITHIN_WIDTH, width)
        init_weights(self)

    def forward(self, tokens_BND: Tensor, lat_BN: Tensor, lon_BN: Tensor) -> Tensor:
        dtype = self.inner.weight.dtype
        x = self.outer(functional.gelu(self.inner(self.norm(tokens_BND.to(dtype)))))
        x = x + self.place(place_code(lat_BN, lon_BN).to(dtype))
        found: Tensor = x + self.within(within_code(lat_BN, lon_BN).to(dtype))
        return found


class Gate(nn.Module):
    """``tanh(g)`` times an update, a ``g`` for each of its numbers; all begin as 0.

    One ``g`` for the whole update, as published, stays shut for long: what an untrained update would change for the
    better and for the worse cancels out in its gradient.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, update: Tensor) -> Tensor:
        return self.gain.tanh().to(update.dtype) * update


def _plain(inner: int, outer: int) -> nn.Linear:
    linear = nn.Linear(inner, outer, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


class Look(nn.Module):
    """Attention from queries of one width to keys of another, a LayerNorm on both sides; no biases."""

    def __init__(self, query_width: int, key_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm = nn.LayerNorm(query_width), nn.LayerNorm(key_width)
        self.to_queries, self.to_keys = _plain(query_width, width), _plain(key_width, 2 * width)
        self.out = _plain(width, query_width)

    def keys(self, x: Tensor, mask: Tensor) -> Keys:
        """Project what is looked at, once for any number of calls."""
        k, v = self.to_keys(self.key_norm(x)).chunk(2, dim=-1)
        return Keys(split_heads(k, self.heads), split_heads(v, self.heads), mask)

    def forward(self, x: Tensor, keys: Keys) -> Tensor:
        """The update, zeros in rows that may see nothing."""
        found: Tensor = self.out(attend(split_heads(self.to_queries(self.query_norm(x)), self.heads), keys))
        return found

    @torch.no_grad()
    def shares(self, x: Tensor, keys: Keys) -> Tensor:
        """How much each query looks at each key, mean over the heads, ``[R, M, N]`` float32; rows sum to 1."""
        q = split_heads(self.to_queries(self.query_norm(x)), self.heads)
        scores = full_precision(q @ keys.k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~keys.mask[:, None, None, :], -1e9)
        found: Tensor = scores.softmax(dim=-1).mean(dim=1)
        return found


class GatedMlp(nn.Module):
    """LayerNorm and a gated linear unit of SiLU (Shazeer 2020, arXiv 2002.05202); no biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value, self.door, self.out = _plain(width, inner), _plain(width, inner), _plain(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        found: Tensor = self.out(functional.silu(self.door(x)) * self.value(x))
        return found


class FusionBlock(nn.Module):
    """Climate reads the prompt, then the text reads climate (after Alayrac et al. 2022, arXiv 2204.14198).

    Climate sees positions of the prompt alone: with those of the target, every word of the answer would reach the words
    before it.
    """

    def __init__(self, text_width: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.climate_reads = Look(width, text_width, width, heads)
        self.climate_gate = Gate(width)
        self.climate_mlp = Mlp(width, 4)
        self.text_reads = Look(text_width, width, width, heads)
        self.text_gate = Gate(text_width)
        self.text_mlp = GatedMlp(text_width, width)
        self.text_mlp_gate = Gate(text_width)
        self.dropout = nn.Dropout(dropout)
        init_weights(self.climate_mlp)

    def forward(
        self, text_BSE: Tensor, climate: tuple[Tensor, Tensor], prompt_BS: Tensor, kept: Keys | None
    ) -> tuple[Tensor, Tensor, Keys]:
        """The text, the climate and what the text read of it. ``climate``: ``[B, N, F]`` and mask ``[B, N]``; ``kept``:
        the prompt was read already, and ``prompt`` is not looked at."""
        x = text_BSE.to(self.text_gate.gain.dtype)
        tokens, mask = climate
        keys = kept
        if keys is None:
            update = self.climate_reads(tokens, self.climate_reads.keys(x, prompt_BS))
            tokens = tokens + self.climate_gate(self.dropout(update))
            tokens = tokens + self.dropout(self.climate_mlp(tokens))
            keys = self.text_reads.keys(tokens, mask)
        x = x + self.text_gate(self.dropout(self.text_reads(x, keys)))
        x = x + self.text_mlp_gate(self.dropout(self.text_mlp(x)))
        return x.to(text_BSE.dtype), tokens, keys


class Absent(nn.Module):
    """Instead of the climate of rows that have none, one learned token: what was trained to speak still speaks, and a
    comparison with and without a field is one of the field."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, climate_BNF: Tensor, mask_BN: Tensor, given_B: Tensor) -> tuple[Tensor, Tensor]:
        """The climate and its mask, with rows that are not ``given`` replaced."""
        alone = torch.zeros_like(mask_BN)
        alone[:, 0] = True
        climate = torch.where(given_B[:, None, None], climate_BNF, self.token.to(climate_BNF.dtype))
        return climate, torch.where(given_B[:, None], mask_BN, alone)


class Prefix(nn.Module):
    """Climate as words before the text: ``[B, N, F] -> [B, N + 2, E]``, with a mark at the beginning and at the end."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.to_words = nn.Linear(width, embedding)
        self.marks = nn.Parameter(torch.empty(2, embedding))
        # As small as embeddings are.
        nn.init.normal_(self.to_words.weight, std=0.02)
        nn.init.zeros_(self.to_words.bias)
        nn.init.normal_(self.marks, std=0.02)

    def forward(self, climate_BNF: Tensor) -> Tensor:
        begin, end = (mark.expand(len(climate_BNF), 1, -1) for mark in self.marks)
        words = self.to_words(climate_BNF)
        return torch.cat([begin.to(words.dtype), words, end.to(words.dtype)], dim=1)


class Added(nn.Module):
    """Climate as one vector that every word gets: ``[B, N, F] -> [B, E]``. It says little of where things are."""

    def __init__(self, width: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, width))
        self.pool = CrossAttention(width, heads)
        self.out = nn.Linear(width, embedding)
        self.gate = Gate(embedding)
        init_weights(self)
        nn.init.normal_(self.query, std=0.02)

    def forward(self, climate_BNF: Tensor, mask_BN: Tensor) -> Tensor:
        query = self.query.to(climate_BNF.dtype).expand(len(climate_BNF), -1, -1)
        found: Tensor = self.gate(self.out(self.pool(query, [self.pool.keys(climate_BNF, mask_BN)])[:, 0]))
        return found


def block_parameters(text_width: int, width: int) -> int:
    """Of a ``FusionBlock``, by formula; a test holds it against a built one. At 4096 and 1024: 42.0 million."""
    matrices = 7 * text_width * width + 12 * width**2
    norms = 2 * (3 * text_width + 3 * width)
    gates = 2 * text_width + width
    return matrices + norms + 5 * width + gates


def projector_parameters(token_width: int, width: int) -> int:
    """Of a ``Projector``, by formula."""
    return 2 * token_width + (token_width + 1) * width + (width + 1) * width + (PLACE_WIDTH + WITHIN_WIDTH + 2) * width
