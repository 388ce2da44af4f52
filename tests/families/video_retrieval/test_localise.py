"""Segments from scores of frames."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sensorium.families.video_retrieval.localise import Timeline, best_stretch, overlap, step_of, windows


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([0.1, 0.1, 0.9, 0.8, 0.1, 0.1], range(2, 4)),
        ([0.9, 0.1, 0.1, 0.1], range(1)),
        ([0.1, 0.1, 0.1, 0.9], range(3, 4)),
        ([0.5, 0.5, 0.5], range(3)),  # nothing stands out: all of it
        ([0.2, 0.9, 0.1, 0.9, 0.2, 0.2, 0.2], range(1, 2)),  # of equals the first; a dip too deep to be bridged
        ([0.0, 0.9, 0.5, 0.9, 0.0, 0.0, 0.0], range(1, 4)),  # one that is not
        ([0.7], range(1)),
    ],
)
def test_the_stretch_that_stands_out(scores: list[float], found: range) -> None:
    assert best_stretch(np.array(scores)) == found


def slow(scores: np.ndarray) -> float:
    excess = scores - scores.mean() - scores.std() / 2
    return max(excess[a:b].sum() for a in range(len(scores)) for b in range(a + 1, len(scores) + 1))


def test_no_other_stretch_is_better() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        scores = draw.random(draw.integers(2, 12))
        excess = scores - scores.mean() - scores.std() / 2
        found = best_stretch(scores)
        assert excess[found.start : found.stop].sum() == pytest.approx(slow(scores))


def test_scores_that_are_none() -> None:
    for scores in ([], [0.1, float("nan")]):
        with pytest.raises(ValueError, match="must be scores"):
            best_stretch(np.array(scores))


def test_windows_cover_everything_and_overlap_by_half() -> None:
    assert windows(3, 8) == [range(3)]
    assert windows(8, 8) == [range(8)]
    assert windows(9, 8) == [range(8), range(1, 9)]
    for count in range(1, 60):
        for length in (1, 2, 5, 12):
            parts = windows(count, length)
            assert {n for part in parts for n in part} == set(range(count))
            assert all(len(part) == min(count, length) for part in parts)
            assert all(b.start - a.start <= max(1, length // 2) for a, b in itertools.pairwise(parts))


def test_an_event_in_seconds() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 1, 0, 0, 0, 0, 0, 0, 0]]
    seen = Timeline(vectors, 20.0, 29.5, frames=4)
    assert seen.step == 1.0
    event = seen.event(np.eye(4, dtype=np.float32)[1], top_k=1)
    assert (event.start_s, event.end_s, event.score) == (21.0, 23.0, 1.0)
    assert [(frame.index, frame.seconds) for frame in event.frames] == [(1, 21.5)]
    last = seen.event(np.full(4, 0.5, np.float32), top_k=20)  # all alike: everything, to the end of the video
    assert (last.start_s, last.end_s, len(last.frames)) == (20.0, 29.5, 10)


def test_short_videos_are_looked_at_more_often() -> None:
    assert step_of(30.0, 12) == 1.0
    assert step_of(3.0, 12) == 0.25
    assert step_of(0.0, 12) == 1.0


def test_overlaps() -> None:
    assert overlap((0, 10), (5, 15)) == pytest.approx(1 / 3)
    assert overlap((0, 1), (2, 3)) == 0.0
    assert overlap((2, 3), (2, 3)) == 1.0
    assert overlap((1, 1), (1, 1)) == 0.0
