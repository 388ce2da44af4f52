"""The memory of `thinking`: slots that read frozen text, image and audio tokens, and a walker that thinks about them.

Legend: B rows of the batch, R rows of a pass, N tokens of a row, M slots, D width, E an encoder's width, K thinking
steps. A *pass* is the encoding of some rows under a choice of modalities. What a pass may see is decided by key masks
alone, and a unimodal pass is not even given the tokens of another modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch
from sensorium.families.thinking.config import ModelConfig
from sensorium.parts.attention import (
    Block,
    ChannelDropout,
    CrossAttention,
    Keys,
    Mlp,
    Pool,
    Scale,
    full_precision,
    init_weights,
    join,
)


@dataclass(frozen=True)
class EncoderFacts:
    """What the model must know of a frozen encoder and its training features; plain values, stored with the run.

    ``width`` of the tokens, ``pooled_width``; ``has_vector``: the pooled vector is a projection of its own (CLIP), not
    a mean of tokens; ``mean``: training-set mean of the pooled vectors.
    """

    width: int
    pooled_width: int
    has_vector: bool
    mean: Sequence[float]


@dataclass(frozen=True)
class Pass:
    """R rows to encode. ``keep[m]`` ``[R]`` bool: rows in which modality m is seen; modalities that are no key are not.

    ``rows[m]`` ``[R]`` int64: the batch row from which modality m is taken (default: its own). Another row's is what
    makes a negative pair.
    """

    keep: Mapping[Modality, Tensor]
    rows: Mapping[Modality, Tensor] | None = None

    def sources(self) -> Iterator[tuple[Modality, Tensor | None, Tensor]]:
        """Modality, the rows it is taken from (None: their own), and where it is seen."""
        for modality, keep in self.keep.items():
            yield modality, None if self.rows is None else self.rows[modality], keep


def centred(pooled_BE: Tensor, mean_E: Tensor) -> Tensor:
    """Pooled vectors minus the training mean, float32. Mean-pooled features share a large common part that says
    nothing; without it cosines would be near 1 for any two samples."""
    return full_precision(pooled_BE) - mean_E


class Means(nn.Module):
    """Training means of the pooled vectors: buffers that move with the model and are not stored in its weights."""

    def __init__(self, facts: Mapping[Modality, EncoderFacts]) -> None:
        super().__init__()
        for modality, fact in facts.items():
            self.register_buffer(modality, torch.tensor(fact.mean, dtype=torch.float32), persistent=False)

    def __getitem__(self, modality: Modality) -> Tensor:
        return self.get_buffer(modality)


class PooledHead(nn.Module):
    """A linear head over the centred pooled vector, scaled to unit variance; with ``hidden`` a small MLP.

    The scaling changes no ranking of a linear head without bias; the bias starts at zero.
    """

    def __init__(self, pooled_width: int, width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.head: nn.Module
        if hidden is None:
            self.head = nn.Linear(pooled_width, width)
        else:
            self.head = nn.Sequential(nn.Linear(pooled_width, hidden), nn.GELU(), nn.Linear(hidden, width))
        init_weights(self)

    def forward(self, pooled_BE: Tensor, mean_E: Tensor) -> Tensor:
        x = functional.normalize(centred(pooled_BE, mean_E), dim=-1) * len(mean_E) ** 0.5
        result: Tensor = self.head(x)
        return result


class Entrance(nn.Module):
    """LayerNorm and Linear over frozen features ``[..., E] -> [..., D]``.

    The norm's gain and shift are folded into the Linear (D x E numbers in place of B x N x E). The features need no
    gradient, so the largest product of the backward pass, from D back to E only for the gain's sake, falls away.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, width)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight * self.norm.weight
        bias = self.linear.bias + self.linear.weight @ self.norm.bias
        normal = functional.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        return functional.linear(normal, weight, bias)


class Adapter(nn.Module):
    """Tokens ``[B, N, E]`` to ``[B, N(+1), D]``: LayerNorm, Linear, residual MLP, modality embedding.

    ``vector_width``: the pooled vector becomes one more token through a LayerNorm and a Linear of its own. The MLP's
    last projection starts at zero; tokens reach the slots from the first step on all the same.
    """

    def __init__(self, token_width: int, width: int, vector_width: int | None) -> None:
        super().__init__()
        self.tokens = Entrance(token_width, width)
        self.vector = None if vector_width is None else Entrance(vector_width, width)
        self.mlp = Mlp(width, 2)
        self.modality = nn.Parameter(torch.empty(width))
        init_weights(self)
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.normal_(self.modality, std=0.02)

    def forward(self, tokens_BNE: Tensor, mask_BN: Tensor, pooled_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted tokens and their mask. A row without tokens has no vector token either."""
        x, mask = self.tokens(tokens_BNE), mask_BN
        if self.vector is not None:
            x = torch.cat([x, self.vector(pooled_BE)[:, None]], dim=1)
            mask = torch.cat([mask, mask.any(dim=1, keepdim=True)], dim=1)
        return x + self.mlp(x) + self.modality, mask


class Aggregator(nn.Module):
    """Slots look at the tokens once: cross-attention, MLP, one self-attention block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(config.slots, config.width))
        self.cross = CrossAttention(config.width, config.heads, config.slot_competition)
        self.mlp = Mlp(config.width, 4)
        self.block = Block(config.width, config.heads, config.dropout)
        self.dropout = ChannelDropout(config.dropout)
        init_weights(self)
        # Small beside what the slots read, so that read-outs of different samples differ from the first step.
        nn.init.normal_(self.slots, std=0.02)

    def forward(self, groups: Sequence[Keys]) -> Tensor:
        z = self.slots[None]
        z = z + self.dropout(self.cross(z, groups))
        z = z + self.dropout(self.mlp(z))
        result: Tensor = self.block(z)
        return result


class Walker(nn.Module):
    """One thinking step, the same weights in every step: look at the tokens again, then exchange between slots."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cross = CrossAttention(config.width, config.heads, config.slot_competition)
        self.cross_scale = Scale(config.width, config.layer_scale)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.dropout, config.layer_scale) for _ in range(config.walker_blocks)
        )
        self.dropout = ChannelDropout(config.dropout)
        init_weights(self)

    def forward(self, z_RMD: Tensor, groups: Sequence[Keys]) -> Tensor:
        z = z_RMD + self.cross_scale(self.dropout(self.cross(z_RMD, groups)))
        for block in self.blocks:
            z = block(z)
        return z


@dataclass(frozen=True)
class Adapted:
    """One modality of a batch, ready to be read by any number of passes."""

    first: Keys  # for the aggregator
    again: Keys | None  # for the walker's steps, which all see the same
    floor: Tensor | None  # [B, D]


class SlotModel(nn.Module):
    """Adapters, aggregator, walker and read-out."""

    def __init__(self, config: ModelConfig, facts: Mapping[Modality, EncoderFacts]) -> None:
        super().__init__()
        self.means = Means(facts)
        self.adapters = nn.ModuleDict()
        for modality, fact in facts.items():
            vector = config.vector_tokens if fact.has_vector else config.pooled_tokens
            self.adapters[modality] = Adapter(fact.width, config.width, fact.pooled_width if vector else None)
        self.aggregator = Aggregator(config)
        self.walker = Walker(config) if config.think_steps else None
        self.read_out = Pool(config.width, config.heads)
        init_weights(self.read_out)
        self.widen = None if config.embedding_width == config.width else nn.Linear(config.width, config.embedding_width)
        if self.widen is not None:
            init_weights(self.widen)
        self.floors = nn.ModuleDict()
        if config.floor:
            self.floors.update({m: PooledHead(fact.pooled_width, config.embedding_width) for m, fact in facts.items()})

    @property
    def can_think(self) -> bool:
        """Whether there is a walker, so that K may be above 0."""
        return self.walker is not None

    def features(self, batch: Batch, modalities: Sequence[Modality], steps: int) -> dict[Modality, Adapted]:
        """Everything that depends on the tokens alone, once for all passes and thinking steps of a batch."""
        result: dict[Modality, Adapted] = {}
        for modality in modalities:
            pooled = batch[f"{modality}_pooled"]
            x, mask = self.adapters[modality](batch[f"{modality}_tokens"], batch[f"{modality}_mask"], pooled)
            again = None if self.walker is None or steps == 0 else self.walker.cross.keys(x, mask)
            floor = self.floors[modality](pooled, self.means[modality]) if modality in self.floors else None
            result[modality] = Adapted(self.aggregator.cross.keys(x, mask), again, floor)
        return result

    def memory(self, features: Mapping[Modality, Adapted], passes: Sequence[Pass], steps: int) -> Tensor:
        """Z ``[sum of R, M, D]`` of all passes, stacked on the row axis, after ``steps`` thinking steps."""
        first = {m: adapted.first for m, adapted in features.items()}
        z: Tensor = self.aggregator([_keys(first, one) for one in passes])
        if self.walker is not None and steps:
            again = {m: adapted.again for m, adapted in features.items() if adapted.again is not None}
            groups = [_keys(again, one) for one in passes]
            for _ in range(steps):
                z = self.walker(z, groups)
        return z

    def read(self, features: Mapping[Modality, Adapted], passes: Sequence[Pass], steps: int) -> list[Tensor]:
        """Read-outs ``[R, D]`` of each pass, float32, not yet of unit length."""
        read = self.read_out(self.memory(features, passes, steps))
        read = full_precision(read if self.widen is None else self.widen(read))
        parts = read.split([len(next(iter(one.keep.values()))) for one in passes])
        floors = {m: adapted.floor for m, adapted in features.items() if adapted.floor is not None}
        if not floors:
            return list(parts)
        return [part + _mean_over_seen(floors, one) for part, one in zip(parts, passes, strict=True)]


def _keys(by_modality: Mapping[Modality, Keys], one: Pass) -> Keys:
    """The tokens that the rows of a pass see, of all its modalities side by side."""
    return join([by_modality[modality].take(rows, keep) for modality, rows, keep in one.sources()])


def _mean_over_seen(vectors: Mapping[Modality, Tensor], one: Pass) -> Tensor:
    """Mean over the modalities that a row sees, ``[R, D]`` float32; 0 where it sees none."""
    seen = torch.stack([keep for _, _, keep in one.sources()], dim=1)
    parts = [
        full_precision(vectors[m] if rows is None else vectors[m].index_select(0, rows)) for m, rows, _ in one.sources()
    ]
    total = torch.where(seen[..., None], torch.stack(parts, dim=1), 0.0).sum(dim=1)
    return total / seen.sum(dim=1, keepdim=True).clamp_min(1)


class PooledModel(nn.Module):
    """The baseline: one head per modality over the pooled vector; several modalities are the mean of their units."""

    can_think = False

    def __init__(self, config: ModelConfig, facts: Mapping[Modality, EncoderFacts]) -> None:
        super().__init__()
        self.means = Means(facts)
        hidden = None if config.kind == "probe" else 2 * config.width
        self.heads = nn.ModuleDict(
            {m: PooledHead(f.pooled_width, config.embedding_width, hidden) for m, f in facts.items()}
        )

    def features(self, batch: Batch, modalities: Sequence[Modality], steps: int) -> dict[Modality, Tensor]:
        """Unit vectors ``[B, D]`` of each modality, float32. ``steps`` means nothing here."""
        heads = {m: self.heads[m](batch[f"{m}_pooled"], self.means[m]) for m in modalities}
        return {m: functional.normalize(full_precision(head), dim=-1) for m, head in heads.items()}

    def read(self, features: Mapping[Modality, Tensor], passes: Sequence[Pass], steps: int) -> list[Tensor]:
        """Read-outs ``[R, D]`` of each pass."""
        return [_mean_over_seen(features, one) for one in passes]


def build_model(config: ModelConfig, facts: Mapping[Modality, EncoderFacts]) -> SlotModel | PooledModel:
    """The model of ``config.kind`` for the modalities in ``facts``, in the order text, image, audio."""
    ordered = {modality: facts[modality] for modality in MODALITIES if modality in facts}
    return SlotModel(config, ordered) if config.kind == "slots" else PooledModel(config, ordered)
