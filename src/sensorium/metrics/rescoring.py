"""Scores changed with the help of other queries, in the hope of better ranks: options, to be reported as such.

Legend: Q queries, G gallery items, B queries of a bank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def _softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Array = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def dual_softmax(scores_QG: Array, scale: float = 100.0) -> Array:
    """Each score times the share that its query has among all queries of the item (Cheng et al. 2021, CAMoE,
    arXiv 2109.04290). It looks at all queries at once, which a search does not have."""
    return scores_QG * _softmax(scale * scores_QG.astype(np.float64), axis=0)


def querybank_norm(scores_QG: Array, bank_BG: Array, beta: float = 20.0) -> Array:
    """Items that are the first answer to a query of the bank count for less (Bogolin et al. 2022, arXiv 2112.12777,
    dynamic inverted softmax). ``bank``: scores of queries that have nothing to do with the test."""
    scores, bank = scores_QG.astype(np.float64), bank_BG.astype(np.float64)
    hubs = np.unique(bank.argmax(axis=1))
    changed = np.isin(scores.argmax(axis=1), hubs)
    # exp(beta s) / sum over the bank of exp(beta b), as a logarithm: the order is the same.
    top = bank.max(axis=0)
    heard = beta * top + np.log(np.exp(beta * (bank - top)).sum(axis=0))
    return np.where(changed[:, None], beta * scores - heard, scores)
