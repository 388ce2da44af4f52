"""Facts of fields, the grammar that tells them, and the demonstration data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sensorium.config import build
from sensorium.data.fields import demo, facts, grammar, tree, validation
from sensorium.data.fields.facts import CELLS, CLOSED, KINDS
from sensorium.errors import ConfigError, DataError

LABELS = ("air temperature", "temperature at 48 hPa", "eastward wind", "sea level pressure")
SMALL = demo.Options(num_samples=60, shape=(2, 8, 24, 24), questions=7)


def field(cell: int, channel: int, value: float, before: float | None = None) -> np.ndarray:
    z = np.zeros((2, 4, 12, 12))
    rows, columns = slice(cell // 3 * 4, cell // 3 * 4 + 4), slice(cell % 3 * 4, cell % 3 * 4 + 4)
    z[1, channel, rows, columns] = value
    z[0, channel, rows, columns] = value / 2 if before is None else before
    return z


@pytest.mark.parametrize("cell", range(9))
def test_facts_are_those_of_the_field(cell: int) -> None:
    seen = facts.look(field(cell, 2, -2.0), LABELS)
    assert seen is not None
    assert seen.facts == {
        "location": CELLS[cell],
        "variable": "eastward wind",
        "sign": "below",
        "size": 1.5,
        "unit": "standard deviations",
        "trend": "growing",
    }
    assert {"location", "variable", "sign", "size", "trend", "summary"} <= seen.sure
    other = facts.look(field(cell, 0, 1.0, before=3.0), LABELS)
    assert other is not None
    assert (other.facts["variable"], other.facts["sign"], other.facts["trend"]) == (LABELS[0], "above", "fading")


def test_row_0_is_the_south() -> None:
    z = np.zeros((2, 1, 12, 12))
    z[:, :, :4, :4] = 3
    seen = facts.look(z, LABELS[:1])
    assert seen is not None
    assert seen.facts["location"] == "south-west"
    assert set(seen.halves) == {(LABELS[0], "southern"), (LABELS[0], "western")}


def test_what_hangs_on_a_hair_is_not_asked() -> None:
    z = field(0, 0, 2.0)
    z[:, 1, 8:, 8:] = z[:, 0, :4, :4] * 0.99  # another channel is nearly as far off
    z[:, 0, 4:8, :4] = z[:, 0, :4, :4] * 0.99  # and so is another cell
    seen = facts.look(z, LABELS)
    assert seen is not None
    assert not {"location", "variable", "summary"} & seen.sure
    assert "sign" in seen.sure


def test_what_is_not_measured_is_not_told() -> None:
    z = field(0, 0, 2.0)
    z[:, :, :4, :4] = np.nan
    seen = facts.look(z, LABELS)
    assert seen is None or seen.facts["location"] != "south-west"
    assert facts.look(np.full((2, 4, 12, 12), np.nan), LABELS) is None


@given(
    st.sampled_from(KINDS),
    st.sampled_from(CELLS),
    st.sampled_from(LABELS),
    st.integers(0, 2**32),
    st.integers(0, 99),
)
def test_the_parser_reads_every_reference(kind: str, cell: str, label: str, seed: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    told = {one: str(draw.choice(answers)) for one, answers in CLOSED.items()}
    known = {**told, "location": cell, "variable": label, "size": size / 10, "unit": "standard deviations"}
    text = grammar.tell(kind, known, draw)
    assert grammar.read(text, LABELS) == {one: known[one] for one in grammar.TOLD[kind]}
    for answer, sentence in grammar.candidates(kind, known, LABELS).items():
        assert grammar.read(sentence, LABELS) == {kind: answer}


def test_the_parser_does_not_guess() -> None:
    assert grammar.read("", LABELS) == {}
    assert grammar.read("The strongest anomaly is somewhere.", LABELS) == {}
    assert grammar.read("It is in the north, or in the south.", LABELS) == {}
    assert grammar.read("It lies in the northern part, 3 or 4.", LABELS) == {}
    assert grammar.read("It is in the north. In the north!", LABELS) == {"location": "north"}


def test_labels_that_could_not_be_read_back_are_refused() -> None:
    grammar.require_labels(LABELS)
    for wrong in (("wind", "wind"), ("north", "wind"), ("", "wind"), ("growing", "wind")):
        with pytest.raises(DataError, match="the label of a channel must stand once"):
            grammar.require_labels(wrong)


def test_no_question_tells_its_answer() -> None:
    draw = np.random.default_rng(0)
    for kind in KINDS:
        words = {"place": "Japan", "variable": LABELS[0], "comparison": "northern"}
        asked = {grammar.ask(kind, words, draw, held_out=held).text for held in (False, True) for _ in range(60)}
        assert len(asked) == len(grammar.QUESTIONS[kind])
        for text in asked:
            found = grammar.read(text, LABELS if kind != "comparison" else ())
            assert not found, text
    seen = {grammar.ask("sign", words, draw).phrasing for _ in range(60)}
    unseen = {grammar.ask("sign", words, draw, held_out=True).phrasing for _ in range(60)}
    assert not seen & unseen


# --- demonstration data ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data"
    demo.write(root, SMALL)
    return root


def test_demonstration_data_are_valid_and_as_the_guide_says(made: Path) -> None:
    assert not validation.validate(made, validation.Rules(strict=True)).problems
    files = sorted(path.name for path in (made / "train").glob("climate_*.pt"))
    assert files[0] == "climate_00001.pt"
    assert len(files) == 54
    assert sorted(path.name for path in (made / "val").glob("climate_0*.pt"))[-1] == "climate_00006.pt"
    assert tree.load(made / "train" / files[0]).shape == (2, 8, 24, 24)
    scalers = tree.scalers(made / "train")
    assert scalers is not None
    fields = torch.cat([tree.load(made / "train" / name) for name in files])
    assert scalers.field.mean == pytest.approx(fields.double().mean((0, 2, 3)).tolist(), rel=1e-6)
    assert scalers.field.std == pytest.approx(fields.double().std((0, 2, 3), correction=0).tolist(), rel=1e-6)


def told_and_shown(root: Path, split: str) -> tuple[list[bool], Counter[str]]:
    """Of each entry, whether its target says what the field shows; and what was asked."""
    maker = demo.Maker(SMALL)
    layout = tree.layout(root / split)
    right, asked = [], Counter()
    for one in tree.read_index(root / split):
        assert one.facts is not None
        region = maker.region(str(one.location))
        values = tree.load(root / split / one.climate_file).numpy()[:, maker.asked]
        z = (values - region.usual[maker.asked]) / region.spread[maker.asked, None, None]
        seen = facts.look(z, maker.labels)
        assert seen is not None
        kind = str(one.facts["asked"])
        asked[kind] += 1
        halves = [answer for label, answer in seen.halves if label == one.facts["about"]]
        wanted = {**seen.facts, **({"comparison": one.facts.get("comparison")} if kind == "comparison" else {})}
        told = grammar.read(one.target, tuple(layout.labels.values()))
        assert set(told) == set(grammar.TOLD[kind])
        right.append(all(told[key] == wanted[key] for key in told if key != "comparison"))
        if kind == "comparison":
            right[-1] = told["comparison"] in halves
    return right, asked


@pytest.mark.parametrize("split", ["train", "val"])
def test_texts_tell_what_the_finished_field_shows(made: Path, split: str) -> None:
    right, asked = told_and_shown(made, split)
    assert all(right)
    assert asked.keys() == set(KINDS)


def test_without_field_effect_texts_tell_something_else(tmp_path: Path) -> None:
    demo.write(tmp_path / "data", SMALL.model_copy(update={"field_effect": 0.0, "num_samples": 40, "questions": 2}))
    right, _ = told_and_shown(tmp_path / "data", "train")
    assert 0.1 < np.mean(right) < 0.55  # by chance: between one of nine and one of two


def test_demonstration_data_follow_from_seed_and_number_alone(tmp_path: Path) -> None:
    one, two = demo.Maker(SMALL), demo.Maker(SMALL)
    first = [one.entries("train", number) for number in range(3)]
    again = [two.entries("train", number) for number in (2, 1, 0)][::-1]
    assert all(np.array_equal(a[0].values, b[0].values) and a[1] == b[1] for a, b in zip(first, again, strict=True))
    other = demo.Maker(SMALL.model_copy(update={"seed": 1})).entries("train", 0)
    assert not np.array_equal(other[0].values, first[0][0].values)


def test_facts_are_even_and_independent() -> None:
    """Over plans, which the finished fields are redrawn to show."""
    plans = [demo.plan(SMALL, "train", number) for number in range(8000)]
    for get, classes in (
        (lambda one: one.variable, 8),
        (lambda one: one.sign, 2),
        (lambda one: one.trend, 2),
        (lambda one: one.region, 22),
    ):
        shares = np.array(list(Counter(get(one) for one in plans).values())) / len(plans)
        assert len(shares) == classes
        assert shares == pytest.approx(np.full(classes, 1 / classes), abs=0.022)  # four deviations of a half
    signs = np.array([[one.sign, one.trend == "growing", one.variable, one.cell] for one in plans], float)
    between = np.corrcoef(signs.T) - np.eye(4)
    assert np.abs(between[:2]).max() < 0.05  # 4.5 deviations of 8000 draws


def test_validation_has_what_training_never_has() -> None:
    train = [demo.plan(SMALL, "train", number) for number in range(3000)]
    val = [demo.plan(SMALL, "val", number) for number in range(1000)]
    assert not any(one.region in demo.UNSEEN or demo.withheld(one.variable, one.cell) for one in train)
    assert {mark for one in val for mark in one.unseen} == {"region", "pair"}
    for one in val:
        assert ("region" in one.unseen) == (one.region in demo.UNSEEN)
        assert ("pair" in one.unseen) == demo.withheld(one.variable, one.cell)


def test_held_out_questions_stand_in_validation_alone(made: Path) -> None:
    for split in ("train", "val"):
        entries = json.loads((made / split / "index.json").read_text())
        unseen = [one for one in entries if "phrasing" in one["facts"]["unseen"]]
        late = [one for one in entries if one["facts"]["phrasing"] >= len(grammar.QUESTIONS["sign"]) - grammar.HELD_OUT]
        assert unseen == late
        assert bool(unseen) == (split == "val")


def test_all_160_channels_are_sensible() -> None:
    maker = demo.Maker(demo.Options(num_samples=2, shape=(2, 160, 24, 24)))
    for number in range(4):
        sample = maker.sample("train", number)
        for name, values in zip(maker.names, sample.values.swapaxes(0, 1), strict=True):
            channel = demo.channels.known(name)
            assert channel is not None
            assert channel.holds(float(values.min()), float(values.max())), name
            assert np.isfinite(values).all()
            assert values.std() > 0, name


@pytest.mark.parametrize("shape", [(1, 8, 24, 24), (2, 7, 24, 24), (2, 161, 24, 24), (2, 8, 23, 24), (2, 8, 22, 24)])
def test_shapes_that_cannot_hold_the_facts_are_refused(shape: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="allowed are 2 times, 8 to 160 channels, and even sides of 24 to"):
        build(demo.Options, {"shape": shape})
