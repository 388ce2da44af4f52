"""A `grid_vit` of one run as the frozen encoder of another, whose language model may be any."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from climate_rows import small_config

from sensorium import families
from sensorium.engine import loop
from sensorium.engine.contract import Host
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.climate_text import encoders
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.data import TrainSource
from sensorium.families.climate_text.encoders import (
    FieldFacts,
    open_encoder,
    own_channels,
    trained_encoder,
    trains_encoder,
)
from sensorium.families.climate_text.grid_vit import GridVit
from sensorium.families.climate_text.grid_vit_weights import find_vit
from sensorium.families.climate_text.model import ClimateTextFusion
from sensorium.families.climate_text.token_cache import TokenStore

FAMILY = families.load("climate_text")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    loop.train(FAMILY, small_config({}), run, quiet=True)
    return run


def encoder_of(run: Path, **changes: Any) -> GridVit:
    model = ModelConfig(climate_encoder="grid_vit", encoder_path=str(run), **changes)
    found = open_encoder(model, FieldFacts(8, 2, 4))
    assert isinstance(found, GridVit)
    return found


def test_it_is_opened_as_it_was_trained(first: Path) -> None:
    vit = find_vit(first)
    encoder = encoder_of(first)
    assert encoder.width == 32  # the run's, not the default's
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, vit.weights[name])
    torch.manual_seed(0)
    fresh = GridVit(ModelConfig(grid_vit=vit.shape), 8, 2, 4)
    assert not torch.equal(fresh.patchify.weight, encoder.patchify.weight)
    model = ModelConfig(climate_encoder="grid_vit", encoder_path=str(first))
    trained = trained_encoder(model)
    assert trained is not None
    assert trained.scalers == vit.scalers
    assert own_channels(model, trained) == (vit.names, vit.static)
    assert not trains_encoder(model)


def test_it_may_be_trained_on(first: Path) -> None:
    encoder = encoder_of(first, freeze_encoder=False)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(encoder.patchify.weight, find_vit(first).weights["patchify.weight"])


def test_a_run_keeps_its_tokens_and_goes_on_from_it(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package of the other encoder, of which nothing is needed."""
    version = importlib.metadata.version

    def absent(name: str) -> str:
        if name == "prithviwxc":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    config = small_config({"encoder_path": str(first), "num_fusion_layers": 2})
    looked: list[Path] = []
    monkeypatch.setattr(encoders, "find_vit", lambda path: looked.append(path) or find_vit(path))
    found = FAMILY.sources(config, Host()).train
    assert looked == [first]  # once for names, scalers and tokens
    assert isinstance(found, TrainSource)
    assert isinstance(found.inputs.tokens, TokenStore)
    assert len(found.example(0, 0)["climate_tokens"]) == 9
    result = loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    assert result is not None
    assert result.metrics["perplexity"] > 1
    model = ClimateTextFusion.from_pretrained(tmp_path / "run")
    assert isinstance(model.encoder, GridVit)
    assert torch.equal(model.encoder.patchify.weight, find_vit(first).weights["patchify.weight"])
    with pytest.raises(CheckpointError, match="holds no weights of a grid_vit; that run took its own from"):
        find_vit(tmp_path / "run")


def test_what_does_not_fit_is_told(first: Path, tmp_path: Path) -> None:
    model = ModelConfig(climate_encoder="grid_vit", encoder_path=str(first))
    with pytest.raises(ConfigError, match="reads 8 channels at 2 times with 4 static fields; the data have 5, 2 and 0"):
        open_encoder(model, FieldFacts(5, 2, 0))
    names = list(find_vit(first).names)
    config = small_config({"encoder_path": str(first)}, variables=names[::-1])
    with pytest.raises(ConfigError, match="not the 8 channels of the encoder, in another order"):
        FAMILY.sources(config, Host())
    config = small_config({"encoder_path": str(first)}, variables=[*names[:-1], "rain"])
    with pytest.raises(ConfigError, match="is on one side only"):
        FAMILY.sources(config, Host())
    with pytest.raises(CheckpointError, match="no such folder"):
        find_vit(tmp_path / "none")
