"""Where in a video a text is true: scores of single frames, and the stretch of them that stands out.

Legend: N instants (one a second), W windows, T frames of a window, E shared space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Frame:
    """One instant of a video: its number, seconds from the start, and cosine with the text."""

    index: int
    seconds: float
    score: float


@dataclass(frozen=True)
class Event:
    """The segment of a video that a text describes best. ``score``: mean over its frames; ``frames``: the best ones of
    it, best first."""

    start_s: float
    end_s: float
    score: float
    frames: tuple[Frame, ...]


def windows(count: int, length: int) -> list[range]:
    """Windows of ``length`` instants over ``count``, half overlapping; the last ends with the last instant. Where there
    are fewer instants than that, one window of all."""
    if count <= length:
        return [range(count)]
    step = max(1, length // 2)
    starts = [*range(0, count - length, step), count - length]
    return [range(start, start + length) for start in starts]


def frame_scores(count: int, parts: list[range], scores: list[Floats]) -> Floats:
    """``[N]``: the mean over the windows that hold an instant; ``scores``: of each window, one a frame."""
    total, seen = np.zeros(count), np.zeros(count)
    for part, values in zip(parts, scores, strict=True):
        total[part.start : part.stop] += values
        seen[part.start : part.stop] += 1
    return total / seen


def best_stretch(scores_N: Floats) -> range:
    """The run of instants with the largest sum of score - mean - std / 2; all of them where all scores are equal.

    (Kadane's algorithm.) Of equals the first, and of those the shortest. Raises ValueError for none or NaN.
    """
    if len(scores_N) == 0 or not np.isfinite(scores_N).all():
        raise ValueError("there must be scores, and no NaN or infinity among them")
    spread = float(scores_N.std())
    if spread <= 1e-7 * max(1.0, float(np.abs(scores_N).max())):
        return range(len(scores_N))
    excess = scores_N - scores_N.mean() - spread / 2
    best, found = -np.inf, range(0, 1)
    start, running = 0, 0.0
    for place, value in enumerate(excess.tolist()):
        if running <= 0:
            start, running = place, 0.0
        running += value
        if running > best:
            best, found = running, range(start, place + 1)
    return found


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two stretches of time; 0 for those that do not meet."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    whole = max(one[1], other[1]) - min(one[0], other[0])
    return max(0.0, shared) / whole if whole > 0 else 0.0
