"""Same or not the same: verification and matching among few candidates; pure functions on arrays.

Legend: P pairs, T trials, G candidates of a trial. Ties help nobody: a model that gives one score to everything gets an
equal error rate and an area of 50 %, which is chance, and matches nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Truths = NDArray[np.bool_]
CHANCE = 50.0  # percent: of the equal error rate, and of the area under the curve


def equal_error_rate(scores_P: Array, same_P: Truths) -> float:
    """Percent of errors at the threshold at which pairs that are not the same are accepted as often as pairs that are
    the same are refused; between thresholds the curve is straight. Raises ValueError for NaN and for one kind only."""
    accepted, refused = _errors(scores_P, same_P)
    place = int(np.argmax(accepted >= refused))  # the first point on or beyond the diagonal; never 0
    before = refused[place - 1] - accepted[place - 1]
    beyond = accepted[place] - refused[place]
    part = before / (before + beyond)
    return float(100 * (accepted[place - 1] + part * (accepted[place] - accepted[place - 1])))


def area_under_curve(scores_P: Array, same_P: Truths) -> float:
    """How often, in percent, a pair that is the same scores above one that is not; ties count half.

    Raises ValueError for NaN and for one kind only.
    """
    accepted, refused = _errors(scores_P, same_P)
    return float(100 * np.trapezoid(1 - refused, accepted))


def _errors(scores_P: Array, same_P: Truths) -> tuple[Array, Array]:
    """From the strictest threshold to the mildest: shares of wrong pairs accepted and of right pairs refused."""
    if np.isnan(scores_P).any():
        raise ValueError("a score is NaN")
    if same_P.all() or not same_P.any():
        raise ValueError("there must be pairs that are the same and pairs that are not")
    order = np.argsort(-scores_P, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores_P[order])), len(order) - 1)  # equal scores pass together
    right = np.cumsum(same_P[order])[ends]
    accepted, passed = (ends + 1 - right) / (~same_P).sum(), right / same_P.sum()
    return np.concatenate([[0.0], accepted]), np.concatenate([[1.0], 1 - passed])


def matching_accuracy(scores_TG: Array) -> float:
    """Percent of trials whose right candidate, the first, scores above every other. Chance is 100 / G.

    Raises ValueError for NaN, without a trial, and for fewer than two candidates.
    """
    if np.isnan(scores_TG).any():
        raise ValueError("a score is NaN")
    if scores_TG.ndim != 2 or not len(scores_TG) or scores_TG.shape[1] < 2:
        raise ValueError(f"scores have shape {scores_TG.shape}; expected trials of two candidates or more")
    return float(100 * (scores_TG[:, 0] > scores_TG[:, 1:].max(axis=1)).mean())
