"""The encoders of fields, by name, and what a trainable reduction of their tokens looks like.

An encoder has ``encode(batch) -> (tokens [B, N, D], lat [B, N], lon [B, N])``, ``width`` (D) and ``identity``. A third
one is a file beside ``prithvi.py`` and ``grid_vit.py``, a name in ``config.py`` and a line in ``open_encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from sensorium.data.fields.channels import CONSTANT, MERRA2_160
from sensorium.errors import ConfigError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.grid_vit import GridVit
from sensorium.families.climate_text.grid_vit_weights import TrainedVit, find_vit, require_reads
from sensorium.families.climate_text.prithvi import DAY_HOUR, PrithviEncoder, PrithviShape
from sensorium.families.climate_text.prithvi_weights import EncoderWeights, find_weights, open_prithvi
from sensorium.parts.attention import CrossAttention, Mlp, init_weights
from sensorium.parts.live import made_in


class Encoder(Protocol):
    """What reads fields. ``packages``: those that compute its tokens. ``window``: side lengths, in grid points, of what
    a token of a field of so many times stands for."""

    packages: tuple[str, ...]
    width: int

    def window(self, height: int, width: int, times: int) -> tuple[int, int]: ...

    @property
    def identity(self) -> str: ...

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class FieldFacts:
    """What the model must know of the data: channels, times and static fields of a sample.

    ``token_width``: where batches hold ``climate_tokens`` that were encoded before, their width; the model then needs
    no encoder to train. None: it encodes fields itself.
    """

    channels: int
    times: int
    static: int
    token_width: int | None = None

    def plain(self) -> dict[str, Any]:
        """Plain values, to be stored with a run."""
        return dict(vars(self))


def trains_encoder(model: ModelConfig) -> bool:
    """Whether the encoder learns, so that its tokens cannot be stored."""
    return not model.freeze_encoder or (model.climate_encoder == "grid_vit" and model.encoder_path is None)


Trained = TrainedVit | EncoderWeights


def trained_encoder(model: ModelConfig) -> Trained | None:
    """The weights that ``model.encoder_path`` names; None: the encoder begins with random ones. Raises ConfigError
    where no weights are named, and as ``find_weights`` and ``find_vit``."""
    if model.climate_encoder == "grid_vit":
        return None if model.encoder_path is None else find_vit(encoder_path(model))
    return None if model.random_init else find_weights(encoder_path(model))


def open_encoder(
    model: ModelConfig, facts: FieldFacts, dtype: torch.dtype = torch.float32, trained: Trained | None = None
) -> PrithviEncoder | GridVit:
    """The encoder of the configuration on the CPU; ``dtype``: of weights that do not train. ``trained``: its weights,
    where they were looked up already.

    ``random_init`` draws the same weights always, from a seed of its own; those of ``grid_vit`` follow from torch's
    generator. Raises as ``trained_encoder``.
    """
    trains = trains_encoder(model)
    trained = trained_encoder(model) if trained is None else trained
    if isinstance(trained, EncoderWeights):
        layers = checkpointed_layers(model, trained.shape.layers) if trains else ()
        return _frozen_unless(open_prithvi(trained, model, torch.float32 if trains else dtype, layers), trains, dtype)
    if model.climate_encoder == "grid_vit":
        return _frozen_unless(_open_vit(model, facts, trained), trains, dtype)
    shape = _random_prithvi(model, facts)
    layers = checkpointed_layers(model, shape.layers) if trains else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _frozen_unless(PrithviEncoder(shape, model, checkpointed=layers), trains, dtype)


def shaped_encoder(
    model: ModelConfig, facts: FieldFacts, trained: Trained | None, dtype: torch.dtype
) -> PrithviEncoder | GridVit:
    """The same with new weights, for where nothing but sizes counts."""
    trains = trains_encoder(model)
    with made_in(torch.float32 if trains else dtype):
        if model.climate_encoder == "grid_vit":
            shape = trained.shape if isinstance(trained, TrainedVit) else model.grid_vit
            layers = checkpointed_layers(model, shape.depth) if trains else ()
            own = model.model_copy(update={"grid_vit": shape})
            return GridVit(own, facts.channels, facts.times, facts.static, layers).requires_grad_(trains)
        sizes = trained.shape if isinstance(trained, EncoderWeights) else _random_prithvi(model, facts)
        layers = checkpointed_layers(model, sizes.layers) if trains else ()
        return PrithviEncoder(sizes, model, checkpointed=layers).requires_grad_(trains)


def _random_prithvi(model: ModelConfig, facts: FieldFacts) -> PrithviShape:
    own = model.prithvi
    shape = PrithviShape(own.width, own.blocks, own.heads, own.mlp)
    if own.channels == "data":
        shape = replace(shape, channels=facts.channels, static=facts.static + DAY_HOUR)
    return shape


def _open_vit(model: ModelConfig, facts: FieldFacts, trained: TrainedVit | None) -> GridVit:
    reads = (facts.channels, facts.times, facts.static)
    if trained is None:
        return GridVit(model, *reads, checkpointed_layers(model, model.grid_vit.depth))
    require_reads(trained, reads)
    layers = checkpointed_layers(model, trained.shape.depth) if trains_encoder(model) else ()
    encoder = GridVit(model.model_copy(update={"grid_vit": trained.shape}), *reads, layers)
    encoder.load_state_dict(trained.weights)
    return encoder


EitherEncoder = TypeVar("EitherEncoder", PrithviEncoder, GridVit)


def _frozen_unless(encoder: EitherEncoder, trains: bool, dtype: torch.dtype) -> EitherEncoder:
    return encoder if trains else encoder.to(dtype).eval().requires_grad_(False)


def encoder_path(model: ModelConfig) -> Path:
    """Where the encoder's weights lie. Raises ConfigError where nothing is named."""
    if model.encoder_path is None:
        raise ConfigError(
            "model.encoder_path is missing: the .pt of Prithvi WxC, or the folder that `sensorium export "
            "climate-encoder` made of it. Or set model.random_init=true for an untrained one, or "
            "model.climate_encoder=grid_vit"
        )
    return Path(model.encoder_path).expanduser()


def own_channels(model: ModelConfig, trained: Trained | None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of the channels and of the static fields that the encoder reads, in its order; None: any of them."""
    if isinstance(trained, TrainedVit):
        return trained.names, trained.static
    if model.climate_encoder == "grid_vit" or (model.random_init and model.prithvi.channels == "data"):
        return None
    return tuple(channel.name for channel in MERRA2_160), tuple(channel.name for channel in CONSTANT)


def checkpointed_layers(model: ModelConfig, depth: int) -> tuple[int, ...]:
    """Numbers of the layers, of so many, whose activations are computed anew in the backward pass."""
    if not model.gradient_checkpointing or model.activation_checkpointing == "none":
        return ()
    return tuple(range(0, depth, 2 if model.activation_checkpointing == "every_2" else 1))


class Perceiver(nn.Module):
    """Learned queries that read tokens (Jaegle et al. 2021, arXiv 2103.03206): ``[B, N, F] -> [B, Q, F]``."""

    def __init__(self, width: int, heads: int, queries: int, layers: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.reads = nn.ModuleList(CrossAttention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(Mlp(width, 4) for _ in range(layers))
        init_weights(self)
        nn.init.normal_(self.queries, std=0.02)

    def forward(self, x_BNF: Tensor, mask_BN: Tensor) -> Tensor:
        """A row without any token gives what its queries alone give."""
        z = self.queries.to(x_BNF.dtype).expand(len(x_BNF), -1, -1)
        for read, mlp in zip(cast("Sequence[CrossAttention]", self.reads), self.mlps, strict=True):
            z = z + read(z, [read.keys(x_BNF, mask_BN)])
            z = z + mlp(z)
        return z
