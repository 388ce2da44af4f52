"""What a family draws while it trains: where it lies, what TensorBoard shows, and that training does not notice."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, ToyTask, toy_config
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from sensorium.engine import checkpoint, loop
from sensorium.engine.contract import Family, Source
from sensorium.engine.settings import RunConfig, Track
from sensorium.engine.tracking import Tracker
from sensorium.errors import ConfigError


def png(shade: int) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(packed, "PNG")
    return packed.getvalue()


def drawn(task: nn.Module, source: Source, config: RunConfig) -> Mapping[str, bytes]:
    """Depends on the weights, and on whether these are only looked at."""
    assert isinstance(task, ToyTask)
    assert not task.training
    assert not torch.is_grad_enabled()
    assert len(source) == config.data.model_dump()["length"]
    return {"weights.png": png(int(task.head.weight.abs().sum() * 1e4) % 256)}


DRAWING: Family = replace(TOY, pictures=drawn)


def train(run: Path, family: Family = DRAWING, *, resume: bool = False, **changes: dict[str, Any]) -> None:
    layer = {"evaluate": {"pictures_every_steps": 5}, "checkpoint": {"every_steps": 6, "every_epochs": None}, **changes}
    loop.train(family, toy_config(layer), run, resume=resume, quiet=True)


def shown(folder: Path) -> dict[str, list[tuple[int, tuple[int, int], bytes]]]:
    """Step, size and bytes of each picture, as TensorBoard reads them."""
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(e.step, (e.width, e.height), e.encoded_image_string) for e in reader.Images(tag)]
        for tag in reader.Tags()["images"]
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_pictures_are_drawn_when_they_are_due(tmp_path: Path) -> None:
    train(tmp_path / "run")
    found = files(tmp_path / "run/samples")
    assert list(found) == [f"step_{step:08d}/weights.png" for step in (5, 10, 12)]  # and after the last step
    assert len(set(found.values())) == 3  # the weights move
    curves = shown(tmp_path / "run/tensorboard")
    assert curves == {"samples/weights": [(s, (6, 4), c) for s, c in zip((5, 10, 12), found.values(), strict=True)]}


def test_training_does_not_notice(tmp_path: Path) -> None:
    train(tmp_path / "drawing")
    train(tmp_path / "plain", TOY)
    assert not (tmp_path / "plain/samples").exists()
    left, right = (checkpoint.complete(tmp_path / name)[0][-1] for name in ("drawing", "plain"))
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        ours, theirs = load_file(left / name), load_file(right / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (tmp_path / "drawing/metrics.jsonl").read_bytes() == (tmp_path / "plain/metrics.jsonl").read_bytes()


def test_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "cut", train={"steps": 6})
    assert list(files(tmp_path / "cut/samples"))[-1] == "step_00000006/weights.png"
    train(tmp_path / "cut", resume=True)
    found = files(tmp_path / "cut/samples")
    del found["step_00000006/weights.png"]
    assert found == files(tmp_path / "whole/samples")


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    for number in (1, 2):
        train(tmp_path / f"run{number}", track={"pictures_dir": str(place), "tensorboard": False})
        assert len(files(place)) == 3
    assert len(files(tmp_path / "mine.1")) == 3  # of the first run
    assert not (tmp_path / "run1/samples").exists()


def test_weights_and_biases_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Wandb:
        Error, Image = ValueError, staticmethod(lambda picture: picture.size)
        init = staticmethod(lambda **_: Wandb)
        define_metric = staticmethod(lambda name, step_metric: None)
        log, finish = staticmethod(told.append), staticmethod(lambda: None)

    monkeypatch.setitem(importlib.import_module("sys").modules, "wandb", Wandb)
    with Tracker(tmp_path, Track(wandb="offline", tensorboard=False), 9, 0) as tracker:
        tracker.pictures(3, {"a.png": png(9)})
    assert told == [{"samples/a": (6, 4), "step": 3}]


def test_milestones_by_steps_stay(tmp_path: Path) -> None:
    def kept(name: str, **changes: object) -> list[int]:
        settings = {"checkpoint": {"keep": 2, "every_epochs": None, **changes}, "evaluate": {"every_epochs": None}}
        loop.train(TOY, toy_config(settings), tmp_path / name, quiet=True)
        return [int(path.name[5:]) for path in checkpoint.named(tmp_path / name)]

    assert kept("all", milestone_steps=3, milestones=1000) == [3, 6, 9, 12]
    assert kept("one", milestone_steps=3, milestones=1) == [9, 12]
    assert kept("usual", milestone_steps=5) == [5, 10, 12]
    assert kept("others", milestone_steps=5, milestones=1, every_steps=1) == [10, 11, 12]
    with pytest.raises(ConfigError, match=r"give one of checkpoint\.milestone_epochs and"):
        toy_config({"checkpoint": {"milestone_steps": 5, "milestone_epochs": 1.0}})


def test_milestones_count_for_the_room_of_a_run() -> None:
    def most(steps: int, **changes: object) -> int:
        return toy_config({"checkpoint": changes}).checkpoint.most_milestones(steps)

    assert most(100) == 0
    assert most(100, milestone_steps=10, milestones=1000) == 10
    assert most(100, milestone_steps=10, milestones=3) == 3
    assert most(100, milestone_epochs=1.0, keep=4) == 4
