"""The processed JSON, and what a sample becomes: every problem at once, both spellings, nothing by position."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium import families
from sensorium.data.tastes import Places, read_styles, read_tastes
from sensorium.engine import settings
from sensorium.engine.contract import Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg import encoders
from sensorium.families.pmg.config import ToyConfig
from sensorium.families.pmg.data import EvalSource, TrainSource
from sensorium.families.pmg.toy import write_toy
from sensorium.files import write_json

FAMILY = families.load("pmg")


def world(folder: Path, **changes: Any) -> Path:
    """A made-up world as files of one's own."""
    write_toy(folder, ToyConfig(train_users=3, held_users=2, samples=2, **changes))
    return folder


def config_of(folder: Path, **changes: Any) -> RunConfig:
    data = {
        "toy": None,
        "image_size": 64,
        **{f"{split}_json": str(folder / f"{split}.json") for split in ("train", "val")},
    }
    return settings.resolve(FAMILY, "tiny", {"data": data, "evaluate": {"test": False}}, changes)


def opened(config: RunConfig, said: list[str] | None = None) -> Sources:
    return FAMILY.sources(config, Host(say=(said if said is not None else []).append))


def changed(folder: Path, split: str, number: int, **values: Any) -> None:
    path = folder / f"{split}.json"
    content = json.loads(path.read_text())
    content[number] = {key: value for key, value in (content[number] | values).items() if value is not ...}
    write_json(path, content)


def test_both_spellings_are_the_same_samples(tmp_path: Path) -> None:
    world(tmp_path)
    before = read_tastes(tmp_path / "train.json", Places())
    for number, one in enumerate(before):
        user = one.user
        changed(tmp_path, "train", number, worker_id=user, user_id=..., worker_style=one.style, user_style=...)
    assert read_tastes(tmp_path / "train.json", Places()) == before
    changed(tmp_path, "train", 0, worker_id=7)
    changed(tmp_path, "train", 1, worker_id=7.0)
    assert [one.user for one in read_tastes(tmp_path / "train.json", Places())[:2]] == ["7", "7"]


def test_all_problems_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    world(tmp_path)
    item = {"item_id": "x", "caption": "an x", "image_path": "images/x.png"}
    changed(tmp_path, "train", 0, worker_id="7")
    changed(tmp_path, "train", 1, user_id=...)
    changed(tmp_path, "train", 2, history_items_info=[])
    changed(tmp_path, "train", 3, target_item_info={"item_id": "x", "caption": 3}, hisory=1)
    changed(tmp_path, "train", 4, history_item_ids=["other"], target_item_info=item)
    changed(tmp_path, "train", 5, user_id=[1], target_item_info={**item, "item_id": "y"}, target_item_id="x")
    with pytest.raises(DataError) as error:
        read_tastes(tmp_path / "train.json", Places())
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'train.json'}: {len(lines) - 1} problems"
    for line in (
        "object 0, user_id or worker_id: expected exactly one of them (found 2)",
        "object 1, user_id or worker_id: expected exactly one of them (found 0)",
        "object 2, history_items_info: expected a list of at least one picture (found list [])",
        "object 3, target_item_info.caption: expected text (found int 3)",
        "object 3, target_item_info.image_path: missing",
        "object 4, history_item_ids: are not those of history_items_info, in the same order",
        "object 4, target_item_info.item_id: is 'x', but target_item_id is",
        "object 5, user_id: expected text or a number (found list [1])",
        "object 5, target_item_info.item_id: is 'y', but target_item_id is 'x'",
    ):
        assert any(one.strip().startswith(line) for one in lines), line
    assert any("object 3, hisory: unknown key; known are history_item_ids" in one for one in lines)


def test_problems_of_all_files_are_said_at_once(tmp_path: Path) -> None:
    world(tmp_path)
    for split in ("train", "val"):
        changed(tmp_path, split, 0, target_item_info=3)
    with pytest.raises(DataError) as error:
        opened(config_of(tmp_path))
    assert str(error.value).count("target_item_info: expected an object (found int 3)") == 2
    with pytest.raises(ConfigError, match=r"data\.train_json is missing"):
        opened(settings.resolve(FAMILY, "tiny", {"data": {"toy": None}}))


def test_pictures_that_moved_are_found_by_their_prefix(tmp_path: Path) -> None:
    world(tmp_path / "new")
    tastes = json.loads((tmp_path / "new" / "train.json").read_text())
    for taste in tastes:
        for item in (*taste["history_items_info"], taste["target_item_info"]):
            item["image_path"] = f"/gone/for/good/{item['image_path']}"
    write_json(tmp_path / "old.json", tastes)
    with pytest.raises(DataError, match=r'/images is not there; set data\.path_prefix: \{"/gone/for/good/images": "wh'):
        read_tastes(tmp_path / "old.json", Places())
    found = read_tastes(tmp_path / "old.json", Places(prefixes={"/gone/for/good": str(tmp_path / "new")}))
    assert all(one.target.path.is_file() for one in found)
    assert read_tastes(tmp_path / "old.json", Places(prefixes={"/gone/for/good": str(tmp_path / "new")}))
    with pytest.raises(DataError, match=r"/gone/for/goo"):  # a prefix is whole folders
        read_tastes(tmp_path / "old.json", Places(prefixes={"/gone/for/goo": str(tmp_path / "new")}))


def test_styles_come_beside_the_samples(tmp_path: Path) -> None:
    world(tmp_path)
    changed(tmp_path, "train", 0, user_style=...)
    write_json(tmp_path / "one.json", [{"worker": "user 0", "style": "round"}])
    write_json(tmp_path / "other.json", {"user 0": {"topic": "user 0", "keywords": ["round", "red"]}})
    styles = [read_styles(tmp_path / name) for name in ("one.json", "other.json")]
    assert styles == [{"user 0": "round"}, {"user 0": "round, red"}]
    found = read_tastes(tmp_path / "train.json", Places(), styles[0])
    assert [one.style for one in found[:2]] == ["round", "red"]
    write_json(tmp_path / "bad.json", [{"style": "x"}, {"user": "7"}])
    with pytest.raises(DataError, match=r"(?s)entry 0: expected user.*entry 1"):
        read_styles(tmp_path / "bad.json")


def test_a_broken_picture_is_never_trained_on(tmp_path: Path) -> None:
    world(tmp_path)
    target = read_tastes(tmp_path / "train.json", Places())[0].target.path
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=str(target)):
        opened(config_of(tmp_path))
    skipping = config_of(tmp_path, loader={"bad_samples": "skip"})
    found = opened(skipping).train
    with pytest.raises(DataError, match=f"{target.name}: .*"):
        found.example(0, 0)
    target.write_bytes(whole)
    assert opened(skipping).train.fingerprint != found.fingerprint


def test_a_sample_without_caption_never_reaches_a_batch(tmp_path: Path) -> None:
    world(tmp_path)
    content = json.loads((tmp_path / "train.json").read_text())
    content[0]["target_item_info"]["caption"] = "  "
    content[1]["history_items_info"][0]["item_id"] = content[1]["target_item_id"]
    content[1]["history_item_ids"][0] = content[1]["target_item_id"]
    write_json(tmp_path / "train.json", content)
    found = opened(config_of(tmp_path)).train
    with pytest.raises(DataError, match=r"object 0: picture .* has an empty caption"):
        found.example(0, 0)
    with pytest.raises(DataError, match=r"object 1: the target .* stands in its own history"):
        found.example(1, 0)
    assert found.example(2, 0)["latents"].shape == (4, 8, 8)


def test_the_cache_goes_by_content_and_not_by_position(tmp_path: Path) -> None:
    """The same sample under another number, in another file, is the same; with other bases, sizes or cuts it is not."""
    world(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    content = json.loads((tmp_path / "b" / "train.json").read_text())
    write_json(tmp_path / "b" / "train.json", content[::-1])
    one, other = (opened(config_of(tmp_path / name)).train for name in "ab")
    first, last = one.example(0, 5), other.example(len(other) - 1, 5)
    assert torch.equal(first["latents"], last["latents"])
    assert torch.equal(first["caption_states"], last["caption_states"])
    assert not torch.equal(first["latents"], other.example(0, 5)["latents"])  # negative twin
    cropped = opened(config_of(tmp_path / "a", data={"resize": "crop"})).train
    larger = opened(config_of(tmp_path / "a", data={"image_size": 128})).train
    assert isinstance(one, TrainSource)
    assert isinstance(cropped, TrainSource)
    assert isinstance(larger, TrainSource)
    names = {source.split.frozen.pictures.namespace for source in (one, cropped, larger)}
    assert len(names) == 3
    assert larger.example(0, 5)["latents"].shape == (4, 16, 16)


def test_a_full_cache_needs_no_vae_and_no_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path)
    before = opened(config_of(tmp_path)).train.example(0, 1)

    def never(*_: object) -> None:
        raise AssertionError("opened")

    for name in ("open_vae", "open_text_encoder"):
        monkeypatch.setattr(encoders, name, never)
    again = opened(config_of(tmp_path)).train.example(0, 1)
    assert torch.equal(before["latents"], again["latents"])
    with pytest.raises(AssertionError, match="opened"):  # negative twin
        opened(config_of(tmp_path, data={"resize": "crop"}))


def test_noise_of_validation_follows_from_the_number_alone(tmp_path: Path) -> None:
    world(tmp_path)
    val = opened(config_of(tmp_path)).val
    assert isinstance(val, EvalSource)
    one, again = val.example(0, 1), val.example(0, 2)
    assert all(torch.equal(one[name], again[name]) for name in ("latents", "noise", "timestep"))
    assert not torch.equal(one["noise"], val.example(1, 1)["noise"])
    quarters = (one["timestep"] // 250).tolist()
    assert quarters == [0, 1, 2, 3]
    assert val.partners is not None
    users = [taste.user for taste in val.split.tastes]
    for number, partner in enumerate(val.partners):
        asked = [user for user, ids in zip(users, val.split.questions, strict=True) if ids == partner]
        assert asked
        assert users[number] not in asked


@pytest.mark.parametrize("kind", ["item", "user"])
def test_a_wrong_pair_is_never_of_the_same_user(tmp_path: Path, kind: str) -> None:
    world(tmp_path)
    train = opened(config_of(tmp_path, model={"negative": {"weight": 1.0, "kind": kind}})).train
    assert isinstance(train, TrainSource)
    own = [train.split.questions[0], train.split.questions[1]]  # of user 0
    drawn = torch.zeros(4, 8, 8)
    mine = {id(taste.target): train.split.frozen.latents(taste.target.path, drawn) for taste in train.split.tastes[:2]}
    for seed in range(20):
        found = train.example(0, seed)
        if kind == "user":
            assert found["wrong_ids"] not in own
        else:
            assert all((found["wrong_latents"] - one).abs().mean() > 1e-6 for one in mine.values())
    assert "wrong_ids" not in opened(config_of(tmp_path)).train.example(0, 0)
    write_json(tmp_path / "train.json", json.loads((tmp_path / "train.json").read_text())[:2])
    with pytest.raises(DataError, match="all samples are of one"):
        opened(config_of(tmp_path, model={"negative": {"weight": 1.0}}))


def test_prompts_may_be_padded_to_the_cap(tmp_path: Path) -> None:
    world(tmp_path)
    train = opened(config_of(tmp_path, model={"pad_to": "max", "max_sequence_length": 100})).train
    assert train.collate([train.example(0, 0)])["input_ids"].shape == (1, 98)
    short = opened(config_of(tmp_path)).train
    assert short.collate([short.example(0, 0)])["input_ids"].shape[1] < 98


def test_a_small_part_can_be_trained_on(tmp_path: Path) -> None:
    world(tmp_path)
    said: list[str] = []
    train = opened(config_of(tmp_path, data={"limit_train": 2}), said).train
    assert len(train) == 2
    assert any(line.startswith("train: 2 samples of ") for line in said)


def test_what_would_train_nothing_is_refused(tmp_path: Path) -> None:
    world(tmp_path)
    with pytest.raises(ConfigError, match=r"num_image_prompt is 0: nothing would be trained"):
        opened(config_of(tmp_path, model={"num_image_prompt": 0}))
    with pytest.raises(ConfigError, match=r"conditioning is keywords: nothing would be trained"):
        opened(config_of(tmp_path, model={"conditioning": "keywords"}))
    for wrong in ({"soft_dropout": 0.1, "conditioning": "soft_only"}, {"style_dropout": 0.1}, {"prompt_template": "x"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config_of(tmp_path, model=wrong)
    with pytest.raises(ConfigError, match="must be a multiple of 64"):
        config_of(tmp_path, data={"image_size": 100})
