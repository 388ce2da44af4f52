"""`data.departures`: what an encoder reads is how far a field departs from its climatology."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from climate_rows import small_config

from sensorium import families
from sensorium.data.fields import tree
from sensorium.engine import loop
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.data import TrainSource
from sensorium.families.climate_text.model import ClimateTextFusion

FAMILY = families.load("climate_text")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up weather as a tree of our own."""
    train = FAMILY.sources(small_config({}), Host()).train
    assert isinstance(train, TrainSource)
    copy = tmp_path_factory.mktemp("data") / "tree"
    shutil.copytree(train.part.folder.parent, copy)
    return copy


def at(root: Path) -> dict[str, Any]:
    return {"demo": None, "train_path": str(root / "train"), "val_path": str(root / "val")}


def test_numbers_that_the_encoder_reads(root: Path) -> None:
    """Of all fields together their mean is 0 and their spread 1, channel by channel. Twin: fields as they are."""
    departing, plain = (
        FAMILY.sources(small_config({}, **at(root), departures=on), Host()).train for on in (True, False)
    )
    assert isinstance(departing, TrainSource)
    part, scalers = departing.part, departing.inputs.scalers
    samples = [part.sample(number) for number in range(len(part.entries))]
    raw = torch.stack([one.field - torch.as_tensor(one.climatology) for one in samples])
    rows = [samples[0].names.index(name) for name in part.names]
    read = torch.stack([torch.as_tensor(departing.example(number, 0)["field"]) for number in range(len(samples))])
    for channel, row in enumerate(rows):
        values = raw[:, :, row].double()
        wanted = (values - values.mean()) / values.std(correction=0)
        torch.testing.assert_close(read[:, :, channel].double(), wanted, rtol=1e-3, atol=1e-3)
    assert scalers.departure.names == part.names
    assert (torch.as_tensor(plain.example(0, 0)["field"]) - read[0]).abs().max() > 0.1
    for name in ("climatology", "static"):
        assert torch.equal(torch.as_tensor(plain.example(0, 0)[name]), torch.as_tensor(departing.example(0, 0)[name]))


def test_a_trained_model_reads_them_too(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop.train(FAMILY, small_config({}, **at(root), departures=True), run, quiet=True)
    model = ClimateTextFusion.from_pretrained(run)
    first = tree.read_index(root / "val")[0]
    assert isinstance(model.answer(root / "val" / first.climate_file, first.text), str)
    field = tree.load(root / "val" / first.climate_file)
    with pytest.raises(DataError, match=r"has no climatology, which data\.departures is about"):
        model.answer(field, first.text)
    follows = FAMILY.sources(small_config({"encoder_path": str(run)}, **at(root)), Host())
    assert isinstance(follows.train, TrainSource)
    assert follows.train.inputs.scalers.departure.names == follows.train.part.names
    copy = tmp_path / "tree"
    shutil.copytree(root, copy)
    without_climatology(copy / "val/index.json")
    with pytest.raises(DataError, match=r"val/climate_\d+\.pt: has no climatology"):
        FAMILY.sources(small_config({"encoder_path": str(run)}, **at(copy)), Host())
    plain = tmp_path / "plain"
    loop.train(FAMILY, small_config({}, **at(root)), plain, quiet=True)
    with pytest.raises(ConfigError, match="the encoder's weights read fields as they are; leave it out"):
        FAMILY.sources(small_config({"encoder_path": str(plain)}, **at(root), departures=True), Host())


def without_climatology(index: Path) -> None:
    """Of all entries but the first."""
    entries = json.loads(index.read_text())
    for one in entries[1:]:
        del one["climatology_file"]
    index.write_text(json.dumps(entries))


def test_a_channel_that_files_lack_departs_by_nothing(root: Path) -> None:
    """Twin: unless it may be filled, it is refused."""
    names = list(json.loads((root / "channels.json").read_text())["channels"])
    wanted = {**at(root), "departures": True, "variables": [*names, "Z700"]}
    found = FAMILY.sources(small_config({}, **wanted, fill_missing="mean"), Host()).train
    field = torch.as_tensor(found.example(0, 0)["field"])
    assert field.shape[1] == len(names) + 1
    assert not field[:, -1].any()
    assert field[:, :-1].flatten(2).any(2).all()
    with pytest.raises(DataError, match="lacks the channels Z700"):
        FAMILY.sources(small_config({}, **wanted), Host()).train.example(0, 0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_field_needs_its_climatology(root: Path, tmp_path: Path, split: str) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(root, copy)
    without_climatology(copy / split / "index.json")
    with pytest.raises(DataError, match=rf"{split}/climate_\d+\.pt: has no climatology, which data.departures is"):
        loop.train(FAMILY, small_config({}, **at(copy), departures=True), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
