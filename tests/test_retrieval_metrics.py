"""Ranks, recalls and chance against the definition written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sensorium.metrics.retrieval import (
    chance_recall,
    ranks,
    ranks_of_embeddings,
    retrieval,
    retrieval_of_embeddings,
)

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def naive_rank(scores: np.ndarray, group: int, gallery_group: np.ndarray) -> int:
    best = max(score for score, other in zip(scores, gallery_group, strict=True) if other == group)
    rank = 1
    for score, other in zip(scores, gallery_group, strict=True):
        if other != group and score >= best:
            rank += 1
    return rank


def cases() -> list[Case]:
    """200 random ones, with several right items and many ties (scores are small whole numbers)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        items, queries = int(rng.integers(1, 12)), int(rng.integers(1, 9))
        gallery_group = rng.integers(0, 5, items)
        query_group = rng.choice(gallery_group, queries)
        scores = rng.integers(0, int(rng.integers(1, 8)), (queries, items)).astype(np.float32)
        found.append((scores, query_group, gallery_group))
    return found


def test_ranks_equal_the_definition_written_out() -> None:
    tied = several = 0
    for scores, query_group, gallery_group in cases():
        expected = [naive_rank(row, group, gallery_group) for row, group in zip(scores, query_group, strict=True)]
        assert ranks(scores, query_group, gallery_group).tolist() == expected
        tied += any(len(set(row)) < len(row) for row in scores.tolist())
        several += bool((np.unique(gallery_group, return_counts=True)[1] > 1).any())
    assert min(tied, several) > 100


def test_order_of_queries_and_items_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    for scores, query_group, gallery_group in cases()[:50]:
        q, g = rng.permutation(len(query_group)), rng.permutation(len(gallery_group))
        shuffled = ranks(scores[q][:, g], query_group[q], gallery_group[g])
        assert shuffled.tolist() == ranks(scores, query_group, gallery_group)[q].tolist()


def test_a_tie_counts_against_the_model() -> None:
    group = np.arange(20)
    collapsed = retrieval(np.ones((20, 20)), group, group)
    assert collapsed.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert (collapsed.median_rank, collapsed.mean_rank) == (20.0, 20.0)
    perfect = retrieval(np.eye(20), group, group)
    assert perfect.recall == {1: 100.0, 5: 100.0, 10: 100.0}


def test_a_collapsed_model_ties_in_embeddings_too() -> None:
    """One vector for all: float32 products may differ in the last bit by their place; that must not look like skill."""
    vector = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    same, group = np.repeat(vector[None], 101, axis=0), np.arange(101)
    for chunk in (1, 7, 1024):
        assert (ranks_of_embeddings(same, same, group, group, chunk) == 101).all()


def test_chunks_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((23, 8)).astype(np.float32), rng.standard_normal((31, 8)).astype(np.float32)
    gallery_group = rng.integers(0, 6, 31)
    query_group = rng.choice(gallery_group, 23)
    scores = query.astype(np.float64) @ gallery.astype(np.float64).T
    expected = ranks(scores, query_group, gallery_group).tolist()
    for chunk in (1, 5, 23, 100):
        assert ranks_of_embeddings(query, gallery, query_group, gallery_group, chunk).tolist() == expected
    result = retrieval_of_embeddings((query, query_group), (gallery, gallery_group))
    assert result == retrieval(scores, query_group, gallery_group)
    assert (result.queries, result.gallery) == (23, 31)


def test_what_cannot_be_ranked_is_an_error() -> None:
    group = np.arange(3)
    with pytest.raises(ValueError, match="a score is NaN"):
        retrieval(np.where(np.eye(3) > 0, np.nan, 0.0), group, group)
    with pytest.raises(ValueError, match="query 1 has no right item in the gallery"):
        retrieval(np.eye(3), np.array([0, 7, 2]), group)
    with pytest.raises(ValueError, match="there is no query"):
        retrieval(np.zeros((0, 3)), np.zeros(0, np.int64), group)
    with pytest.raises(ValueError, match=r"scores have shape \(3, 2\)"):
        retrieval(np.zeros((3, 2)), group, group)
    with pytest.raises(ValueError, match="one group for each embedding"):
        ranks_of_embeddings(np.eye(3), np.eye(3), group, np.arange(2))


def test_chance_is_the_expectation_over_all_orders() -> None:
    gallery_group = np.array([0, 0, 0, 1, 1, 2])
    for k in (1, 2, 3, 6, 10):
        draws = list(combinations(range(6), min(k, 6)))
        for group in (0, 1, 2):
            hits = sum(any(gallery_group[i] == group for i in draw) for draw in draws)
            found = chance_recall(np.array([group]), gallery_group, k)
            assert found == pytest.approx(100 * hits / len(draws))
    mixed = chance_recall(np.array([0, 2]), gallery_group, 1)
    assert mixed == pytest.approx(100 * (3 / 6 + 1 / 6) / 2)


def test_chance_of_the_usual_test_set() -> None:
    """1,000 pictures with five captions each: 0.1 % of text queries, and about 0.1 % of picture queries at k = 1."""
    pictures, captions = np.arange(1000), np.repeat(np.arange(1000), 5)
    assert chance_recall(captions, pictures, 10) == pytest.approx(1.0)
    assert chance_recall(pictures, captions, 1) == pytest.approx(0.1)
    assert chance_recall(pictures, captions, 10) == pytest.approx(0.996, abs=1e-3)
