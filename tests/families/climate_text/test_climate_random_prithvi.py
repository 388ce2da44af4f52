"""A Prithvi of random weights that reads the channels which the data have, and learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from climate_rows import small_config

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import loop, settings
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.data import TrainSource
from sensorium.families.climate_text.encoders import FieldFacts, open_encoder
from sensorium.families.climate_text.model import ClimateTextFusion
from sensorium.families.climate_text.prithvi import PrithviEncoder, parameter_count

pytest.importorskip("PrithviWxC", reason="prithviwxc is not installed (extra `climate`)")

FAMILY = families.load("climate_text")
SMALL = {"width": 32, "blocks": 1, "heads": 2, "channels": "data"}
MODEL: dict[str, Any] = {
    **{"climate_encoder": "prithvi", "random_init": True, "prithvi": SMALL, "freeze_encoder": False},
    "max_climate_tokens": 36,
}


def config_of(prithvi: dict[str, Any], **data: Any) -> settings.RunConfig:
    return small_config({**MODEL, "prithvi": SMALL | prithvi}, **data)


def test_it_learns_from_names_that_the_published_weights_do_not_know(tmp_path: Path) -> None:
    """Departures from what is usual, as an import writes them. Twin: with the published channels they are refused."""
    whole = FAMILY.sources(config_of({}), Host()).train
    assert isinstance(whole, TrainSource)
    tree = tmp_path / "tree"
    shutil.copytree(whole.part.folder.parent, tree)
    about = json.loads((tree / "channels.json").read_text())
    names = [f"{name}_anomaly" for name in about["channels"]]
    (tree / "channels.json").write_text(json.dumps(about | {"channels": names, "set": None}))
    stats = json.loads((tree / "stats.json").read_text())
    for part in ("field", "climatology"):
        stats[part]["names"] = names
    (tree / "stats.json").write_text(json.dumps(stats))
    there = {"demo": None, "train_path": str(tree / "train"), "val_path": str(tree / "val")}
    with pytest.raises(DataError, match="lacks the channels"):
        loop.train(FAMILY, config_of({"channels": "merra2-160"}, **there), tmp_path / "refused", quiet=True)
    run = tmp_path / "run"
    result = loop.train(FAMILY, config_of({}, **there), run, quiet=True)
    assert result is not None
    model = ClimateTextFusion.from_pretrained(run)
    assert isinstance(model.encoder, PrithviEncoder)
    assert (model.encoder.shape.channels, model.encoder.shape.static) == (8, 8)
    fresh = open_encoder(ModelConfig.model_validate(MODEL), FieldFacts(8, 2, 4))
    moved = {
        name for name, value in fresh.state_dict().items() if not torch.equal(value, model.encoder.state_dict()[name])
    }
    assert "patch_embedding.proj.weight" in moved


def test_its_size_follows_from_the_data() -> None:
    for channels, static in ((6, 4), (160, 2)):
        encoder = open_encoder(ModelConfig.model_validate(MODEL), FieldFacts(channels, 2, static))
        assert isinstance(encoder, PrithviEncoder)
        assert encoder.patch_embedding.proj.weight.shape[1] == 2 * channels
        assert encoder.patch_embedding_static.proj.weight.shape[1] == channels + static + 4
        assert sum(p.numel() for p in encoder.parameters()) == parameter_count(encoder.shape)


def test_trained_weights_say_their_channels() -> None:
    with pytest.raises(ConfigError, match="channels data goes with random_init; trained weights have channels of"):
        configuration.build(ModelConfig, {"encoder_path": "a.pt", "prithvi": {"channels": "data"}})
