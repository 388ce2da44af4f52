"""A made-up world in which taste is one thing: users love one of six colours.

Captions of a history name the colour, the caption of the target names the shape alone; its picture has the colour. What
is held out are other users; their colours and shapes are known.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from sensorium.config import digest
from sensorium.data.files import cache_folder
from sensorium.engine.seeds import generator
from sensorium.errors import DataError
from sensorium.families.pmg.config import ToyConfig
from sensorium.files import make_folder, new_folder, write_by_library, write_json

_FORMAT = 1
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 40),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
SPLITS = ("train", "val", "test")


def toy_folder(config: ToyConfig) -> Path:
    """The folder with ``train.json``, ``val.json``, ``test.json`` and ``images/``; made first where it is not there."""
    root = cache_folder(f"pmg-toy-{_FORMAT}-{digest(config)[:12]}")
    if not root.is_dir():
        try:
            with new_folder(root) as folder:
                write_toy(folder, config)
        except DataError:  # another program may have made it at the same time
            if not root.is_dir():
                raise
    return root


def write_toy(folder: Path, config: ToyConfig) -> None:
    """Write the world into an empty folder."""
    make_folder(folder / "images")
    for colour in COLOURS:
        for shape in SHAPES:
            picture = draw(colour, shape, config.side)
            write_by_library(folder / "images" / f"{colour}-{shape}.png", picture.save)
    first = 0
    for split in SPLITS:
        count = config.train_users if split == "train" else config.held_users
        samples = [
            _sample(config, user, number) for user in range(first, first + count) for number in range(config.samples)
        ]
        write_json(folder / f"{split}.json", samples)
        first += count


def _sample(config: ToyConfig, user: int, number: int) -> dict[str, object]:
    colour = list(COLOURS)[user % len(COLOURS)]
    draws = generator(config.seed, "toy", user, number)
    places = draws.choice(len(SHAPES), size=min(config.history, len(SHAPES) - 1) + 1, replace=False)
    *history, target = [SHAPES[place] for place in places]
    return {
        "user_id": f"user {user}",
        "history_item_ids": [f"{colour}-{shape}" for shape in history],
        "history_items_info": [_item(colour, shape, f"a {colour} {shape}") for shape in history],
        "target_item_id": f"{colour}-{target}",
        "target_item_info": _item(colour, target, f"a {target}"),
        "user_style": colour,
    }


def _item(colour: str, shape: str, caption: str) -> dict[str, str]:
    return {"item_id": f"{colour}-{shape}", "caption": caption, "image_path": f"images/{colour}-{shape}.png"}


def draw(colour: str, shape: str, side: int) -> Image.Image:
    """A shape in the middle of a white picture."""
    scale = 4  # drawn larger, for smooth edges
    picture = Image.new("RGB", (side * scale, side * scale), "white")
    pen, fill = ImageDraw.Draw(picture), COLOURS[colour]
    low, high = side * scale * 0.2, side * scale * 0.8
    middle, thick = (low + high) / 2, (high - low) / 4
    if shape in ("circle", "ring"):
        pen.ellipse((low, low, high, high), fill=fill)
    if shape == "ring":
        pen.ellipse((low + thick, low + thick, high - thick, high - thick), fill="white")
    if shape == "square":
        pen.rectangle((low, low, high, high), fill=fill)
    if shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], fill=fill)
    if shape == "diamond":
        pen.polygon([(middle, low), (high, middle), (middle, high), (low, middle)], fill=fill)
    if shape == "cross":
        pen.rectangle((middle - thick / 2, low, middle + thick / 2, high), fill=fill)
        pen.rectangle((low, middle - thick / 2, high, middle + thick / 2), fill=fill)
    return picture.resize((side, side), Image.Resampling.BOX)
