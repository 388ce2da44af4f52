"""How sure a mean is, where some samples belong together.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ConfigError

DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def difference(values_N: NDArray[np.floating[Any]], blocks: Sequence[str], seed: int = 0) -> Difference:
    """Bootstrap over ``blocks`` (samples of one block are drawn together, as they are not independent).

    (Efron & Tibshirani 1993, percentile interval.) Raises ConfigError for no values.
    """
    if not len(values_N):
        raise ConfigError("there is nothing to compare")
    names, number_N = np.unique(np.asarray(blocks, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(number_N, weights=values_N, minlength=len(names))
    counts = np.bincount(number_N, minlength=len(names)).astype(float)
    drawn = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Difference(float(np.mean(values_N)), low, high)
