"""Intervals of paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from sensorium.errors import ConfigError
from sensorium.metrics.bootstrap import difference


def test_the_interval_knows_noise_from_a_difference() -> None:
    draw = np.random.default_rng(0)
    names = [str(n) for n in range(400)]
    noise = draw.normal(0, 1, 400)
    found = difference(noise, names)
    assert found.low < 0 < found.high
    assert found.mean == pytest.approx(noise.mean())
    assert difference(noise + 0.3, names).low > 0
    assert difference(noise, names) == found  # the same draws always


def test_samples_of_one_block_count_as_one() -> None:
    """Negative twin: taken for independent, they make a chance difference look sure."""
    draw = np.random.default_rng(1)
    values = np.repeat(draw.normal(0, 1, 10), 100)
    apart = difference(values, [str(n) for n in range(1000)])
    together = difference(values, [str(n // 100) for n in range(1000)])
    assert together.high - together.low > 5 * (apart.high - apart.low)
    with pytest.raises(ConfigError, match="nothing to compare"):
        difference(np.array([]), [])
