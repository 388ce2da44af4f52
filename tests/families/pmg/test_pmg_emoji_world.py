"""The world of the benchmark `pmg_emoji`: what is held out, what histories say, training that resumes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sensorium.data.tastes import Places, Taste, read_tastes

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CHARS = "🐶🐱🦊🐻🐼🐨🐯🦁🐮🐷🍎🍐🍊🍋🍌🍉🍇🍓🍒🍑"


@pytest.fixture
def world_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("pmg_emoji_world")
    sys.modules.pop("pmg_emoji_world")


@pytest.fixture
def world(world_module: ModuleType, tmp_path: Path) -> Path:
    """Twenty things, of which ten are held out: one of each way in validation, one in the test."""
    ways = list(world_module.WAYS)
    known = [
        world_module.Thing(
            chars,
            f"thing {number}",
            ways[number // 2 % len(ways)] if number < 10 else "",
            ("val", "test")[number % 2] if number < 10 else "train",
        )
        for number, chars in enumerate(CHARS)
    ]
    drawn = {
        way: {one.chars: Image.new("RGB", (8, 8), (40 * place, 0, number)) for number, one in enumerate(known)}
        for place, way in enumerate(ways)
    }
    world_module.write_world(tmp_path / "world", drawn, known, 50)
    return tmp_path / "world"


def tastes(world: Path) -> dict[str, list[Taste]]:
    return {split: read_tastes(world / f"{split}.json", Places()) for split in ("train", "val", "test")}


def test_targets_of_held_out_users_are_seen_by_nothing_that_learns(world: Path) -> None:
    found = tastes(world)
    shown = {(world / row["image"]).resolve() for row in json.loads((world / "pictures.json").read_text())}
    assert len(shown) == 5 * len(CHARS) - 10
    targets = {split: {one.target.path.resolve() for one in some} for split, some in found.items()}
    assert {split: len(some) for split, some in targets.items()} == {"train": 50, "val": 5, "test": 5}
    assert targets["train"] <= shown
    assert not (targets["val"] | targets["test"]) & shown
    names = {split: {one.target.caption for one in some} for split, some in found.items()}
    assert not (names["val"] | names["test"]) & names["train"]
    assert not names["val"] & names["test"]
    liked = {path.path.resolve() for some in found.values() for one in some for path in one.history}
    assert liked <= shown


def test_histories_say_how_and_targets_do_not(world: Path, world_module: ModuleType) -> None:
    for split, some in tastes(world).items():
        assert not [one.problem() for one in some if one.problem()]
        for one in some:
            way = one.target.id.partition("-")[0]
            phrasings = world_module.WAYS[way][3:] if split == "test" else world_module.WAYS[way][:3]
            for liked in one.history:
                assert liked.id.startswith(f"{way}-")
                assert liked.caption.startswith(tuple(words.partition("{}")[0] for words in phrasings))
            assert one.target.caption.startswith("thing ")


def test_pictures_are_framed_and_stroked(world_module: ModuleType) -> None:
    picture = Image.new("RGB", (40, 30), "white")
    picture.paste((200, 30, 30), (20, 10, 30, 14))
    picture.paste((0, 0, 0), (20, 10, 22, 14))
    framed = world_module.framed(picture)
    assert framed.size == (64, 64)
    assert [framed.getpixel(place) for place in ((2, 32), (32, 2))] == [(255, 255, 255)] * 2
    red, green, _ = framed.getpixel((45, 32))
    assert (red, green) == (pytest.approx(200, abs=15), pytest.approx(30, abs=15))
    lines = world_module.strokes(picture)
    assert [lines.getpixel(place) for place in ((21, 12), (26, 12))] == [(0, 0, 0), (255, 255, 255)]


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("pmg_pipeline")
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    for name in "ab":
        (tmp_path / name).mkdir()

    def run(path: Path, killed: int | None) -> Tensor:
        torch.manual_seed(0)
        parts = nn.ModuleDict({"part": nn.Linear(3, 2)})

        def loss_of(step: int) -> Tensor:
            if step == killed:
                raise InterruptedError
            loss: Tensor = parts["part"](torch.randn(4, 3)).float().square().mean()
            return loss

        module.trained(path, parts, (1e-2, 6), loss_of)
        weight: Tensor = parts["part"].weight
        return weight.detach().clone()

    whole = run(tmp_path / "a" / "part.pt", None)
    with pytest.raises(InterruptedError):
        run(tmp_path / "b" / "part.pt", 4)
    assert torch.equal(run(tmp_path / "b" / "part.pt", None), run(tmp_path / "a" / "part.pt", None))
    assert torch.equal(run(tmp_path / "b" / "part.pt", None), whole)


def test_each_way_is_held_out_in_validation_and_in_the_test(world_module: ModuleType) -> None:
    found = world_module.apart({f"thing {number}": chr(0x1F400 + number) for number in range(50)}, 34)
    held = sorted((one.split, one.withheld) for one in found if one.withheld)
    assert held == sorted((split, way) for split in ("val", "test") for way in world_module.WAYS)
    assert [one.split for one in found if not one.withheld] == ["train"] * 24
    assert len({one.name for one in found}) == 34
