"""What answers are worth: facts, perplexity, overlap with the reference, and whether the field was used.

Legend: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.data.fields import grammar

CLOSE = 0.1  # a number is right within this share of the true one
_NEVER_SHARED = "rouge-score and sacrebleu are not installed; pip install 'sensorium[text-metrics]'"


def right_facts(kind: str, facts: Mapping[str, Any], text: str, labels: Sequence[str]) -> dict[str, bool]:
    """By fact that the reference of this ``kind`` tells, whether ``text`` tells it, too. What cannot be read is wrong.

    ``labels``: what the variables are called. Empty where the facts are not known.
    """
    told = [fact for fact in grammar.TOLD.get(kind, ()) if fact in facts]
    found = grammar.read(text, labels)
    return {fact: _equal(facts[fact], found.get(fact)) for fact in told}


def _equal(true: Any, said: Any) -> bool:
    if isinstance(true, int | float):
        return isinstance(said, float) and abs(said - true) <= CLOSE * abs(true) + 1e-9
    return bool(true == said)


def perplexity(loss_N: NDArray[np.floating[Any]], tokens_N: NDArray[np.integer[Any]]) -> float:
    """exp of the mean loss of a target token; ``loss_N``: sums over the ``tokens_N`` of each sample."""
    return float(math.exp(min(700.0, float(loss_N.sum()) / float(tokens_N.sum()))))


@dataclass(frozen=True)
class Overlap:
    """ROUGE-L (F, mean over samples) and corpus BLEU, 0 to 100; ``version`` of the libraries, or why there is none."""

    rouge_l: float | None
    bleu: float | None
    version: str


def overlap(references: Sequence[str], texts: Sequence[str]) -> Overlap:
    """How alike the words are (Lin 2004; Papineni 2002, by sacrebleu with its own tokens)."""
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return Overlap(None, None, _NEVER_SHARED)
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(true, text)["rougeL"].fmeasure for true, text in zip(references, texts, strict=True)]
    bleu = sacrebleu.corpus_bleu(list(texts), [list(references)]).score
    return Overlap(100 * float(np.mean(rouge)), float(bleu), f"rouge-score, sacrebleu {sacrebleu.__version__}")


def majority(answers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[tuple[str, str], Any]:
    """The most frequent value of each fact within each kind of question, of (kind, facts) in training; of equals the
    first."""
    counts: dict[tuple[str, str], dict[Any, int]] = {}
    for kind, facts in answers:
        for fact in grammar.TOLD.get(kind, ()):
            if fact in facts:
                of_fact = counts.setdefault((kind, fact), {})
                of_fact[facts[fact]] = of_fact.get(facts[fact], 0) + 1
    return {key: max(found, key=found.__getitem__) for key, found in counts.items()}


def numbers(references: Sequence[str], texts: Sequence[str]) -> tuple[float, float, int]:
    """Mean absolute error and share within 10 %, over the samples where both texts hold one number, and how many those
    are; NaN without any."""
    read = [
        (grammar.read(true, ()).get("size"), grammar.read(said, ()).get("size"))
        for true, said in zip(references, texts, strict=True)
    ]
    pairs = [(true, said) for true, said in read if isinstance(true, float) and isinstance(said, float)]
    if not pairs:
        return math.nan, math.nan, 0
    errors = [abs(said - true) for true, said in pairs]
    close = [_equal(true, said) for true, said in pairs]
    return float(np.mean(errors)), 100 * float(np.mean(close)), len(pairs)
