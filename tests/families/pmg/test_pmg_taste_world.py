"""The benchmark `pmg_taste`: what is counted in a picture, what histories say, who is held out, how a VAE begins."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from sensorium.data.tastes import Places, Taste, read_tastes
from sensorium.families.pmg.drawing import folder_of
from sensorium.families.pmg.toy import COLOURS, SHAPES, draw

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
FILES = ("train", "val", "test", "unseen", "other", "told")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("pmg_taste_world")
    for name in ("pmg_taste_world", "pmg_taste", "pmg_pipeline", "pmg_worlds", "common"):
        sys.modules.pop(name, None)


@pytest.fixture
def world(module: ModuleType, tmp_path: Path) -> dict[str, list[Taste]]:
    module.write_world(tmp_path / "world", 24, 18)
    return {name: read_tastes(tmp_path / "world" / f"{name}.json", Places()) for name in FILES}


def blurred(picture: Image.Image) -> Image.Image:
    """As a small VAE draws: soft edges, a stain, colours that are a little off."""
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(2)), np.float64)
    noise = np.random.default_rng(0).normal(0, 12, values.shape)
    return Image.fromarray(np.clip(values * 0.9 + 20 + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("change", [lambda picture: picture, blurred], ids=["drawn", "blurred"])
def test_colour_and_shape_of_a_picture(module: ModuleType, change: object) -> None:
    assert callable(change)
    found = {
        (colour, shape): (module.colour_of(picture), module.shape_of(picture))
        for colour in COLOURS
        for shape in SHAPES
        for picture in [change(draw(colour, shape, 64))]
    }
    assert found == {key: key for key in found}


def test_a_blank_picture_has_neither(module: ModuleType) -> None:
    white = Image.new("RGB", (64, 64), (235, 230, 225))
    white.paste((0, 0, 0), (0, 0, 4, 4))
    assert (module.colour_of(white), module.shape_of(white)) == (None, None)


def test_a_white_ground_does_not_count(module: ModuleType) -> None:
    """A thin purple stroke is purple, though most of the picture is white."""
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste(COLOURS["purple"], (30, 10, 34, 50))
    assert module.colour_of(picture) == "purple"


def test_histories_name_the_colour_and_targets_do_not(world: dict[str, list[Taste]]) -> None:
    for name in ("train", "val", "test", "unseen"):
        assert not [one.problem() for one in world[name] if one.problem()]
        for one in world[name]:
            colour, _, shape = one.target.id.partition("-")
            assert one.target.caption == f"a {shape}"
            for liked in one.history:
                assert liked.id.startswith(f"{colour}-")
                assert colour in liked.caption
                assert liked.id.partition("-")[2] in liked.caption


def test_users_are_apart(world: dict[str, list[Taste]]) -> None:
    users = {name: {one.user for one in world[name]} for name in ("train", "val", "test")}
    assert {name: len(some) for name, some in users.items()} == {"train": 24, "val": 6, "test": 18}
    assert not users["train"] & users["val"] | (users["train"] | users["val"]) & users["test"]
    for name in users:
        colours = [one.target.id.partition("-")[0] for one in world[name]]
        assert {colours.count(colour) for colour in COLOURS} == {len(colours) // len(COLOURS)}


def test_words_that_nothing_has_seen(world: dict[str, list[Taste]]) -> None:
    """Of the same pictures and users as the test, which has the words of training."""

    def captions(name: str) -> set[str]:
        return {liked.caption for one in world[name] for liked in one.history}

    assert captions("test") & captions("train")
    assert not captions("unseen") & (captions("train") | captions("val") | captions("test"))
    for own, other in zip(world["test"], world["unseen"], strict=True):
        assert (own.user, own.target) == (other.user, other.target)
        assert [liked.id for liked in own.history] == [liked.id for liked in other.history]


def test_controls_change_one_thing(world: dict[str, list[Taste]]) -> None:
    borrowed = set()
    for own, other, told in zip(world["test"], world["other"], world["told"], strict=True):
        colour, _, shape = own.target.id.partition("-")
        assert (other.user, other.target) == (own.user, own.target)
        colours = {liked.id.partition("-")[0] for liked in other.history}
        assert len(colours) == 1
        assert colour not in colours
        assert other.history in [one.history for one in world["test"]]
        borrowed |= colours
        assert (told.user, told.history, told.target.id) == (own.user, own.history, own.target.id)
        assert told.target.caption == f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"
    assert borrowed == set(COLOURS)


def test_stable_diffusion_learns_from_every_picture(module: ModuleType, tmp_path: Path) -> None:
    module.write_world(tmp_path / "world", 6, 6)
    rows = json.loads((tmp_path / "world" / "pictures.json").read_text())
    assert {(row["colour"], row["shape"]) for row in rows} == {(c, s) for c in COLOURS for s in SHAPES}
    for row in rows:
        with Image.open(tmp_path / "world" / row["image"]) as picture:
            assert (module.colour_of(picture), module.shape_of(picture)) == (row["colour"], row["shape"])


def test_shares_are_of_what_was_asked_for(module: ModuleType, tmp_path: Path) -> None:
    """Of four users three got their colour, one of them another shape; one picture is blank."""
    pytest.importorskip("diffusers")
    taste = importlib.import_module("pmg_taste")
    drawn = ["red-ring", "red-ring", "blue-cross", ""]
    asked = ["red-ring", "red-square", "blue-cross", "green-ring"]
    for number, name in enumerate(drawn):
        folder_of(tmp_path, number).mkdir()
        picture = draw(*name.split("-"), 64) if name else Image.new("RGB", (64, 64), "white")
        picture.save(folder_of(tmp_path, number) / "gen_0.jpg", quality=95)
    samples = [{"user_id": str(number), "target_item_id": name} for number, name in enumerate(asked)]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    found = taste.counted(tmp_path / "samples.json", tmp_path)
    assert [found["colour"].mean, found["shape"].mean] == [0.75, 0.5]
    assert 0 <= found["colour"].low < 0.75 < found["colour"].high <= 1


def test_colours_pass_through_a_straight_vae_from_the_first_step(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    plan, new_vae = importlib.import_module("pmg_taste").PLAN, importlib.import_module("pmg_pipeline").new_vae
    torch.manual_seed(0)
    vae = new_vae(plan).eval()
    pictures = torch.stack(
        [torch.from_numpy(np.asarray(draw(colour, "square", 64), np.float32)).permute(2, 0, 1) for colour in COLOURS]
    )
    with torch.no_grad():
        made = vae.decode(vae.encode(pictures / 127.5 - 1).latent_dist.sample()).sample
    inner = (slice(None), slice(None), slice(24, 40), slice(24, 40))
    given, found = (some[inner].mean((2, 3)).flatten().numpy() for some in (pictures, made))
    assert np.corrcoef(given, found)[0, 1] > 0.8


def test_a_training_that_goes_on_has_the_words_it_began_with(module: ModuleType, tmp_path: Path) -> None:
    """The learned vocabulary differs from time to time; a state without one is of unknown words."""
    pytest.importorskip("diffusers")
    plan, pipeline = importlib.import_module("pmg_taste").PLAN, importlib.import_module("pmg_pipeline")
    rows = [{"colour": colour, "shape": shape} for colour in COLOURS for shape in SHAPES]
    state = tmp_path / "unet.pt"
    state.write_bytes(b"trained before the words were kept")
    found = [pipeline.kept_tokenizer(tmp_path, plan, rows).get_vocab()]
    assert not state.exists()
    state.write_bytes(b"trained on them")
    found += [pipeline.kept_tokenizer(tmp_path, plan, rows).get_vocab() for _ in range(4)]
    assert state.exists()
    assert all(one == found[0] for one in found)
