"""The table of the pmg guide's keys, walked in both directions: what a file may say, and where it arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml
from pmg_scripts import FOLDER, modules

from sensorium import config, families
from sensorium.engine import settings
from sensorium.errors import ConfigError
from sensorium.families.pmg import drawing

CONFIGS = ("flickr", "pog", "ser")
# Of the guide's own text.
WRITTEN = {
    "dataset.name": "FLICKR",
    "dataset.train_json": "./datasets/FLICKR/processed_dataset/train.json",
    "dataset.val_json": "./datasets/FLICKR/processed_dataset/val.json",
    "model.stable_diffusion": "runwayml/stable-diffusion-v1-5",
    "model.llama": "meta-llama/Llama-2-7b-chat-hf",
    "model.clip": "./checkpoints/clip-vit-base-patch32",
    "training.num_train_epochs": 3,
    "training.train_batch_size": 6,
    "training.gradient_accumulation_steps": 4,
    "training.learning_rate": 5e-6,
    "training.mixed_precision": "bf16",
    "training.save_steps": 1000,
    "training.validation_steps": 100,
    "pmg.num_image_prompt": 2,
    "pmg.num_prefix_prompt": 2,
    "pmg.max_sequence_length": 600,
    "pmg.image_size": 512,
}
# Other values than the usual ones, for keys whose value follows from no bound or choice.
OTHER: dict[str, Any] = {
    "dataset.path_prefix": {"/old": "/new"},
    "dataset.toy": {"samples": 5},
    "pmg.weights": {"soft": 2.0},
    "pmg.negative": {"weight": 0.5},
    "pmg.prompt_template": "{captions}?",
    "pmg.image_size": 576,
    "pmg.max_sequence_length": 500,
    "inference.alpha": 0.5,
    "inference.preference_weights": [1.0, 2.0],
    "training.adam_beta1": 0.8,
    "training.adam_beta2": 0.99,
}
_NO_FILES = {f"dataset.{split}_json": None for split in ("train", "val", "test")}
NEEDS: dict[str, dict[str, Any]] = {
    "dataset.toy": _NO_FILES,
    "dataset.manifest": _NO_FILES,
    "dataset.history": {**_NO_FILES, "dataset.manifest": "elsewhere"},
    "training.style_dropout": {"pmg.conditioning": "target_soft_style"},
    "inference.alpha": {"inference.select": True},
    "inference.weighting": {"inference.preference_weights": [1.0, 2.0]},
}
"""Keys that mean nothing without others."""
# No setting of a run or of drawing: how a run begins, judges of pictures.
ELSEWHERE = {"training.resume_from", "metrics.weights_dir"}


@pytest.fixture(scope="module")
def guide() -> Iterator[ModuleType]:
    with modules() as load:
        yield load("guide_keys")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(guide: ModuleType, changes: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return guide.GuideConfig.read(FOLDER / "configs/flickr_train.yaml", tree)


def resolved(guide: ModuleType, changes: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run, and of drawing, by dotted name."""
    found = read(guide, changes)
    run = settings.resolve(families.load("pmg"), guide.PRESET, found.settings(world=1))
    drawn = config.flat(drawing.read_how(found.drawing()))
    return {**config.flat(run), **{f"generate.{name}": value for name, value in drawn.items()}}


def keys_of(guide: ModuleType) -> list[str]:
    """All that a file may say."""
    sections = guide.Keys.model_fields
    return [f"{name}.{key}" for name, info in sections.items() for key in info.annotation.model_fields]


def another(guide: ModuleType, key: str, now: Any) -> Any:
    """Another value of a key."""
    if key in OTHER:
        return OTHER[key]
    section, _, name = key.partition(".")
    kind = guide.Keys.model_fields[section].annotation.model_fields[name].annotation
    choices = [one for part in (kind, *get_args(kind)) for one in get_args(part) if isinstance(one, str)]
    if choices:
        return next(one for one in choices if one != now and one != "soft_only")
    if isinstance(now, bool):
        return not now
    if isinstance(now, int | float):
        return (now / 2 or 0.5) if isinstance(now, float) else now + 1
    numbers = [one for one in (kind, *get_args(kind)) if one in (int, float)]
    return numbers[0](3) if numbers else "elsewhere"


def test_the_shipped_files_hold_the_guides_values(guide: ModuleType) -> None:
    usual = guide.GuideConfig(guide.Keys())
    for name in CONFIGS:
        content = yaml.safe_load((FOLDER / f"configs/{name}_train.yaml").read_text())
        said = {f"{section}.{key}": value for section, keys in content.items() for key, value in keys.items()}
        for key, value in WRITTEN.items():
            assert said[key] == (value.replace("FLICKR", name.upper()) if isinstance(value, str) else value), key
        found = guide.GuideConfig.read(FOLDER / f"configs/{name}_train.yaml")
        assert found.folder == Path("outputs") / name
        for key in said:  # and what is written there is what it would be without
            if not key.startswith("dataset.") and key != "training.output_dir":
                assert found.value(key) == usual.value(key), key
    assert usual.folder == Path("outputs/flickr")
    assert usual.samples("train") == "datasets/FLICKR/processed_dataset/train.json"
    assert usual.samples("test") is None  # not there


def test_every_key_is_in_the_table_and_arrives(guide: ModuleType) -> None:
    """From the file to the run: no key is accepted and unused."""
    accepted = keys_of(guide)
    assert sorted(accepted) == sorted({**guide.SETTINGS, **guide.PARTS})
    base = resolved(guide, {})
    for key in accepted:
        if key in ELSEWHERE:
            continue
        value = another(guide, key, read(guide, {}).value(key))
        found = resolved(guide, {**NEEDS.get(key, {}), key: value})
        places = {name for name in found.keys() | base.keys() if found.get(name) != base.get(name)}
        ours = guide.SETTINGS[key][0] if key in guide.SETTINGS else guide.PARTS[key][2]
        if key in ("dataset.data_dir", "dataset.processed_dir"):  # where the files are not named
            assert not places
            bare = guide.GuideConfig(guide.Keys(dataset={key.partition(".")[2]: value}))
            assert str(bare.samples("train")).startswith("elsewhere/")
            continue
        assert any(place == ours or place.startswith(f"{ours}.") for place in places), (key, value, places)
    assert read(guide, {"model.clip": "mine"}).value("model.clip") == "mine"


def test_every_setting_of_the_family_has_a_key(guide: ModuleType) -> None:
    """From the run to the file."""
    family = families.load("pmg")
    reached = {ours for ours, _ in guide.SETTINGS.values()} | {ours for *_, ours in guide.PARTS.values()}
    for section, model in (("model", family.model), ("data", family.data)):
        assert not [name for name in model.model_fields if f"{section}.{name}" not in reached]
    known = {name for name, _ in config.walk(settings.config_class(family))}
    known |= {f"generate.{name}" for name in drawing.DrawConfig.model_fields}
    parents = {name.rpartition(".")[0] for name in known}
    assert not {ours for ours in reached if ours and ours not in known | parents}


def test_other_keys_are_refused_all_at_once(guide: ModuleType) -> None:
    with pytest.raises(ConfigError) as caught:
        read(guide, {"training.learnin_rate": 1, "pmg.image_siz": 512, "training.train_batch_size": 0})
    text = str(caught.value)
    assert "3 problems" in text
    assert "training.learnin_rate: unknown key; did you mean 'learning_rate'?" in text
    assert "pmg.image_siz: unknown key; did you mean 'image_size'?" in text
    assert "training.train_batch_size: input should be greater than or equal to 1" in text
    with pytest.raises(ConfigError, match="optimizer: unknown key"):
        guide.GuideConfig.read(FOLDER / "configs/flickr_train.yaml", {"optimizer": {}})


def test_numbers_of_a_step_and_of_checkpoints(guide: ModuleType) -> None:
    found = read(guide, {})
    for world in (1, 4):
        assert found.settings(world)["train"]["batch_size"] == 24 * world
    base = resolved(guide, {})
    assert base["train.precision"] == "bf16"
    assert resolved(guide, {"training.mixed_precision": "no"})["train.precision"] == "fp32"
    assert base["schedule.warmup_fraction"] == 0.1
    assert base["checkpoint.milestones"] > 100_000
    assert resolved(guide, {"training.checkpoints_total_limit": 2})["checkpoint.milestones"] == 2
    assert json.dumps(base["track.tensorboard_dir"]) == '"outputs/flickr/logs"'


def test_errors_are_in_words_of_the_guide(guide: ModuleType) -> None:
    with pytest.raises(ConfigError) as caught, guide.in_words_of_the_guide():
        raise ConfigError("model.llm and data.image_size, not models.llm or model.llm_2; a seed, model.negative.weight")
    wanted = "model.llama and pmg.image_size, not models.llm or model.llm_2; a seed, pmg.negative.weight"
    assert str(caught.value) == wanted
