"""Frozen encoders look at a field once; what is kept is what they said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import loop, settings
from sensorium.engine.contract import Host, Sources
from sensorium.families.climate_text import token_cache
from sensorium.families.climate_text.data import EvalSource, TrainSource
from sensorium.families.climate_text.encoders import open_encoder
from sensorium.families.climate_text.sources import field_facts
from sensorium.families.climate_text.task import ClimateTextTask
from sensorium.families.climate_text.token_cache import TokenStore, key_of

pytest.importorskip("PrithviWxC", reason="prithviwxc is not installed (extra `climate`)")

FAMILY = families.load("climate_text")
CHANGES: dict[str, Any] = {
    "model": {
        **{"climate_encoder": "prithvi", "random_init": True, "prithvi": {"width": 32, "blocks": 1, "heads": 2}},
        "max_climate_tokens": 36,
    },
    "data": {"demo": {"num_samples": 8, "shape": [2, 160, 24, 24], "questions": 2}, "evaluation": {"answers": 2}},
    "train": {"epochs": 1, "batch_size": 4},
}


def config_of(**data: Any) -> settings.RunConfig:
    return settings.resolve(FAMILY, "tiny", configuration.merge(CHANGES, {"data": data}))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield FAMILY.sources(config_of(), Host())


@pytest.fixture(scope="module")
def live(cached: Sources) -> Sources:
    found = FAMILY.sources(config_of(cache=False), Host())
    assert isinstance(found.train, TrainSource)
    assert found.train.inputs.tokens is None
    return found


def test_channels_come_in_the_order_of_the_encoder(live: Sources, tmp_path: Path) -> None:
    """Whatever the order of the files. Twin: an encoder that takes any channels gets them as the files have them."""
    assert isinstance(live.train, TrainSource)
    tree = tmp_path / "tree"
    shutil.copytree(live.train.part.folder.parent, tree)
    for file in [*tree.rglob("climate_*.pt"), *tree.rglob("climatology_*.pt")]:
        torch.save(torch.load(file, weights_only=True).flip(-3), file)
    about = json.loads((tree / "channels.json").read_text())
    (tree / "channels.json").write_text(json.dumps(about | {"channels": about["channels"][::-1], "set": None}))
    there = {"demo": None, "train_path": str(tree / "train"), "val_path": str(tree / "val"), "cache": False}
    found = FAMILY.sources(config_of(**there), Host()).train
    for name in ("field", "climatology"):
        given, wanted = torch.as_tensor(found.example(0, 0)[name]), torch.as_tensor(live.train.example(0, 0)[name])
        torch.testing.assert_close(given, wanted)
    any_order = settings.resolve(FAMILY, "tiny", {"data": {**CHANGES["data"], **there}})
    other = FAMILY.sources(any_order, Host()).train
    given, wanted = (torch.as_tensor(one.example(0, 0)["field"]) for one in (other, live.train))
    torch.testing.assert_close(given.flip(-3), wanted)


def test_what_is_kept_is_what_the_encoder_says(cached: Sources, live: Sources) -> None:
    assert isinstance(live.train, TrainSource)
    encoder = open_encoder(config_of().model, field_facts(live.train.inputs, live.train.part))
    for ours, theirs in ((cached.train, live.train), (cached.val, live.val)):
        assert ours is not None
        assert theirs is not None
        numbers = range(len(ours))
        kept = ours.collate([ours.example(number, 7) for number in numbers])
        batch = theirs.collate([theirs.example(number, 7) for number in numbers])
        assert "field" not in kept
        with torch.no_grad():
            tokens, lat, lon = encoder.encode(batch)
        torch.testing.assert_close(kept["climate_tokens"], tokens, rtol=2e-3, atol=2e-3)
        assert (kept["climate_tokens"] - tokens.roll(1, 0)).abs().max() > 0.05  # twin: another field's
        assert torch.equal(kept["token_lat"], lat)
        assert torch.equal(kept["token_lon"], lon)
        assert torch.equal(kept["input_ids"], batch["input_ids"])
        assert torch.equal(kept["field_given"], batch["field_given"])


def test_losses_of_kept_and_live_fields_agree(cached: Sources, live: Sources) -> None:
    losses, sizes = [], []
    for found, changes in ((cached, {}), (live, {"cache": False})):
        config = config_of(**changes)
        torch.manual_seed(0)
        task = FAMILY.task(config, FAMILY.facts(config, found)).eval()
        assert isinstance(task, ClimateTextTask)
        sizes.append(sum(p.numel() for p in task.parameters()))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in sorted(task.named_parameters()):
                if "gate" in name:
                    parameter.fill_(0.5)
        source = found.val
        assert source is not None
        batch = source.collate([source.example(number, 0) for number in range(4)])
        state = {name: p for name, p in task.state_dict().items() if not name.startswith("model.encoder.")}
        losses.append((state, task, batch))
    kept, fresh = losses
    fresh[1].load_state_dict(kept[0], strict=False)
    with torch.no_grad():
        one, other = (task.compute_loss(batch) for _, task, batch in losses)
    assert float(one) == pytest.approx(float(other), rel=2e-3)
    assert sizes[0] < sizes[1]  # the encoder is no part of a task that trains on tokens


def test_a_second_start_encodes_nothing(cached: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("encoded again")

    assert isinstance(cached.train, TrainSource)
    assert isinstance(cached.train.inputs.tokens, TokenStore)
    monkeypatch.setenv("SENSORIUM_CACHE", str(cached.train.inputs.tokens.store.root))
    monkeypatch.setattr(token_cache.FieldEncoder, "encode", never)
    again = FAMILY.sources(config_of(), Host())
    assert isinstance(again.train, TrainSource)
    assert isinstance(again.train.inputs.tokens, TokenStore)
    with pytest.raises(AssertionError, match="encoded again"):  # twin: another averaging is another entry
        FAMILY.sources(settings.resolve(FAMILY, "tiny", CHANGES, {"model": {"max_climate_tokens": 4}}), Host())


def test_everything_that_the_encoder_gets_is_in_the_key(live: Sources) -> None:
    assert isinstance(live.train, TrainSource)
    climate = live.train.inputs.climate(live.train.part, 0)
    keys = {key_of(climate)}
    for name in token_cache._HASHED:
        value = torch.as_tensor(climate[name])
        changed = ~value if value.dtype == torch.bool else value + 0.5
        keys.add(key_of({**climate, name: changed}))
    assert len(keys) == 1 + len(token_cache._HASHED)
    assert key_of({**climate, "field_given": False}) in keys


def test_a_run_trains_on_kept_tokens(cached: Sources, tmp_path: Path) -> None:
    assert isinstance(cached.val, EvalSource)
    result = loop.train(FAMILY, config_of(), tmp_path / "run", quiet=True)
    assert result is not None
    assert result.metrics["perplexity"] > 1
    assert (tmp_path / "run/evaluation/test.json").is_file()
