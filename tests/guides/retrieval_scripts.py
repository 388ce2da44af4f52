"""Running the scripts of ``examples/video_retrieval`` in tests, with small generated videos and a random CLIP."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageDraw
from script_runs import exit_code, modules_of

from sensorium.data.video_write import APART, write_video

FOLDER = Path(__file__).parents[2] / "examples" / "video_retrieval"
MODULES = ("config", "unified_model", "trainer", "train_unified_model", "show_merging")
TINY = {
    "clip": "random:tiny",
    "frames": 8,
    "words": 40,
    "groups": {1: 2, 2: 2, 3: 2},
    "frame_merge": 1,
    "cut_cross_pct": 30,
    "cut_inside_pct": 10,
    "width": 16,
}
COLOURS = {"red": (214, 39, 40), "yellow": (250, 210, 40), "green": (30, 140, 50), "blue": (30, 60, 200)}
WAYS = ("right", "down")
COUNTS = {"train": 8, "val": 4, "test": 4}


def make_data(root: Path) -> None:
    """``{train,val,test}/videos/`` and ``annotations.json``: squares that move over grounds of their part's grey."""
    for place, (split, count) in enumerate(COUNTS.items()):
        entries = []
        for number in range(count):
            colour, way = list(COLOURS)[number % 4], WAYS[number // 4]
            write_video(
                root / split / "videos" / f"{number}.mp4", _frames(colour, way, 90 + 40 * place), Fraction(8), APART
            )
            captions = [f"a {colour} square moves {way}", f"{colour} goes {way}"][: 2 if split == "val" else 1]
            entries.append({"video": f"{number}.mp4", "captions": captions})
        (root / split / "annotations.json").write_text(json.dumps(entries))


def _frames(colour: str, way: str, grey: int) -> Iterator[tuple[float, Image.Image]]:
    for number in range(8):
        image = Image.new("RGB", (32, 32), (grey, grey, grey))
        x, y = (3 * number, 12) if way == "right" else (12, 3 * number)
        ImageDraw.Draw(image).rectangle((x, y, x + 9, y + 9), fill=COLOURS[colour])
        yield number / 8, image


def modules(folder: Path = FOLDER) -> AbstractContextManager[Callable[[str], ModuleType]]:
    """The guide's modules, by their names."""
    return modules_of(folder, MODULES)


def run(*words: str, name: str = "train_unified_model") -> int:
    """A script in this process, as a command line runs it; its exit code."""
    with modules() as load, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *words])
        return exit_code(load(name).main)


def my_config(shipped: str) -> str:
    """The guide's configuration file, edited as a user would: a small model, few epochs, a batch that fits."""
    for found, wanted in (
        ('"batch_size": 8', '"batch_size": 4'),
        ('"num_epochs": 20', '"num_epochs": 3'),
        ('"warmup_epochs": 2', '"warmup_epochs": 0.5'),
        ('"tempme_lr": 1e-4', '"tempme_lr": 3e-3'),
        ('"stop_lr": 1e-5', '"stop_lr": 1e-3'),
        ("{\n", f'{{\n  /* a model of no size */ "model": {json.dumps(TINY)},\n'),
    ):
        assert found in shipped
        shipped = shipped.replace(found, wanted, 1)
    return shipped


MINE = ("--config", "configs/my_training_config.json")
HERE = ("train.device=cpu", "loader.workers=0")
