"""Dual softmax and QB-Norm against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sensorium.metrics.rescoring import dual_softmax, querybank_norm

SCORES = np.array([[0.9, 0.2, 0.1], [0.8, 0.3, 0.1], [0.1, 0.0, 0.4]])


def test_dual_softmax_by_hand() -> None:
    """Item 0 is everybody's favourite; with the share of each query among all, query 1 goes to item 1."""
    found = dual_softmax(SCORES, scale=10.0)
    for query, item in ((0, 0), (1, 0), (1, 1), (2, 2)):
        column = [math.exp(10 * value) for value in SCORES[:, item]]
        assert found[query, item] == pytest.approx(SCORES[query, item] * column[query] / sum(column))
    assert SCORES.argmax(axis=1).tolist() == [0, 0, 2]
    assert found.argmax(axis=1).tolist() == [0, 0, 2]
    sharper = dual_softmax(SCORES, scale=30.0)
    assert sharper.argmax(axis=1).tolist() == [0, 1, 2]


def test_dual_softmax_does_not_overflow() -> None:
    assert np.isfinite(dual_softmax(SCORES * 50, scale=100.0)).all()


def test_querybank_norm_by_hand() -> None:
    """The bank's first answers are item 0 alone: queries that would get it are changed, the third stays as it is."""
    bank = np.array([[0.9, 0.1, 0.2], [0.7, 0.1, 0.0]])
    found = querybank_norm(SCORES, bank, beta=20.0)
    assert np.array_equal(found[2], SCORES[2])
    for query in (0, 1):
        for item in range(3):
            heard = sum(math.exp(20 * value) for value in bank[:, item])
            assert math.exp(found[query, item]) == pytest.approx(math.exp(20 * SCORES[query, item]) / heard)
    assert found.argmax(axis=1).tolist() == [1, 1, 2]


def test_a_bank_that_hears_nothing_changes_nothing() -> None:
    bank = np.array([[0.0, 0.9, 0.1]])  # item 1 is no query's first answer
    assert np.array_equal(querybank_norm(SCORES, bank), SCORES)
