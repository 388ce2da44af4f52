"""Coloured shapes that move in four directions, and sentences about them: videos made on the spot, without any data.

What moves to the left and what moves to the right show the same frames in the opposite order, and so do up and down:
only a model that sees time can tell them apart. Whole pairs of colour and shape are held out for val and test, so that
what is measured is how well parts are combined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw
from pydantic import Field

from sensorium.config import Section, digest
from sensorium.data.files import cache_folder
from sensorium.data.grouping import draw
from sensorium.data.items import DataSet, Item, Split
from sensorium.data.readers import native
from sensorium.data.video_write import APART, packed
from sensorium.errors import DataError
from sensorium.files import make_folder, new_folder, open_file

NAME = "moving"
SUMMARY = "coloured shapes that move, as videos, and sentences; made on the spot, needs nothing"
LICENCE = "MIT, as this program"
SIDE, FRAMES, RATE = 48, 8, 8  # pixels, frames, frames a second
_FORMAT = 1  # of what is drawn; a change makes older folders unused
_RADIUS, _FINE = 0.16, 4  # share of the side; drawn four times as large, for smooth edges
_TEMPLATES = ("a {colour} {shape} moves {way}", "the {shape} is {colour} and moves {way}")

COLOURS = {"red": (214, 39, 40), "yellow": (250, 210, 40), "green": (30, 140, 50), "blue": (30, 60, 200)}
SHAPES = ("square", "disc", "triangle", "bar")
WAYS = {"to the left": (-1, 0), "to the right": (1, 0), "upwards": (0, -1), "downwards": (0, 1)}


class Options(Section):
    """What is made."""

    variants: int = Field(1, ge=1, le=100, description="Training videos of each thing and direction, on other paths.")
    seed: int = Field(0, ge=0, description="Of the paths, the grounds and the split.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the videos, made first where they are not there yet. Raises DataError when ``root`` is given, DiskError."""
    if root is not None:
        raise DataError(f"the moving shapes are made in the cache folder; leave out the root {root}")
    folder = cache_folder(f"moving-{_FORMAT}-{digest(options)[:12]}")
    if not (folder / native.MANIFEST).is_file():
        try:
            with new_folder(folder) as temporary:
                _make(temporary, options)
        except DataError:  # another process may have made it at the same time
            if not (folder / native.MANIFEST).is_file():
                raise
    return replace(native.read(folder, native.Options()), name=NAME, licence=LICENCE)


def _make(folder: Path, options: Options) -> None:
    make_folder(folder / "videos")
    items = tuple(_items(folder, options))
    paths = {item.video: item.video.relative_to(folder).as_posix() for item in items if item.video is not None}
    held = sum(item.split == "test" for item in items)
    note = f"moving: {len(paths)} videos; {held} items are of pairs of colour and shape that only the test has"
    native.write(folder, DataSet(NAME, folder, LICENCE, items, (note,)), paths)


def _items(folder: Path, options: Options) -> Iterator[Item]:
    for row, colour in enumerate(COLOURS):
        for column, shape in enumerate(SHAPES):
            split = _split(row, column, options.seed)
            for variant in range(options.variants if split == "train" else 1):
                frames = {
                    way: _frames(shape, colour, way, variant, options.seed) for way in ("to the right", "downwards")
                }
                frames |= {"to the left": frames["to the right"][::-1], "upwards": frames["downwards"][::-1]}
                for way in WAYS:
                    name = f"{colour}-{shape}-{way.split()[-1]}-{variant}"
                    video = folder / "videos" / f"{name}.mp4"
                    timed = ((n / RATE, one) for n, one in enumerate(frames[way]))
                    with open_file(video, "wb") as file:
                        file.write(packed("mp4", timed, Fraction(RATE), APART))
                    text = _TEMPLATES[variant % len(_TEMPLATES)].format(colour=colour, shape=shape, way=way)
                    yield Item(name, f"{colour} {shape} {way}", split, text, video=video)


def _split(row: int, column: int, seed: int) -> Split:
    """Diagonals of the table of colours and shapes: one is held out for val, one for test."""
    val = int(draw(seed, "val") * 4)
    test = (val + 1 + int(draw(seed, "test") * 3)) % 4
    diagonal = (row + column) % 4
    return "val" if diagonal == val else "test" if diagonal == test else "train"


def _frames(shape: str, colour: str, way: str, variant: int, seed: int) -> list[Image.Image]:
    """From one edge to the other, on a straight path through the middle third."""
    name = f"{shape} {colour} {way} {variant}"
    ground = tuple(225 + int(draw(seed, "ground", part, name) * 30) for part in "rgb")
    across = 0.36 + 0.28 * draw(seed, "path", name)
    dx, dy = WAYS[way]  # drawn to the right and downwards only
    frames = []
    for number in range(FRAMES):
        along = _RADIUS + (1 - 2 * _RADIUS) * number / (FRAMES - 1)
        frames.append(_drawn(shape, COLOURS[colour], ground, (along * dx + across * dy, along * dy + across * dx)))
    return frames


def _drawn(shape: str, shade: tuple[int, ...], ground: tuple[int, ...], centre: tuple[float, float]) -> Image.Image:
    side = SIDE * _FINE
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)
    (x, y), radius = (value * side for value in centre), _RADIUS * side
    if shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=shade)
        return image.resize((SIDE, SIDE), Image.Resampling.BOX)
    draw_it, high = (pen.ellipse if shape == "disc" else pen.rectangle), radius * (0.4 if shape == "bar" else 1)
    draw_it((x - radius, y - high, x + radius, y + high), fill=shade)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)
