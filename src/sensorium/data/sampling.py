"""At which seconds a video is looked at: pure functions of its length, the number of frames, the rule and a seed.

All of them give float64 seconds from the beginning, in ascending order. A video that is shorter than the number of
frames gives some of them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Seconds: TypeAlias = npt.NDArray[np.float64]
Rule = Literal["segments", "fps"]
_EDGE = 1e-9  # what is this near below a whole number is one


def segments(length: float, count: int, seed: int | None) -> Seconds:
    """``[count]``: of ``count`` equal parts a random instant each, or, without a seed, the centre."""
    inside = np.full(count, 0.5) if seed is None else np.random.default_rng(seed).random(count)
    found: Seconds = (np.arange(count) + inside) * (length / count)
    return found


def per_second(length: float, count: int, seed: int | None = None) -> Seconds:
    """``[count]``: of the instants 0 s, 1 s, 2 s … ``count`` that lie evenly, the first and the last of them included;
    always the same."""
    del seed
    whole = max(1, int(np.ceil(length - _EDGE)))  # instants before the end
    return np.floor(np.linspace(0, whole - 1, count) + _EDGE)


RULES: Mapping[Rule, Callable[[float, int, int | None], Seconds]] = {"segments": segments, "fps": per_second}


def grid(length: float, fps: float, most: int) -> Seconds:
    """The instants that are ever looked at: ``fps`` in a second from 0 on, before the end; where these are more than
    ``most``, so many that lie evenly among them, the first and the last included."""
    count = max(1, int(np.ceil(length * fps - _EDGE)))
    numbers = np.arange(count) if count <= most else np.round(np.linspace(0, count - 1, most))
    found: Seconds = numbers / fps
    return found


def nearest(seconds: Seconds, instants: Seconds) -> npt.NDArray[np.int64]:
    """Of each of ``seconds`` the number of the nearest instant, the earlier of two."""
    right = np.searchsorted(instants, seconds).clip(1, max(1, len(instants) - 1))
    if len(instants) == 1:
        return np.zeros(len(seconds), np.int64)
    later = seconds - instants[right - 1] > instants[right] - seconds + _EDGE
    return np.asarray(right - 1 + later, np.int64)
