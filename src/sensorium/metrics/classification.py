"""Average precision of classifiers with several labels, and what chance would give: pure functions on arrays.

Legend: N items, C classes. Scores are compared within a class only, so any increasing function of them does as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Truths = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelResult:
    """``mean_precision`` and ``chance``: percent, means over the ``classes`` that some of the ``items`` have."""

    mean_precision: float
    chance: float
    items: int
    classes: int


def average_precision(scores_N: Array, right_N: Truths) -> float:
    """Precision at each threshold, weighted with the recall gained there, from 0 to 1: sum of (R_n - R_n-1) P_n.

    Items of equal scores pass a threshold together, whatever their order (the definition of scikit-learn's
    ``average_precision_score``): equal scores for all give the share of right items. Raises ValueError for a score
    that is NaN, and without a right item.
    """
    if np.isnan(scores_N).any():
        raise ValueError("a score is NaN")
    if not right_N.any():
        raise ValueError("there is no right item")
    order = np.argsort(-scores_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)  # the last item of each score
    found = np.cumsum(right_N[order])[ends]
    precision = found / (ends + 1)
    gained = np.diff(found, prepend=0) / right_N.sum()
    return float((precision * gained).sum())


def chance_precision(items: int, right: int) -> float:
    """Expected average precision of a random order of ``items`` of which ``right`` are right, without ties.

    The item at place k is right with probability R / N; then k - 1 places hold on average (k - 1)(R - 1) / (N - 1)
    further right ones.
    """
    harmonic = float((1 / np.arange(1, items + 1)).sum())
    others = (right - 1) / (items - 1) if items > 1 else 0.0
    return (harmonic + others * (items - harmonic)) / items


def mean_average_precision(scores_NC: Array, right_NC: Truths) -> LabelResult:
    """Mean over the classes that at least one item has. Raises ValueError without such a class, and for NaN."""
    classes = np.flatnonzero(right_NC.any(axis=0))
    if not len(classes):
        raise ValueError("no item has a class")
    found = [average_precision(scores_NC[:, c], right_NC[:, c]) for c in classes]
    chance = [chance_precision(len(right_NC), int(right_NC[:, c].sum())) for c in classes]
    return LabelResult(100 * float(np.mean(found)), 100 * float(np.mean(chance)), len(right_NC), len(classes))
