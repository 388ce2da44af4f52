"""RandAugment: alike in all frames, a function of the seed, and every operation stronger with its strength."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sensorium.data.augment import OPERATIONS, randaugment


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Slopes of colour with grain, of no full contrast; nothing in it repeats."""
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    planes = np.stack([40 + 2 * x, 50 + 3 * y, 60 + x + y], -1) + np.random.default_rng(0).uniform(0, 25, (40, 60, 3))
    return Image.fromarray(planes.astype(np.uint8))


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def test_all_frames_are_changed_alike(picture: Image.Image) -> None:
    """What one frame becomes does not depend on those beside it; other seeds do other things."""
    moved = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    results = []
    for seed in range(30):
        first, second, third = randaugment([picture, moved, picture], seed)
        assert first is third
        assert difference(first, randaugment([picture], seed)[0]) == 0
        assert difference(second, randaugment([moved], seed)[0]) == 0
        results.append(first)
    assert len({image.tobytes() for image in results}) > 20
    assert any(randaugment([picture], seed)[0].tobytes() == picture.tobytes() for seed in range(99))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_the_size_and_changes_something(picture: Image.Image, name: str) -> None:
    before = picture.tobytes()
    for strength in (0.7, -0.7):
        changed = OPERATIONS[name](picture, strength)
        assert (changed.size, changed.mode) == (picture.size, "RGB")
        assert difference(changed, picture) > 0.5
    assert picture.tobytes() == before


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize", "invert")])
@pytest.mark.parametrize("sign", [1, -1])
def test_stronger_changes_more(picture: Image.Image, name: str, sign: int) -> None:
    weak, strong = (difference(OPERATIONS[name](picture, sign * s), picture) for s in (0.25, 1.0))
    assert strong > weak


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "shift_x", "shift_y"])
def test_directions_are_opposite(picture: Image.Image, name: str) -> None:
    one, other = (OPERATIONS[name](picture, sign) for sign in (0.7, -0.7))
    assert difference(one, other) > 1
