"""Answers and controls are judged rightly: who sees the field passes, who does not is said to."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium import config as configuration
from sensorium import families
from sensorium.data.fields import grammar
from sensorium.engine import loop, settings
from sensorium.engine.contract import Batch, Evaluation, Host, Sources
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.attention import looked_at
from sensorium.families.climate_text.controls import asked
from sensorium.families.climate_text.data import EvalSource, TrainSource, spread
from sensorium.families.climate_text.evaluator import NOT_USED, ClimateEvaluator
from sensorium.families.climate_text.gallery import field_map
from sensorium.families.climate_text.ranking import likeliest
from sensorium.families.climate_text.task import ClimateTextTask, group

FAMILY = families.load("climate_text")
CHANGES = {"data": {"demo": {"num_samples": 40, "questions": 3}, "evaluation": {"max_new_tokens": 200, "maps": 3}}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[settings.RunConfig, Sources]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = settings.resolve(FAMILY, "tiny", CHANGES)
        yield config, FAMILY.sources(config, Host())


@pytest.fixture(scope="module")
def task(prepared: tuple[settings.RunConfig, Sources]) -> ClimateTextTask:
    torch.manual_seed(0)
    made = FAMILY.task(prepared[0], FAMILY.facts(*prepared)).eval()
    assert isinstance(made, ClimateTextTask)
    return made


@pytest.fixture
def source(prepared: tuple[settings.RunConfig, Sources]) -> EvalSource:
    found = prepared[1].val
    assert isinstance(found, EvalSource)
    return found


Judge = Callable[..., Evaluation]


@pytest.fixture
def judge(prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: ClimateTextTask) -> Judge:
    return partial(judged, prepared, source, task)


def ranked(source: EvalSource, right: bool) -> np.ndarray:
    """With the own field the true one of the closed answers, or another; with other fields always the first."""
    found = np.full((len(source.controls), source.rows), -1)
    for row, answers in source.closed.items():
        kind, facts = asked(source.part.entries[row])
        found[:, row] = 0
        found[0, row] = (list(answers).index(facts[kind]) + (not right)) % len(answers)
    return found.reshape(-1)


def judged(
    prepared: tuple[settings.RunConfig, Sources],
    source: EvalSource,
    task: ClimateTextTask,
    answers: Sequence[Sequence[str]],
    *,
    gain: float,
    right: bool = True,
) -> Evaluation:
    """The evaluation of these texts by control, with losses of one nat a token, less ``gain`` with the own field."""
    texts, most = source.inputs.texts, prepared[0].data.evaluation.max_new_tokens
    ids = np.full((len(source), most), -1)
    for row, text in enumerate(text for some in answers for text in some):
        numbers = texts.target(text)
        ids[row, : len(numbers)] = numbers
    tokens = np.full(len(source), 10)
    loss = tokens * np.where(np.arange(len(source)) < source.rows, 1.0 - gain, 1.0)
    loss = loss + np.random.default_rng(0).normal(0, 0.01, len(source))
    found = {"answer": ids, "tokens": tokens, "loss": loss, "ranked": ranked(source, right)}
    collected = {name: torch.from_numpy(values) for name, values in found.items()}
    with torch.no_grad():
        return ClimateEvaluator(prepared[0]).score(collected, source, task, final=True)


def test_who_answers_from_the_field_passes(judge: Judge, source: EvalSource) -> None:
    """With its own field all is right; with another's it tells what that one shows, without one it is silent."""
    entries = source.part.entries
    own = [entry.target for entry in entries]
    other = [entries[number].target for number in source.partner.tolist()]
    found = judge([own, other, [""] * len(own)], gain=0.5)
    assert found.metrics["facts"] == found.metrics["facts/location"] == 100.0
    assert found.metrics["absent/facts"] == 0.0
    assert found.metrics["shuffled/facts"] < 60
    assert found.metrics["climate_used"] == 1.0
    assert found.warnings == ()
    assert found.metrics["perplexity"] == pytest.approx(math.exp(0.5), rel=0.01)
    assert found.metrics["perplexity/shuffled"] == pytest.approx(math.e, rel=0.01)
    assert 0 < found.metrics["chance/facts"] < 70
    tables = {table.title: table for table in found.tables}
    assert [row[0] for row in tables["Answers"].rows][-1] == "the commonest answer"
    assert all(row[-1] == "yes" for row in tables["Is the field used?"].rows)
    own_numbers, _, silent, _ = tables["Numbers"].rows
    assert own_numbers[1:3] == (0.0, 100.0)
    assert own_numbers[3] == own_numbers[4] == found.metrics["numbers"] > 0
    assert silent[1:4] == (None, None, 0)


def test_what_is_assumed_stands_in_the_report(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: ClimateTextTask
) -> None:
    entries = tuple(one.model_copy(update={"lat": None, "lon": None}) for one in source.part.entries)
    bare = replace(source, part=replace(source.part, entries=entries))
    silent = [[""] * source.rows] * 3
    known, told = (judged(prepared, one, task, silent, gain=0.0).tables[0].note for one in (source, bare))
    assert "assumed" not in known
    assert f"Positions assumed: {len(entries)} of {len(entries)} entries" in told


def test_closed_answers_are_ranked_apart(judge: Judge, source: EvalSource) -> None:
    """Whatever is written; beside what one of them at random would get."""
    silent = [[""] * source.rows] * 3
    kinds = [asked(source.part.entries[row])[0] for row in source.closed]
    assert {"location", "variable", "sign", "trend"} <= set(kinds)
    for right in (True, False):
        found = judge(silent, gain=0.5, right=right)
        assert found.metrics["ranked/facts"] == found.metrics["ranked/facts/location"] == 100.0 * right
        assert found.metrics["facts"] == 0.0
        assert found.metrics["chance/ranked/facts/location"] == pytest.approx(100 / 9)
        assert found.metrics["chance/ranked/facts/sign"] == 50.0
        assert found.metrics["shuffled/ranked/facts"] == found.metrics["absent/ranked/facts"] < 70
        [table] = [table for table in found.tables if table.title == "Facts by likelihood"]
        assert table.columns[1:] == ("facts", *(kind for kind in grammar.TOLD if kind in kinds), "samples")
    assert replace(source, ranked=0).closed == {}
    few = replace(source, ranked=3)
    assert len(few.closed) == 3
    assert set(few.closed) <= set(source.closed)


def test_the_likeliest_is_the_one_with_the_least_loss(source: EvalSource, task: ClimateTextTask) -> None:
    """As the loss of each answer as a target says, one by one."""
    few = replace(source, ranked=4)
    rows = [*few.closed, next(row for row in range(few.rows) if row not in few.closed)]
    batch = few.collate([few.example(row, 0) for row in rows])
    with torch.no_grad():
        found = likeliest(task.model, batch).tolist()
        for row, number in zip(rows[:-1], found[:-1], strict=True):
            alone = few.example(row, 0)
            ways = [few.inputs.texts.target(text) for text in few.closed[row].values()]
            losses = [task.model(few.collate([{**alone, "target_ids": ids}])).losses().sum() for ids in ways]
            assert number == int(torch.stack(losses).argmin())
    assert found[-1] == -1
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["target_mask"], 65)}
    assert likeliest(task.model, other).tolist() == found
    assert len(set(found[:-1])) > 1


def test_who_does_not_look_is_found_out(judge: Judge, source: EvalSource) -> None:
    """Negative twin: the same right answers with every field come from the text, not from the field."""
    own = [entry.target for entry in source.part.entries]
    for gain in (0.0, 0.5):
        found = judge([own, own, own], gain=gain)
        assert found.metrics["facts"] == found.metrics["shuffled/facts"] == 100.0
        assert found.metrics["climate_used"] == 0.0
        [warning] = found.warnings
        assert warning.startswith(NOT_USED)
        assert "facts, over the field of another sample: 0 (0 to 0)" in warning
        assert ("loss, below" in warning) is (gain == 0.0)


def test_the_report_shows_maps_and_all_answers(judge: Judge, source: EvalSource) -> None:
    own = [entry.target for entry in source.part.entries]
    found = judge([own, own, own], gain=0.0)
    [gallery] = found.galleries
    assert [card.query.image for card in gallery.cards] == list(found.pictures) == [f"map-{n}.png" for n in range(3)]
    assert gallery.cards[0].query.caption == source.part.entries[0].text
    captions = [hit.caption for hit in gallery.cards[0].found]
    assert [caption.partition(":")[0] for caption in captions] == [
        "truth",
        "with its own field",
        "with the field of another sample",
        "with no field",
    ]
    assert gallery.cards[0].found[1].right is True
    assert "gated cross attention" in (gallery.note or "")
    with Image.open(io.BytesIO(found.pictures["map-0.png"])) as image:
        assert image.width > 800  # the attention stands beside the field
    assert len(found.details["answers"]) == source.rows
    assert found.details["answers"][0]["own"] == source.part.entries[0].target


def test_attention_is_over_the_windows_of_the_field(source: EvalSource, task: ClimateTextTask) -> None:
    batch = source.collate([source.example(0, 0)])
    shares = looked_at(task.model, batch)
    assert shares is not None
    with torch.no_grad():
        tokens, lat, lon = task.model.encoder.encode(batch)
        flat = task.model.attention(batch)[0].numpy()
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)
    assert shares.shape == (3, 3)
    for number, value in enumerate(flat):
        row, column = (int((ticks[0].unique() < ticks[0, number]).sum()) for ticks in (lat, lon))
        assert shares[row, column] == value
    encoded = {**batch, "climate_tokens": tokens, "token_lat": lat, "token_lon": lon}
    np.testing.assert_allclose(looked_at(task.model, encoded), shares, atol=1e-6)
    joined = {name: torch.cat([encoded[name]] * 2, dim=1) for name in ("climate_tokens", "token_lat", "token_lon")}
    assert looked_at(task.model, {**batch, **joined}) is None  # two fields in one


def test_the_map_is_of_what_is_asked(source: EvalSource) -> None:
    for row, entry in enumerate(source.part.entries):
        facts = entry.facts or {}
        found = field_map(source.part, row, f"The strongest anomaly is in the {facts['location']}.")
        assert found.title.startswith(facts["about"])
        assert found.true == found.told == facts["location"]
        assert found.anomaly
        sample = source.part.sample(row)
        assert found.values.shape == (len(sample.lat), len(sample.lon))
        name = next(name for name, label in source.part.layout.labels.items() if label == facts["about"])
        channel = sample.names.index(name)
        assert sample.climatology is not None
        np.testing.assert_array_equal(found.values, (sample.field[-1, channel] - sample.climatology[channel]).numpy())
    assert field_map(source.part, 0, "I do not know.").told is None


def brief(config: settings.RunConfig) -> ClimateEvaluator:
    """Answers of a few tokens."""
    data = config.data.model_copy(
        update={"evaluation": config.data.evaluation.model_copy(update={"max_new_tokens": 6})}
    )
    return ClimateEvaluator(config.model_copy(update={"data": data}))


def whole(source: EvalSource) -> Batch:
    numbers = range(len(source))
    return source.collate([source.example(number, 0) for number in numbers])


def test_losses_and_answers_of_a_batch(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: ClimateTextTask
) -> None:
    few = replace(source, answers=2)
    assert few.answered.sum() == 2
    batch, evaluator = whole(few), brief(prepared[0])
    with torch.no_grad():
        found = evaluator.collect(task, batch, final=True)
        losses = task.model(batch).losses()
    assert found["loss"].sum() == pytest.approx(float(losses.sum()), rel=1e-5)
    assert int(found["tokens"].sum()) == int(batch["target_mask"].sum())
    asked = batch["answered"]
    assert int(asked.sum()) == 2 * 3
    assert (found["answer"][~asked] == -1).all()
    assert (found["answer"][asked][:, 0] >= 0).all()
    assert set((found["ranked"] >= 0).nonzero()[:, 0].tolist()) == {
        row + control * few.rows for row in few.closed for control in range(3)
    }
    assert evaluator.collect(task, batch, final=False).keys() == {"loss", "tokens"}


def test_answers_do_not_know_the_target(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: ClimateTextTask
) -> None:
    few = replace(source, answers=2)
    batch, evaluator = whole(few), brief(prepared[0])
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["target_mask"], 65)}
    with torch.no_grad():
        first, second = (evaluator.collect(task, one, final=True) for one in (batch, other))
    assert torch.equal(first["answer"], second["answer"])
    assert not torch.equal(first["loss"], second["loss"])


def test_the_training_split_has_no_controls(
    prepared: tuple[settings.RunConfig, Sources], task: ClimateTextTask
) -> None:
    config, found = prepared
    assert isinstance(found.train, TrainSource)
    with pytest.raises(DataError, match="evaluate val or test"):
        ClimateEvaluator(config).score({}, found.train, task, final=True)


def test_validation_must_not_be_training(prepared: tuple[settings.RunConfig, Sources], tmp_path: Path) -> None:
    part = prepared[1].train.part.folder
    given = {"data": {"demo": None, "train_path": str(part), "val_path": str(part / ".." / "train")}}
    config = settings.resolve(FAMILY, "tiny", given)
    with pytest.raises(DataError, match="val and train are the same folder"):
        FAMILY.sources(config, Host())
    none = configuration.merge(given, {"data": {"val_path": str(tmp_path / "none")}})
    with pytest.raises(DataError, match="no such folder"):
        FAMILY.sources(settings.resolve(FAMILY, "tiny", none), Host())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid_vit": {"patch": 5}}, r"patch 5 does not divide the grid of 24 x 24 points"),
        ({"token_window": [2, 2]}, r"token_window \[2, 2\]: must divide the unit of 3 x 3 patches"),
    ],
)
def test_patches_that_do_not_fit_are_refused_before_a_run_is_begun(
    prepared: tuple[settings.RunConfig, Sources], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folders = {"demo": None, "train_path": str(prepared[1].train.part.folder), "val_path": None}
    config = settings.resolve(FAMILY, "tiny", {"data": folders, "model": changes})
    with pytest.raises(ConfigError, match=message):
        loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_parameter_groups(task: ClimateTextTask) -> None:
    groups = {name: group(name, parameter) for name, parameter in task.named_parameters()}
    parts = {f"{part}{ending}" for part in ("encoder", "llm", "fusion") for ending in ("", "_no_decay")}
    assert set(groups.values()) == parts | {"gates_no_decay"}
    assert all(group_.endswith("_no_decay") for name, group_ in groups.items() if name.endswith("bias"))


@pytest.mark.parametrize(("count", "wanted", "chosen"), [(5, None, 5), (5, 9, 5), (5, 2, 2), (1000, 300, 300)])
def test_evenly_spread(count: int, wanted: int | None, chosen: int) -> None:
    found = spread(count, wanted)
    assert found.sum() == chosen
    assert found[0]
    assert found[-1] or chosen == 1
