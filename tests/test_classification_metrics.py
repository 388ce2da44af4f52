"""Average precision, verification and matching: by hand, and against the definitions written out."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sensorium.metrics.classification import average_precision, chance_precision, mean_average_precision
from sensorium.metrics.verification import area_under_curve, equal_error_rate, matching_accuracy


def truths(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


@pytest.mark.parametrize(
    ("scores", "right", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], "1100", 1.0),
        ([0.9, 0.8, 0.7, 0.6], "0011", (1 / 3 + 2 / 4) / 2),
        ([0.1, 0.4, 0.35, 0.8], "0011", (1 / 1 + 2 / 3) / 2),  # the example of scikit-learn's documentation: 0.83
        ([0.5, 0.5, 0.5, 0.5], "0100", 1 / 4),  # all pass together
        ([0.9, 0.5, 0.5, 0.1], "1010", 0.5 * 1 + 0.5 * 2 / 3),  # two pass together, one of them right
    ],
)
def test_average_precision_by_hand(scores: list[float], right: str, expected: float) -> None:
    found = average_precision(np.array(scores), truths(right))
    assert found == pytest.approx(expected)
    backwards = average_precision(np.array(scores)[::-1], truths(right)[::-1])
    assert backwards == pytest.approx(expected)  # where an item stands means nothing


@pytest.mark.parametrize("right", ["1", "10", "1000", "11010", "111100"])
def test_chance_is_the_mean_over_all_orders(right: str) -> None:
    order = np.arange(len(right), 0, -1.0)
    every = [average_precision(order, np.array(one)) for one in permutations(truths(right))]
    assert chance_precision(len(right), right.count("1")) == pytest.approx(np.mean(every))


def test_classes_that_no_item_has_are_left_out() -> None:
    scores = np.array([[3.0, 1.0, 9.0], [2.0, 2.0, 9.0], [1.0, 3.0, 9.0]])
    right = np.array([[True, True, False], [False, False, False], [False, False, False]])
    found = mean_average_precision(scores, right)
    assert found.mean_precision == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert found.chance == pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 3)
    assert (found.items, found.classes) == (3, 2)
    with pytest.raises(ValueError, match="no item has a class"):
        mean_average_precision(scores, np.zeros_like(right))
    with pytest.raises(ValueError, match="NaN"):
        mean_average_precision(np.full_like(scores, np.nan), right)
    with pytest.raises(ValueError, match="no right item"):
        average_precision(scores[:, 0], right[:, 2])


def naive_area(scores: np.ndarray, same: np.ndarray) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[same] for b in scores[~same]]
    return 100 * float(np.mean(pairs))


def test_area_is_how_often_a_right_pair_wins() -> None:
    rng = np.random.default_rng(0)
    tied = 0
    for _ in range(100):
        size = int(rng.integers(2, 20))
        same = rng.permutation(np.arange(size) < rng.integers(1, size))
        scores = rng.integers(0, 6, size).astype(float)
        tied += len(set(scores.tolist())) < size
        assert area_under_curve(scores, same) == pytest.approx(naive_area(scores, same))
        assert area_under_curve(-scores, same) == pytest.approx(100 - naive_area(scores, same))
    assert tied > 50


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        ([4, 3, 2, 1], "1100", 0.0),
        ([4, 3, 2, 1], "0011", 100.0),
        ([4, 3, 2, 1], "1010", 50.0),  # at the threshold 3: one of two refused, one of two accepted
        ([1, 1, 1, 1], "1010", 50.0),
        ([6, 5, 4, 3, 2, 1], "110100", 100 / 3),  # threshold 4: one of three wrong; threshold 5: one of three right
        # Threshold 3: 1/4 accepted, 1/2 refused; threshold 2: 1/2 and 0: straight between, they meet at 1/3.
        ([4, 3, 2, 2, 1, 1], "100100", 100 / 3),
    ],
)
def test_equal_error_rate_by_hand(scores: list[float], same: str, expected: float) -> None:
    assert equal_error_rate(np.array(scores, float), truths(same)) == pytest.approx(expected)


def test_right_candidates_must_win_alone() -> None:
    scores = np.array([[2.0, 1.0, 1.0], [2.0, 2.0, 1.0], [0.0, 1.0, 1.0], [3.0, 2.0, 2.0]])
    assert matching_accuracy(scores) == 50.0
    assert matching_accuracy(scores[:, :2]) == 50.0
    assert matching_accuracy(scores[:, [0, 2]]) == 75.0
    assert matching_accuracy(np.ones((5, 4))) == 0.0


def test_what_cannot_be_judged_is_refused() -> None:
    one = np.array([1.0, 2.0])
    for judge in (equal_error_rate, area_under_curve):
        with pytest.raises(ValueError, match="and pairs that are not"):
            judge(one, truths("11"))
        with pytest.raises(ValueError, match="NaN"):
            judge(np.array([1.0, np.nan]), truths("10"))
    with pytest.raises(ValueError, match="two candidates"):
        matching_accuracy(np.ones((3, 1)))
    with pytest.raises(ValueError, match="two candidates"):
        matching_accuracy(np.ones((0, 3)))
    with pytest.raises(ValueError, match="NaN"):
        matching_accuracy(np.array([[1.0, np.nan]]))
