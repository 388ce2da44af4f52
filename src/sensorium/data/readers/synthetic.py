"""Coloured shapes, sentences about them, and tones: made on the spot, for trying things out without any data.

Eight shapes in eight colours and two sizes. The sound of a thing has the pitch of its colour, the rhythm of its shape
and the timbre of its size, so that all three modalities say the same. Whole pairs of colour and shape are held out:
every colour and every shape is trained on, but no held-out pair, so what is measured is how well parts are combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import soundfile
from PIL import Image, ImageDraw
from pydantic import Field

from sensorium.config import Section, digest
from sensorium.data.files import cache_folder
from sensorium.data.grouping import draw
from sensorium.data.items import DataSet, Item, Split
from sensorium.data.readers import native
from sensorium.errors import DataError
from sensorium.files import make_folder, new_folder

NAME = "synthetic"
SUMMARY = "coloured shapes, sentences and tones that mean the same; made on the spot, needs nothing"
LICENCE = "MIT, as this program"
RATE = 16000
_FORMAT = 1  # of what is drawn and played; a change makes older folders unused
_PIXELS, _FINE = 96, 4  # drawn four times as large, for smooth edges
_BEAT = 0.15  # seconds; a rhythm has eight
_TEMPLATES = ("a {size} {colour} {shape}", "one {colour} {shape}, {size}", "the {shape} is {size} and {colour}")

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 40),
    "green": (30, 140, 50),
    "turquoise": (50, 200, 200),
    "blue": (30, 60, 200),
    "purple": (130, 40, 160),
    "black": (20, 20, 20),
}
RHYTHMS = {
    "circle": "10000000",
    "square": "10001000",
    "triangle": "10010010",
    "star": "10101010",
    "cross": "11000000",
    "ring": "11001100",
    "diamond": "11101110",
    "arrow": "11111111",
}
SIZES = {"small": 0.22, "large": 0.38}  # radius as a share of the picture

Point: TypeAlias = tuple[float, float]


class Options(Section):
    """How much is made."""

    variants: int = Field(3, ge=1, le=50, description="Pictures, sentences and sounds of each of the 128 things.")
    seed: int = Field(0, ge=0, description="Of everything that is drawn, and of what is held out.")


def read(root: Path | None, options: Options) -> DataSet:
    """Make the data set below ``root`` (None: in the cache folder) or take the one that lies there.

    Raises DataError if it cannot be written.
    """
    folder = (root or cache_folder(NAME)) / f"{_FORMAT}-{digest(options)}"
    if not (folder / native.MANIFEST).is_file():
        try:
            with new_folder(folder) as temporary:
                _make(temporary, options)
        except DataError:  # another process may have made it at the same time
            if not (folder / native.MANIFEST).is_file():
                raise
    return replace(native.read(folder, native.Options()), name=NAME, licence=LICENCE)


def _make(folder: Path, options: Options) -> None:
    for name in ("images", "sounds"):
        make_folder(folder / name)
    items = tuple(_items(folder, options))
    paths = {path: path.relative_to(folder).as_posix() for item in items for path in (item.image, item.audio) if path}
    held = sum(item.split == "test" for item in items)
    note = f"synthetic: {len(items)} items, {held} of them of pairs of colour and shape that only the test has"
    native.write(folder, DataSet(NAME, folder, LICENCE, items, (note,)), paths)


def _items(folder: Path, options: Options) -> Iterator[Item]:
    for row, colour in enumerate(COLOURS):
        for column, shape in enumerate(RHYTHMS):
            for size in SIZES:
                group = f"{size} {colour} {shape}"
                for variant in range(options.variants):
                    name = f"{group.replace(' ', '-')}-{variant}"
                    rng = np.random.default_rng(int(draw(options.seed, "synthetic", name) * 2**63))
                    image, audio = folder / "images" / f"{name}.png", folder / "sounds" / f"{name}.wav"
                    _picture(shape, colour, size, rng).save(image)
                    soundfile.write(audio, _sound(shape, colour, size, rng), RATE, subtype="PCM_16")
                    template = _TEMPLATES[variant % len(_TEMPLATES)]
                    text = template.format(size=size, colour=colour, shape=shape)
                    split = _split(row, column, options.seed)
                    yield Item(name, group, split, text, image, audio, labels=(size, colour, shape))


def _split(row: int, column: int, seed: int) -> Split:
    """Diagonals of the table of colours and shapes: one is held out for val, one for test."""
    val = int(draw(seed, "val") * 8)
    test = (val + 1 + int(draw(seed, "test") * 7)) % 8
    diagonal = (row + column) % 8
    return "val" if diagonal == val else "test" if diagonal == test else "train"


def _picture(shape: str, colour: str, size: str, rng: np.random.Generator) -> Image.Image:
    """RGB, 96x96: the shape a little off the centre and of a somewhat other shade, on a light ground."""
    side = _PIXELS * _FINE
    ground = tuple(int(value) for value in rng.integers(225, 256, 3))
    shade = tuple(int(np.clip(value + rng.integers(-12, 13), 0, 255)) for value in COLOURS[colour])
    image = Image.new("RGB", (side, side), ground)
    radius = SIZES[size] * side * rng.uniform(0.92, 1.08)
    x, y = side / 2 + rng.uniform(-0.08, 0.08, 2) * side
    pen = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=shade if shape == "circle" else None, outline=shade, width=round(radius * 0.35))
    else:
        pen.polygon([(x + radius * a, y + radius * b) for a, b in _OUTLINES[shape]()], fill=shade)
    return image.resize((_PIXELS, _PIXELS), Image.Resampling.BOX)


def _corners(count: int, turn: float, inner: float = 1.0) -> list[Point]:
    """Points around the origin; every second at the distance ``inner``."""
    angles = [2 * math.pi * n / count + turn for n in range(count)]
    lengths = [inner if n % 2 else 1.0 for n in range(count)]
    return [(length * math.cos(angle), length * math.sin(angle)) for angle, length in zip(angles, lengths, strict=True)]


def _cross() -> list[Point]:
    quarter = [(-0.3, -1.0), (0.3, -1.0), (0.3, -0.3)]
    return [turned for n in range(4) for turned in (_turn(point, n) for point in quarter)]


def _turn(point: Point, quarters: int) -> Point:
    x, y = point
    for _ in range(quarters):
        x, y = -y, x
    return x, y


_OUTLINES: dict[str, Callable[[], list[Point]]] = {
    "square": lambda: _corners(4, math.pi / 4),
    "triangle": lambda: _corners(3, -math.pi / 2),
    "star": lambda: _corners(10, -math.pi / 2, 0.4),
    "cross": _cross,
    "diamond": lambda: [(0, -1), (0.55, 0), (0, 1), (-0.55, 0)],
    "arrow": lambda: [(1, 0), (0.1, -0.75), (0.1, -0.3), (-1, -0.3), (-1, 0.3), (0.1, 0.3), (0.1, 0.75)],
}


def _sound(shape: str, colour: str, size: str, rng: np.random.Generator) -> np.ndarray:
    """float64 ``[19200]``: 1.2 s; three half tones between the pitches of two colours; large things have overtones."""
    pitch = 220 * 2 ** (list(COLOURS).index(colour) / 4) * rng.uniform(0.99, 1.01)
    time = np.arange(round(_BEAT * RATE)) / RATE
    overtones = range(1, 6) if size == "large" else range(1, 2)
    note = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in overtones) * np.exp(-time / 0.08)
    note = note * np.minimum(1, time / 0.005) * rng.uniform(0.4, 0.6)
    sound = np.concatenate([note * int(beat) for beat in RHYTHMS[shape]])
    return np.clip(sound + rng.normal(0, 0.002, len(sound)), -1, 1)
