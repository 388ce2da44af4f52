"""A `grid_vit` that was trained before, out of a run of this family: to keep as it is, or to train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sensorium import families, stored
from sensorium.data.fields.channels import Scalers, read_scalers
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.climate_text.config import GridVitConfig, ModelConfig

_PREFIX = "model.encoder."


@dataclass(frozen=True)
class TrainedVit:
    """``reads``: channels, times and static fields; ``weights`` by their names in ``GridVit``."""

    origin: Path
    shape: GridVitConfig
    reads: tuple[int, int, int]
    names: tuple[str, ...]
    static: tuple[str, ...]
    scalers: Scalers
    weights: Mapping[str, Tensor]


def find_vit(path: Path) -> TrainedVit:
    """Open a run, an epoch's folder or an export. Raises CheckpointError where it holds no ``grid_vit``."""
    found = stored.find(families.load("climate_text"), path)
    weights = {name.removeprefix(_PREFIX): one for name, one in found.weights.items() if name.startswith(_PREFIX)}
    settings = found.config.model
    assert isinstance(settings, ModelConfig)
    if settings.climate_encoder != "grid_vit" or not weights:
        other = f"took its own from {settings.encoder_path}" if settings.encoder_path else "was trained with Prithvi"
        raise CheckpointError(f"{path}: holds no weights of a grid_vit; that run {other}")
    facts: Mapping[str, Any] = found.facts
    fields = facts["fields"]
    return TrainedVit(
        found.origin,
        settings.grid_vit,
        (fields["channels"], fields["times"], fields["static"]),
        tuple(facts["names"]),
        tuple(facts["static"]),
        read_scalers(facts["scalers"]),
        weights,
    )


def require_reads(found: TrainedVit, reads: tuple[int, int, int]) -> None:
    """Raise ConfigError where the weights read other fields than the data have."""
    if reads != found.reads:
        raise ConfigError(
            f"the encoder of {found.origin} reads {found.reads[0]} channels at {found.reads[1]} times with "
            f"{found.reads[2]} static fields; the data have {reads[0]}, {reads[1]} and {reads[2]}"
        )
