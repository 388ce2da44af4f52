"""Training from a native manifest: groups are users, ``time`` their order; and stickers that teach no taste."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import history_trees
import pytest
import torch

from sensorium import families
from sensorium.data import manage, processed, readers
from sensorium.data.history_build import compose
from sensorium.data.readers import ser30k
from sensorium.engine import settings
from sensorium.engine.contract import Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError

FAMILY = families.load("pmg")


@pytest.fixture(scope="module")
def stickers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SER30K in small, as a manifest and as processed samples beside it."""
    folder = tmp_path_factory.mktemp("stickers")
    options = ser30k.Options(split="honest", samples=1)
    root = history_trees.ser30k(folder / "raw", themes=40, stickers=4)
    dataset, facts = compose(ser30k.gather(root, options), options)
    manage.import_dataset(dataset, folder / "native")
    processed.write_processed(dataset, facts, folder / "json", "user")
    published = compose(ser30k.gather(root, ser30k.Options(samples=1)), ser30k.Options())
    processed.write_processed(*published, folder / "published", "user")
    return folder


def config_of(**data: Any) -> RunConfig:
    changes = {"data": {"toy": None, "image_size": 64, "name": "SER", **data}, "evaluate": {"test": False}}
    return settings.resolve(FAMILY, "tiny", changes)


def opened(said: list[str], **data: Any) -> Sources:
    return FAMILY.sources(config_of(**data), Host(say=said.append))


def test_a_manifest_trains_as_its_processed_samples_do(stickers: Path) -> None:
    said: list[str] = []
    native = opened(said, manifest=str(stickers / "native"))
    files = {f"{split}_json": str(stickers / "json" / f"{split}.json") for split in ("train", "val", "test")}
    plain = opened([], **files)
    assert native.train.fingerprint == plain.train.fingerprint
    assert native.val is not None
    assert plain.val is not None
    assert len(native.val) == len(plain.val) > 0
    one, other = native.train.example(1, 3), plain.train.example(1, 3)
    assert torch.equal(one["latents"], other["latents"])
    assert one["ids"] == other["ids"]
    assert not any("no taste can be learned" in line for line in said)
    longer = opened([], manifest=str(stickers / "native"), limit_train=2)
    assert len(longer.train) == 2


def test_time_decides_the_history_and_not_the_order_of_lines(stickers: Path, tmp_path: Path) -> None:
    root = stickers / "native"
    (tmp_path / "image").symlink_to(root / "image")
    lines = (root / "manifest.jsonl").read_text().splitlines()
    (tmp_path / "manifest.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    (tmp_path / "dataset.json").write_text((root / "dataset.json").read_text())
    from sensorium.families.pmg.sources import read_splits

    found, turned = (read_splits(settings_of(folder)) for folder in (root, tmp_path))
    targets = {one.user: (one.target.id, [p.id for p in one.history]) for one in found["train"]}
    assert targets == {one.user: (one.target.id, [p.id for p in one.history]) for one in turned["train"]}
    again = [json.loads(line) for line in lines]
    for entry in again:
        entry["time"] = -entry["time"]  # negative twin
        entry.get("meta", {}).pop("history", None)
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, again)) + "\n")
    backwards = read_splits(settings_of(tmp_path))["train"]
    assert {one.user: (one.target.id, [p.id for p in one.history]) for one in backwards} != targets


def settings_of(folder: Path) -> Any:
    return config_of(manifest=str(folder)).data  # type: ignore[attr-defined]


def test_what_has_no_effect_with_a_manifest_is_refused(stickers: Path) -> None:
    for wrong, reason in (
        ({"train_json": "a"}, "train_json has no effect with manifest"),
        ({"image_dir": "a"}, "image_dir has no effect with manifest"),
        ({"path_prefix": {"a": "b"}}, "path_prefix has no effect with manifest"),
        ({"toy": {}}, "manifest is given"),
    ):
        with pytest.raises(ConfigError, match=reason):
            config_of(manifest=str(stickers / "native"), **wrong)
    with pytest.raises(ConfigError, match="history has no effect without manifest"):
        config_of(train_json="a", history=3)
    with pytest.raises(DataError, match="no group has 10 items"):
        opened([], manifest=str(stickers / "native"), history=9)


def test_stickers_of_other_themes_teach_no_taste(stickers: Path) -> None:
    said: list[str] = []
    opened(said, train_json=str(stickers / "published" / "train.json"))
    assert any("targets are stickers of other themes than the histories" in line for line in said)
    assert readers.read("pmg_json", stickers / "published").items
