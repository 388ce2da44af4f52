"""RandAugment (Cubuk 2020) of pictures, the same for all frames of a video: what moves in them moves as before.

The version that video-text models train with: ``OPERATIONS_DRAWN`` operations, each done with probability one half, at
a strength drawn around ``STRENGTH`` of ``STRONGEST``. Larger strengths change more, in every operation. What comes into
a picture from outside is grey.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

OPERATIONS_DRAWN, STRENGTH, SPREAD, STRONGEST = 4, 7.0, 0.5, 10.0
_CHANCE = 0.5
_GREY = (128, 128, 128)
_DEGREES, _SHEAR, _SHIFT, _FACTOR, _ADDED = 30.0, 0.3, 0.45, 0.9, 110  # at full strength

Operation = Callable[[Image.Image, float], Image.Image]
"""Takes a strength in -1..1; those that have no direction take its size."""


def randaugment(frames: Sequence[Image.Image], seed: int) -> list[Image.Image]:
    """The frames (RGB), changed alike; equal frames stay one object."""
    draw = np.random.default_rng(seed)
    done: list[tuple[Operation, float]] = []
    for name in draw.choice(list(OPERATIONS), OPERATIONS_DRAWN):
        strength = float(np.clip(draw.normal(STRENGTH, SPREAD), 0, STRONGEST)) / STRONGEST
        sign, happens = float(draw.choice((-1, 1))), draw.random() < _CHANCE
        if happens:
            done.append((OPERATIONS[str(name)], sign * strength))
    changed: dict[int, Image.Image] = {}
    for frame in frames:
        if id(frame) not in changed:
            image = frame
            for operation, strength in done:
                image = operation(image, strength)
            changed[id(frame)] = image
    return [changed[id(frame)] for frame in frames]


def _affine(image: Image.Image, matrix: Sequence[float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=_GREY)


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(_DEGREES * strength, Image.Resampling.BICUBIC, fillcolor=_GREY)


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    added = round(_ADDED * abs(strength))
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength: kind(image).enhance(1 + _FACTOR * strength)


OPERATIONS: Mapping[str, Operation] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": lambda image, strength: ImageOps.posterize(image, 4 - int(4 * abs(strength)) or 1),
    "solarize": lambda image, strength: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    "solarize_add": _solarize_add,
    "colour": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, strength: _affine(image, (1, _SHEAR * strength, 0, 0, 1, 0)),
    "shear_y": lambda image, strength: _affine(image, (1, 0, 0, _SHEAR * strength, 1, 0)),
    "shift_x": lambda image, strength: _affine(image, (1, 0, _SHIFT * strength * image.width, 0, 1, 0)),
    "shift_y": lambda image, strength: _affine(image, (1, 0, 0, 0, 1, _SHIFT * strength * image.height)),
}
