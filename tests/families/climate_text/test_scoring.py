"""What answers are worth, against cases that can be followed by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from sensorium.data.fields import grammar
from sensorium.families.climate_text import scoring

LABELS = ("air temperature", "temperature at 850 hPa", "eastward wind")
FACTS = {
    "location": "north-east",
    "variable": "temperature at 850 hPa",
    "sign": "below",
    "trend": "fading",
    "size": 2.3,
    "unit": "standard deviations",
    "comparison": "northern",
}


@pytest.mark.parametrize("kind", grammar.TOLD)
def test_a_reference_is_right_and_its_opposite_wrong(kind: str) -> None:
    told = grammar.TOLD[kind]
    assert scoring.right_facts(kind, FACTS, grammar.tell(kind, FACTS), LABELS) == dict.fromkeys(told, True)
    other = {
        **{"location": "south", "variable": "eastward wind", "sign": "above", "trend": "growing"},
        **{"size": 1.1, "unit": "standard deviations", "comparison": "southern"},
    }
    assert scoring.right_facts(kind, FACTS, grammar.tell(kind, other), LABELS) == dict.fromkeys(told, False)
    assert scoring.right_facts(kind, FACTS, "I cannot say.", LABELS) == dict.fromkeys(told, False)


def test_a_size_may_be_ten_percent_off() -> None:
    for said, right in ((2.3, True), (2.1, True), (2.5, True), (2.0, False), (-2.3, False)):
        text = f"It is {said} standard deviations."
        assert scoring.right_facts("size", FACTS, text, LABELS) == {"size": right}


def test_without_facts_there_is_nothing_to_be_right_about() -> None:
    assert scoring.right_facts("summary", {}, "In the north it is above normal.", LABELS) == {}
    assert scoring.right_facts("unheard of", FACTS, "It is above normal.", LABELS) == {}


def test_perplexity_is_weighted_by_tokens() -> None:
    loss, tokens = np.array([math.log(4) * 3, math.log(2) * 1]), np.array([3, 1])
    assert scoring.perplexity(loss, tokens) == pytest.approx((4**3 * 2) ** 0.25)
    assert math.isfinite(scoring.perplexity(np.array([1e6]), np.array([1])))


def test_the_majority_of_each_kind() -> None:
    samples = [("sign", {"sign": "above"}), ("sign", {"sign": "below"}), ("sign", {"sign": "below"})]
    samples += [("summary", {"sign": "above", "location": "south"}), ("location", {})]
    assert scoring.majority(samples) == {
        ("sign", "sign"): "below",
        ("summary", "sign"): "above",
        ("summary", "location"): "south",
    }


def test_numbers_are_compared_where_both_texts_hold_one() -> None:
    true = ["It is 2.0 degrees.", "About 10 mm.", "None.", "From 1 to 2."]
    said = ["It is 2.1 degrees.", "About 20 mm.", "It is 3.", "It is 1."]
    assert scoring.numbers(true, said) == (pytest.approx(5.05), 50.0, 2)
    error, share, count = scoring.numbers(["none"], ["none"])
    assert (math.isnan(error), math.isnan(share), count) == (True, True, 0)


def test_overlap_of_words() -> None:
    pytest.importorskip("sacrebleu", reason="the extra text-metrics is not installed")
    pytest.importorskip("rouge_score", reason="the extra text-metrics is not installed")
    texts = ["The strongest anomaly is in the north-east.", "It is above normal, and growing."]
    same, other = scoring.overlap(texts, texts), scoring.overlap(texts, ["No.", "Perhaps."])
    assert same.rouge_l == pytest.approx(100)
    assert same.bleu == pytest.approx(100)
    assert other.rouge_l == pytest.approx(0)
    assert "sacrebleu" in same.version


def test_without_the_libraries_there_is_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    found = scoring.overlap(["a"], ["a"])
    assert (found.rouge_l, found.bleu) == (None, None)
    assert "text-metrics" in found.version
