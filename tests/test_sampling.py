"""Which instants are seen: pure functions of length, number, rule and seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.data.sampling import RULES, Rule, grid, nearest, per_second, segments

LENGTHS = st.floats(0, 1e5)
COUNTS = st.integers(1, 64)


def test_segments_are_parts_of_equal_length() -> None:
    assert segments(12.0, 4, None).tolist() == [1.5, 4.5, 7.5, 10.5]
    drawn = segments(12.0, 4, 7)
    assert ((drawn >= [0, 3, 6, 9]) & (drawn < [3, 6, 9, 12])).all()
    assert not np.allclose(drawn, segments(12.0, 4, None))


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_instants(rule: Rule) -> None:
    once, again, other = (RULES[rule](30.0, 12, seed) for seed in (5, 5, 6))
    assert np.array_equal(once, again)
    assert np.array_equal(once, other) is (rule == "fps")  # the negative twin: another seed draws others


def test_every_second_evenly() -> None:
    assert per_second(4.0, 4).tolist() == [0, 1, 2, 3]
    assert per_second(120.0, 5).tolist() == [0, 29, 59, 89, 119]
    assert per_second(2.2, 6).tolist() == [0, 0, 0, 1, 1, 2]  # a short video gives some twice
    assert per_second(0.0, 3).tolist() == [0, 0, 0]


@given(LENGTHS, COUNTS, st.sampled_from(list(RULES)), st.one_of(st.none(), st.integers(0, 2**63 - 1)))
def test_instants_ascend_inside_the_video(length: float, count: int, rule: Rule, seed: int | None) -> None:
    found = RULES[rule](length, count, seed)
    assert found.shape == (count,)
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= length


@given(LENGTHS, st.integers(1, 300))
def test_the_grid_is_bounded_and_ascends(length: float, most: int) -> None:
    found = grid(length, 3.0, most)
    assert 1 <= len(found) <= most
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    assert found[-1] < max(length, 1e-9)


def test_three_a_second_hold_one_a_second() -> None:
    assert set(per_second(20.0, 20)) <= set(grid(20.0, 3.0, 192))
    assert not set(per_second(20.0, 20)) <= set(grid(20.0, 2.5, 192))


def test_of_a_long_grid_so_many_that_lie_evenly() -> None:
    found = grid(1000.0, 3.0, 192)
    assert len(found) == 192
    assert (found[0], found[-1]) == (0, pytest.approx(2999 / 3))
    assert np.ptp(np.diff(found)) <= 1 / 3 + 1e-9


def test_the_nearest_instant_and_the_earlier_of_two() -> None:
    instants = np.array([0.0, 1.0, 2.0])
    assert nearest(np.array([0.0, 0.4, 0.5, 0.6, 1.5, 9.0]), instants).tolist() == [0, 0, 0, 1, 1, 2]
    assert nearest(np.array([0.0, 5.0]), np.array([0.0])).tolist() == [0, 0]


@pytest.mark.parametrize("count", [7, 8, 12, 25, 64])
def test_as_many_instants_as_are_on_the_grid_are_each_seen_once(count: int) -> None:
    """The centres of the parts lie between two instants of the grid: rounding must not choose for itself."""
    length = count / 8
    assert nearest(segments(length, count, None), grid(length, 8.0, 192)).tolist() == list(range(count))
