"""The world of `pmg_taste.py`: users love one of six colours, and the colour of a picture can be counted.

Pictures are those of the family's own made-up world (`families/pmg/toy.py`): six shapes in six colours, on white. The
captions of a history name colour and shape, in one of eight phrasings; the caption of a target names the shape alone.
Users of validation and test are others than those of training, with other draws of shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sensorium.engine.seeds import generator
from sensorium.families.pmg.toy import COLOURS, SHAPES, draw
from sensorium.files import make_folder, new_folder, write_by_library, write_json

SIDE = 64
HISTORY = 3
FULL, PLAIN = "{a} {colour} {shape}", "a {shape}"
PHRASINGS = (
    FULL,
    "a picture of {a} {colour} {shape}",
    "a {shape} in {colour}",
    "{colour} {shape}",
    "the {shape} is {colour}",
    "one {shape}, {colour} all over",
    "{colour}, in the form of a {shape}",
    "somebody drew a {shape} with a {colour} pen",
)
UNSEEN = "{shape}, {colour}, on white paper"  # nothing learns from it
TRAINED, EACH = 8, 2  # samples of a user; of a held-out one
INK = 128  # a pixel is not white where a channel is below: each of the six colours has one of at most 60
LEAST_INK = 0.01  # of all pixels; with less a picture is blank


def caption(colour: str, shape: str, phrasing: str = FULL) -> str:
    """Of a picture."""
    return phrasing.format(a="an" if colour[0] in "aeiou" else "a", colour=colour, shape=shape)


def inked(picture: Image.Image) -> NDArray[np.bool_]:
    """Pixels that are not white, ``[height, width]``."""
    found: NDArray[np.bool_] = np.asarray(picture.convert("RGB")).min(2) < INK
    return found


def colour_of(picture: Image.Image) -> str | None:
    """The nearest of the six colours to the mean of what is not white; None: it is blank."""
    ink = inked(picture)
    if ink.mean() < LEAST_INK:
        return None
    mean = np.asarray(picture.convert("RGB"), np.float64)[ink].mean(0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(mean - COLOURS[name])))


def shape_of(picture: Image.Image) -> str | None:
    """The shape that shares most with what is not white (intersection over union); None: it is blank."""
    ink = inked(picture)
    if ink.mean() < LEAST_INK:
        return None
    masks = {shape: inked(draw("red", shape, picture.width)) for shape in SHAPES}
    return max(SHAPES, key=lambda shape: float((masks[shape] & ink).sum() / (masks[shape] | ink).sum()))


def write_world(folder: Path, users: int, held: int) -> None:
    """Pictures, what Stable Diffusion learns from (`pictures.json`), the three splits and, for the test's users, what
    is held against them: `other.json`, the same targets with the history of another user, of another colour;
    `unseen.json`, their own histories in words that nothing has seen; `told.json`, whose targets' captions name the
    colour. ``users`` train, ``held`` are tested, a sixth as many validate."""
    with new_folder(folder) as new:
        make_folder(new / "images")
        rows = []
        for colour in COLOURS:
            for shape in SHAPES:
                name = f"images/{colour}-{shape}.png"
                write_by_library(new / name, draw(colour, shape, SIDE).save)
                rows.append({"image": name, "colour": colour, "shape": shape})
        write_json(new / "pictures.json", rows)
        tested = samples("test", held, EACH)
        write_json(new / "train.json", samples("train", users, TRAINED))
        write_json(new / "val.json", samples("val", max(len(COLOURS), held // 6), EACH))
        write_json(new / "test.json", tested)
        write_json(new / "other.json", [strange(number, tested) for number in range(len(tested))])
        write_json(new / "unseen.json", samples("test", held, EACH, (UNSEEN,)))
        write_json(new / "told.json", [told(one) for one in tested])


def samples(split: str, users: int, each: int, phrasings: Sequence[str] = PHRASINGS) -> list[dict[str, Any]]:
    """So many of each user; colours take turns. Other ``phrasings`` change nothing but the words."""
    found = []
    for user in range(users):
        colour = list(COLOURS)[user % len(COLOURS)]
        draws = generator(0, "taste", split, user)
        for _ in range(each):
            target, *past = [SHAPES[place] for place in draws.permutation(len(SHAPES))[: HISTORY + 1]]
            words = [phrasings[int(draws.integers(len(PHRASINGS))) % len(phrasings)] for _ in past]
            items = [item(colour, shape, caption(colour, shape, word)) for shape, word in zip(past, words, strict=True)]
            found.append(
                {
                    "user_id": f"{split} {user}",
                    "history_item_ids": [one["item_id"] for one in items],
                    "history_items_info": items,
                    "target_item_id": f"{colour}-{target}",
                    "target_item_info": item(colour, target, caption(colour, target, PLAIN)),
                    "user_style": colour,
                }
            )
    return found


def item(colour: str, shape: str, text: str) -> dict[str, str]:
    """One picture as the processed files have it."""
    return {"item_id": f"{colour}-{shape}", "caption": text, "image_path": f"images/{colour}-{shape}.png"}


def strange(number: int, all_samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A sample whose history is that of somebody who loves another colour."""
    one = all_samples[number]
    others = [other for other in all_samples if other["user_style"] != one["user_style"]]
    other = others[int(generator(0, "other", number).integers(len(others)))]
    return {**one, **{key: other[key] for key in ("history_item_ids", "history_items_info")}}


def told(one: dict[str, Any]) -> dict[str, Any]:
    """A sample whose target's caption names the colour, too."""
    colour, _, shape = one["target_item_id"].partition("-")
    return {**one, "target_item_info": item(colour, shape, caption(colour, shape))}
