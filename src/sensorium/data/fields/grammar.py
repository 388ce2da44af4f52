"""Questions and answers about a field: a closed grammar with paraphrases, and the one parser that reads it back.

What is told are the facts of ``facts.py``. The last ``HELD_OUT`` questions of each kind stand in the validation split
alone. No question gives away a fact that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorium.data.fields.facts import CELLS, CLOSED, KINDS
from sensorium.errors import DataError

HELD_OUT = 2

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "location": (
        "Where over {place} is the strongest anomaly?",
        "In which part of {place} does the field depart most from normal?",
        "Look at {place}. Where is the largest departure?",
        "Name the part of {place} with the strongest anomaly.",
        "Which part of {place} is the most unusual?",
        "Over {place}, where do conditions differ most from the usual?",
    ),
    "variable": (
        "Which variable over {place} is the most unusual?",
        "Over {place}, which quantity departs most from normal?",
        "Look at {place}. Which variable has the strongest anomaly?",
        "Name the variable with the largest anomaly over {place}.",
        "What is it over {place} that differs most from the usual?",
        "Over {place}, the strongest anomaly is one of which variable?",
    ),
    "sign": (
        "Is the strongest anomaly over {place} above or below normal?",
        "Over {place}, is the largest departure positive or negative?",
        "Look at {place}. Does its strongest anomaly lie above or below normal?",
        "Say whether the strongest anomaly over {place} is above or below normal.",
        "Is what is most unusual over {place} too high or too low?",
        "Over {place}, in which direction is the strongest departure?",
    ),
    "trend": (
        "Is the strongest anomaly over {place} growing or fading?",
        "Over {place}, does the largest departure grow or fade?",
        "Look at {place}. Is its strongest anomaly getting stronger or weaker?",
        "Say whether the strongest anomaly over {place} grows or fades.",
        "What becomes of the anomaly over {place}: does it grow or fade?",
        "Over {place}, how does the strongest departure change with time?",
    ),
    "size": (
        "How large is the strongest anomaly over {place}?",
        "By how much does {place} depart from normal at most?",
        "Look at {place}. How strong is its largest anomaly?",
        "Give the size of the strongest anomaly over {place}.",
        "How far from the usual is the most unusual part of {place}?",
        "Over {place}, what is the size of the largest departure?",
    ),
    "comparison": (
        "Compare the {axis} halves of {place}: in which is {variable} higher?",
        "Over {place}, which of the {axis} halves has the higher anomaly of {variable}?",
        "Look at {variable} over {place}. Which of the {axis} halves is higher?",
        "Of the {axis} halves of {place}, name the one where {variable} is higher.",
        "Between the {axis} halves of {place}, which one leads in {variable}?",
        "In which of the {axis} halves of {place} is {variable} higher?",
    ),
    "summary": (
        "Summarise the strongest anomaly over {place}.",
        "Describe what is unusual over {place}.",
        "Analyze climate patterns for {place}.",
        "Look at {place}. Report the strongest anomaly.",
        "Give a short report of {place}.",
        "What stands out over {place}?",
    ),
}

ANSWERS: Mapping[str, tuple[str, ...]] = {
    "location": (
        "The strongest anomaly is in the {location}.",
        "It lies in the {location}.",
    ),
    "variable": (
        "The most unusual variable is {variable}.",
        "It is {variable} that departs most.",
    ),
    "sign": (
        "It is {sign} normal.",
        "The anomaly lies {sign} normal.",
    ),
    "trend": (
        "The anomaly is {trend}.",
        "It is {trend}.",
    ),
    "size": (
        "It is {size} {unit}.",
        "The anomaly measures {size} {unit}.",
    ),
    "comparison": (
        "It is higher in the {comparison} half.",
        "The {comparison} half is higher.",
    ),
    "summary": (
        "In the {location}, {variable} is {size} {unit} {sign} normal, and the anomaly is {trend}.",
        "The anomaly of {variable} in the {location} is {trend}; it lies {size} {unit} {sign} normal.",
    ),
}

_AXES = {
    "northern": "northern and southern",
    "southern": "northern and southern",
    "western": "western and eastern",
    "eastern": "western and eastern",
}
TOLD: Mapping[str, tuple[str, ...]] = {
    **{kind: (kind,) for kind in KINDS},
    "summary": ("location", "variable", "sign", "trend", "size"),
}
"""Which facts an answer of a kind holds."""


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<![\w-]){re.escape(one)}(?![\w-])" for one in sorted(words, key=len, reverse=True)))


_PATTERNS = {
    "location": _pattern(CELLS),
    "sign": _pattern(CLOSED["sign"]),
    "trend": _pattern(CLOSED["trend"]),
    "comparison": re.compile(r"\b(?:northern|southern|western|eastern)(?= half\b)"),
}
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w-]|\.\d)")


@dataclass(frozen=True)
class Question:
    """``phrasing``: number of the template."""

    text: str
    phrasing: int
    held_out: bool


def ask(kind: str, words: Mapping[str, str], draw: np.random.Generator, *, held_out: bool = False) -> Question:
    """A question; ``words``: ``place``, and for a comparison ``variable`` and the answer, which tells the axis.

    ``held_out``: one of the phrasings that training never has.
    """
    templates = QUESTIONS[kind]
    seen = len(templates) - HELD_OUT
    number = int(draw.integers(seen, len(templates)) if held_out else draw.integers(seen))
    axis = _AXES.get(words.get("comparison", ""), "")
    text = templates[number].format(place=words["place"], variable=words.get("variable", ""), axis=axis)
    return Question(text, number, held_out)


def tell(kind: str, facts: Mapping[str, Any], draw: np.random.Generator | None = None) -> str:
    """The answer; without ``draw`` in the first of its forms."""
    templates = ANSWERS[kind]
    template = templates[0 if draw is None else int(draw.integers(len(templates)))]
    return template.format(**{**facts, "size": f"{facts.get('size', 0):.1f}"})


def read(text: str, variables: Sequence[str]) -> dict[str, str | float]:
    """The facts that a text tells; what it contradicts itself in is left out. ``variables``: the labels there are."""
    found: dict[str, str | float] = {}
    rest = " ".join(text.split())
    if variables:
        pattern = _pattern(variables)
        _take(found, "variable", pattern.findall(rest))
        rest = pattern.sub("~", rest)  # labels hold numbers, and might hold words of the grammar
    for kind, one in _PATTERNS.items():
        _take(found, kind, one.findall(rest))
    numbers = _NUMBER.findall(rest)
    if len(numbers) == 1:
        found["size"] = float(numbers[0])
    return found


def _take(found: dict[str, str | float], kind: str, values: Sequence[str]) -> None:
    if len(set(values)) == 1:
        found[kind] = values[0]


def candidates(kind: str, facts: Mapping[str, Any], variables: Sequence[str]) -> dict[str, str]:
    """Of a question with closed answers each answer and its sentence, in a fixed order; of others none."""
    if kind == "comparison":
        ways = [way for way, axis in _AXES.items() if axis == _AXES.get(str(facts.get("comparison")))]
    else:
        ways = list(variables) if kind == "variable" else list(CLOSED.get(kind, ()))
    return {way: tell(kind, {kind: way}) for way in ways}


def require_labels(labels: Sequence[str]) -> None:
    """Raise DataError when texts with these labels of channels could not be read back."""
    for label in labels:
        facts = {"variable": label, "size": 1.5, "unit": "standard deviations"}
        facts |= {kind: answers[0] for kind, answers in CLOSED.items()}
        told = [(tell(kind, facts), {one: facts[one] for one in wanted}) for kind, wanted in TOLD.items()]
        told += [(tell(kind, {kind: one}), {kind: one}) for kind, answers in CLOSED.items() for one in answers]
        if not label.strip() or labels.count(label) > 1 or any(read(text, labels) != wanted for text, wanted in told):
            raise DataError(f"{label!r}: the label of a channel must stand once, and hold no word of the answers")
