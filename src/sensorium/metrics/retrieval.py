"""Ranks, recalls and what chance would give: pure functions on arrays.

Legend: Q queries, G gallery items, D width. Items of equal group are right answers to each other. Ties count against
the model: rank = 1 + wrong items with a greater score + wrong items with an equal score, for the best right item. A
collapsed model, all of whose scores are equal, thus gets the worst rank there is and not the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class RetrievalResult:
    """One direction of retrieval. ``recall`` and ``chance`` are percent of queries with a right item in the top k."""

    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float
    mean_rank: float
    queries: int
    gallery: int


def ranks(scores_QG: Array, query_group: Integers, gallery_group: Integers) -> Integers:
    """Rank of the best right item of each query, ``[Q]``, from 1.

    Raises ValueError for a score that is NaN and for a query without a right item in the gallery.
    """
    if scores_QG.shape != (len(query_group), len(gallery_group)):
        found = (len(query_group), len(gallery_group))
        raise ValueError(f"scores have shape {scores_QG.shape}, but there are {found[0]} queries and {found[1]} items")
    if np.isnan(scores_QG).any():
        raise ValueError("a score is NaN")
    return _best_ranks(scores_QG, query_group[:, None] == gallery_group[None, :])


def _best_ranks(scores_QG: Array, right_QG: NDArray[np.bool_]) -> Integers:
    if not right_QG.any(axis=1).all():
        raise ValueError(f"query {int(np.argmin(right_QG.any(axis=1)))} has no right item in the gallery")
    best = np.where(right_QG, scores_QG, -np.inf).max(axis=1)
    return 1 + ((scores_QG >= best[:, None]) & ~right_QG).sum(axis=1)


def products(query_QD: Array, gallery_GD: Array) -> NDArray[np.float32]:
    """Dot products ``[Q, G]``, summed in float64 and rounded to float32.

    Equal vectors then get equal scores wherever they stand, and a tie stays a tie. (A float32 product may differ in the
    last bit from one column of a block to the next.)
    """
    found: NDArray[np.float32] = (query_QD.astype(np.float64) @ gallery_GD.astype(np.float64).T).astype(np.float32)
    return found


def ranks_of_embeddings(
    query_QD: Array, gallery_GD: Array, query_group: Integers, gallery_group: Integers, chunk: int = 1024
) -> Integers:
    """``ranks`` of dot products, ``chunk`` queries at a time."""
    if len(query_QD) != len(query_group) or len(gallery_GD) != len(gallery_group):
        raise ValueError("there must be one group for each embedding")
    parts = []
    for start in range(0, len(query_QD), chunk):
        scores = products(query_QD[start : start + chunk], gallery_GD)
        parts.append(ranks(scores, query_group[start : start + chunk], gallery_group))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def chance_recall(query_group: Integers, gallery_group: Integers, k: int) -> float:
    """Expected R@k of a random order, in percent: the mean over queries of 1 - C(G-p, k) / C(G, k), p right items."""
    known, counts = np.unique(gallery_group, return_counts=True)
    place = np.searchsorted(known, query_group).clip(max=len(known) - 1)
    right = np.where(known[place] == query_group, counts[place], 0)
    return _chance(right, len(gallery_group), k)


def _chance(right_Q: Integers, size: int, k: int) -> float:
    drawn = np.arange(min(k, size))
    missed = ((size - right_Q[:, None] - drawn).clip(min=0) / (size - drawn)).prod(axis=1)
    return float(100 * (1 - missed).mean())


def judge(scores_QG: Array, right_QG: NDArray[np.bool_], ks: Sequence[int]) -> RetrievalResult:
    """Judge a matrix of scores where a query may have several right items, whatever they have in common otherwise.

    Raises ValueError for a score that is NaN, for a query without a right item, and without a query.
    """
    if len(scores_QG) == 0:
        raise ValueError("there is no query")
    if np.isnan(scores_QG).any():
        raise ValueError("a score is NaN")
    rank_Q = _best_ranks(scores_QG, right_QG)
    return RetrievalResult(
        recall={k: float(100 * (rank_Q <= k).mean()) for k in ks},
        chance={k: _chance(right_QG.sum(axis=1), right_QG.shape[1], k) for k in ks},
        median_rank=float(np.median(rank_Q)),
        mean_rank=float(rank_Q.mean()),
        queries=len(rank_Q),
        gallery=right_QG.shape[1],
    )


def summarise(
    rank_Q: Integers, query_group: Integers, gallery_group: Integers, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Recalls, median and mean of ranks, and chance. Raises ValueError without a query."""
    if len(rank_Q) == 0:
        raise ValueError("there is no query")
    return RetrievalResult(
        recall={k: float(100 * (rank_Q <= k).mean()) for k in ks},
        chance={k: chance_recall(query_group, gallery_group, k) for k in ks},
        median_rank=float(np.median(rank_Q)),
        mean_rank=float(rank_Q.mean()),
        queries=len(rank_Q),
        gallery=len(gallery_group),
    )


def retrieval(
    scores_QG: Array, query_group: Integers, gallery_group: Integers, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Judge a matrix of scores."""
    return summarise(ranks(scores_QG, query_group, gallery_group), query_group, gallery_group, ks)


def retrieval_of_embeddings(
    query: tuple[Array, Integers], gallery: tuple[Array, Integers], ks: Sequence[int] = (1, 5, 10), chunk: int = 1024
) -> RetrievalResult:
    """Judge embeddings by their dot products; ``query`` and ``gallery`` are (embeddings, groups)."""
    rank_Q = ranks_of_embeddings(query[0], gallery[0], query[1], gallery[1], chunk)
    return summarise(rank_Q, query[1], gallery[1], ks)
