"""Strict configuration: every problem at once, every format alike, precedence, resume rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TOY, toy_config

from sensorium import config, families
from sensorium.engine import settings
from sensorium.errors import ConfigError


def test_all_problems_at_once_with_suggestions() -> None:
    wrong = {
        "train": {"batchsize": 3, "precision": "fp8"},
        "optim": {"lr": -1, "batch_size": 3},
        "modle": {},
        "model": {"dropout": "much"},
    }
    with pytest.raises(ConfigError) as caught:
        toy_config(wrong)
    text = str(caught.value)
    assert text.startswith("configuration: 6 problems")
    assert "train.batchsize: unknown key; did you mean 'batch_size'?" in text
    assert "optim.batch_size: unknown key; did you mean 'train.batch_size'?" in text
    assert "modle: unknown key; did you mean 'model'?" in text
    assert "optim.lr: input should be greater than 0 (found -1)" in text
    assert "train.precision: input should be 'fp32', 'bf16' or 'fp16' (found 'fp8')" in text
    assert "model.dropout" in text


def test_sections_of_any_name_are_checked_too_and_no_section_is_recited() -> None:
    wrong = {
        "data": {"sets": {"mine": {"redaer": "coco"}}},
        "model": {"image_size": 30},
    }
    with pytest.raises(ConfigError) as caught:
        settings.resolve(families.load("interaction"), "tiny", wrong)
    assert str(caught.value).split("\n")[1:] == [
        "  model: model.image_size must be a multiple of model.patch (8)",
        "  data.sets.mine.redaer: unknown key; did you mean 'reader'?",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "# words\noptim:\n  lr: 5e-5\ntrain: {batch_size: 16}\n"),
        ("a.json", '{"optim": {"lr": 5e-5}, // a comment\n "train": {"batch_size": 16,},}'),
        ("a.toml", "[optim]\nlr = 5e-5\n[train]\nbatch_size = 16\n"),
    ],
)
def test_every_format_reads_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    resolved = toy_config(config.load_file(tmp_path / name))
    assert resolved.optim.lr == 5e-5
    assert resolved.train.batch_size == 16


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.yaml", "a: 1\na: 2\n", "given twice"),
        ("a.yaml", "- 1\n- 2\n", "found a list"),
        ("a.json", "{", "a.json"),
        ("a.json", '{"train": {"steps": 1, "steps": 2}}', "steps"),
        ("a.ini", "", "unknown kind"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        config.load_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("# é\ntrain: {steps: 3}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a\.yaml: is not UTF-8 text \(byte 2\)"):
        config.load_file(tmp_path / "a.yaml")


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        config.load_file(Path("nowhere.yaml"))


def test_overrides_are_typed_and_nested() -> None:
    parsed = config.parse_overrides(["optim.lr=1e-4", "track.wandb=off", "model.width=4", "data.broken=[1, 2]"])
    assert parsed == {
        "optim": {"lr": 1e-4},
        "track": {"wandb": "off"},
        "model": {"width": 4},
        "data": {"broken": [1, 2]},
    }
    for bad in ("optim.lr", "=3", "optim..lr=3", "a=: :"):
        with pytest.raises(ConfigError, match=r"override|value cannot be read"):
            config.parse_overrides([bad])


def test_later_layers_win_and_a_length_replaces_the_other() -> None:
    resolved = settings.resolve(TOY, "tiny", {"optim": {"lr": 0.5}}, {"optim": {"lr": 0.25}, "train": {"epochs": 2}})
    assert resolved.optim.lr == 0.25
    assert (resolved.train.epochs, resolved.train.steps) == (2.0, None)
    with pytest.raises(ConfigError, match="no preset 'huge'; it has: tiny"):
        settings.resolve(TOY, "huge")
    with pytest.raises(ConfigError, match="exactly one"):
        config.build(
            settings.config_class(TOY), {"family": "toy", "preset": "tiny", "train": {"epochs": 2, "steps": 3}}
        )


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 3}])
def test_a_stored_configuration_resolves_to_itself(length: dict[str, int]) -> None:
    """What `resume` does: the stored run over its preset; the length that is null there must not win."""
    stored = toy_config({"train": length})
    assert settings.resolve(TOY, "tiny", config.dump(stored)) == stored
    longer = settings.resolve(TOY, "tiny", config.dump(stored), {"train": {"epochs": 9}})
    assert (longer.train.epochs, longer.train.steps) == (9.0, None)


def test_two_lengths_at_once_are_refused() -> None:
    for layers in (
        [{"train": {"epochs": 3, "steps": 100}}],
        [{"train": {"steps": 9}}, {"train": {"epochs": 3, "steps": 9}}],
    ):
        with pytest.raises(ConfigError, match="exactly one"):
            settings.resolve(TOY, "tiny", *layers)


def test_a_value_in_the_place_of_a_section_is_refused() -> None:
    """What `sensorium resume RUN train=5` asks for."""
    with pytest.raises(ConfigError, match=r"train: .*\(found 5\)"):
        settings.resolve(TOY, "tiny", config.dump(toy_config()), {"train": 5})


def test_a_configuration_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml: made for family 'pmg', not 'toy'"):
        settings.resolve(TOY, "tiny", {"family": "pmg"}, origin="a.yaml")
    assert settings.resolve(TOY, "tiny", {"family": "toy"}) == toy_config()


@pytest.mark.parametrize(
    "text", ["1e5", "1.5", "1_000", "0x1f", "off", "yes", "true", "null", "~", "12:30:45", "", "é"]
)
def test_a_text_that_looks_like_something_else_stays_a_text(tmp_path: Path, text: str) -> None:
    stored = toy_config({"track": {"tensorboard_dir": text}, "optim": {"lr": 5e-5}})
    (tmp_path / "config.yaml").write_text(config.dump_yaml(stored), encoding="utf-8")
    assert config.build(type(stored), config.load_file(tmp_path / "config.yaml")) == stored


def test_dump_and_build_are_inverse_and_the_digest_sees_every_value() -> None:
    first = toy_config()
    assert config.build(type(first), config.dump(first)) == first
    assert config.digest(first) != config.digest(toy_config({"model": {"dropout": 0.21}}))


def test_resume_may_change_only_what_is_not_learned() -> None:
    stored = toy_config()
    config.check_resume(stored, toy_config({"train": {"steps": 99}, "loader": {"workers": 2}}))
    with pytest.raises(ConfigError) as caught:
        config.check_resume(stored, toy_config({"seed": 1, "model": {"width": 9}, "train": {"steps": 99}}))
    text = str(caught.value)
    assert "seed: 0 in the run, 1 asked for" in text
    assert "model.width: 8 in the run, 9 asked for" in text
    assert "train.steps:" not in text
