"""The best of several pictures, by a CLIP: near the taste's keywords, and near what was asked for.

z = alpha log max(d_p, e) + (1 - alpha) log max(d_t, e), after PMG (arXiv 2404.08677); d_p and d_t are cosines of the
picture with the keywords and with the target's text. Cosines of CLIP can be negative, hence e.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from sensorium.families.pmg.clip import Clip

LEAST = 1e-3  # e
ALPHA = 2 / 3  # the official weight 2 on the logarithm of the preference


@dataclass(frozen=True)
class Score:
    """``taste``: cosine with the keywords, None where there are none; ``clamped``: a cosine lay below e."""

    taste: float | None
    target: float
    z: float
    clamped: bool


def score(taste: float | None, target: float, alpha: float = ALPHA) -> Score:
    """Of one picture. Without keywords alpha is 0."""
    if taste is None:
        return Score(None, target, math.log(max(target, LEAST)), target < LEAST)
    z = alpha * math.log(max(taste, LEAST)) + (1 - alpha) * math.log(max(target, LEAST))
    return Score(taste, target, z, min(taste, target) < LEAST)


def best(scores: Sequence[Score]) -> int:
    """Number of the highest; of equal ones the first, which has the lowest seed number."""
    return max(range(len(scores)), key=lambda number: scores[number].z)


class Chooser:
    """A CLIP and ``alpha``."""

    def __init__(self, clip: Clip, alpha: float) -> None:
        self.clip, self.alpha = clip, alpha

    def scores(self, pictures: Sequence[Image.Image], keywords: Sequence[str], target: str) -> list[Score]:
        """Of pictures that were drawn for one target."""
        texts = self.clip.texts([target, *([", ".join(keywords)] if keywords else [])])
        cosines = (self.clip.pictures(pictures) @ texts.T).tolist()
        return [score(row[1] if keywords else None, row[0], self.alpha) for row in cosines]

    def told(self, scores: Sequence[Score]) -> Mapping[str, Any]:
        """For ``info.json``. Whoever measures pictures that were chosen so by the same CLIP measures too well."""
        return {
            "scores": [asdict(one) for one in scores],
            "chosen_image": best(scores),
            "scorer": {"name": self.clip.name, "digest": self.clip.digest},
        }
