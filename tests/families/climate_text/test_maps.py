"""Maps: north is up, cells lie where they should, the same map gives the same bytes."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sensorium.families.climate_text.maps import FieldMap, draw


def field() -> FieldMap:
    """Warm in the north-east alone, over the date line."""
    values = np.zeros((30, 30))
    values[20:, 20:] = 3.0
    lat, lon = np.linspace(30, 60, 30), np.linspace(165, 205, 30)
    return FieldMap("air temperature", "standard deviations", values, lat, lon, anomaly=True)


def pixels(one: FieldMap) -> np.ndarray:
    with Image.open(io.BytesIO(draw(one))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_north_is_up() -> None:
    seen = pixels(field())
    red = (seen[..., 0] > 90) & (seen[..., 1] < 40) & (seen[..., 2] < 50)  # the warm end of the colours
    rows, columns = np.nonzero(red[:, : seen.shape[1] * 7 // 10])  # without the colour bar
    assert rows.max() < seen.shape[0] * 0.45
    assert columns.min() > seen.shape[1] * 0.4
    flipped = pixels(replace(field(), values=field().values[::-1]))
    red = (flipped[..., 0] > 90) & (flipped[..., 1] < 40) & (flipped[..., 2] < 50)
    assert np.nonzero(red[:, : seen.shape[1] * 7 // 10])[0].min() > seen.shape[0] * 0.45


def test_the_same_map_is_the_same_bytes() -> None:
    one = replace(field(), true="north-east", told="south", land=(field().values > 1).astype(float))
    assert draw(one) == draw(one)
    assert draw(one) != draw(replace(one, told="north"))
    assert draw(one) != draw(replace(one, land=None))


def test_attention_stands_beside_the_field() -> None:
    plain, seen = pixels(field()), pixels(replace(field(), attention=np.eye(4)))
    assert seen.shape[1] > 1.8 * plain.shape[1]


@pytest.mark.parametrize("values", [np.full((30, 30), np.nan), np.zeros((30, 30))])
def test_nothing_measured_and_nothing_unusual(values: np.ndarray) -> None:
    assert draw(replace(field(), values=values))


def test_one_row_and_words_that_are_no_cells() -> None:
    one = FieldMap("x", "K", np.zeros((1, 1)), np.zeros(1), np.zeros(1), true="nowhere", told=None)
    assert draw(one)
