"""Samples of like length share a step, and that is all that changes: epochs and resumes stay what they promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_ranks import Ranks, forked_ranks
from helpers import TOY, ToyData, ToySource, lines, toy_config, toy_sources
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import EACH_STEP, assert_equal_runs, cut, run, without
from test_two_ranks import samples
from toy_variants import LONG, LongSource

from sensorium.engine import check as preflight
from sensorium.engine import check_ahead, order
from sensorium.engine.contract import Family, Host, Mix, Source, Sources, Stage
from sensorium.engine.lengths import LengthSource
from sensorium.engine.loader import Batches, TrainingRows
from sensorium.engine.order import Order, Share, SortedOrder, order_of
from sensorium.engine.settings import Loader, RunConfig
from sensorium.errors import ConfigError

# An epoch is two and a half steps; each second one has a step of two epochs in its middle.
SORTED: Mapping[str, Any] = {**EACH_STEP, "loader": {"sort_window": 2}, "train": {"micro_batches": 2}}
SIZES: Mapping[str, Any] = {
    "size": st.integers(1, 40),
    "batch": st.integers(1, 9),
    "window": st.integers(1, 6),
    "seed": st.integers(0, 3),
}


def made(size: int, batch: int, window: int, seed: int = 0) -> SortedOrder:
    found = order_of(LongSource(ToyData(length=size), 0), seed, batch, window)
    assert isinstance(found, SortedOrder)
    return found


def steps_of(found: order.AnyOrder, batch: int, steps: range) -> list[list[int]]:
    return [[found.sample(p) for p in range(step * batch, (step + 1) * batch)] for step in steps]


@settings(max_examples=80)
@given(epoch=st.integers(0, 3), **SIZES)
def test_every_epoch_holds_every_sample_once(size: int, batch: int, window: int, seed: int, epoch: int) -> None:
    found = made(size, batch, window, seed)
    assert sorted(found.sample(p) for p in range(epoch * size, (epoch + 1) * size)) == list(range(size))


@settings(max_examples=80)
@given(start=st.integers(0, 60), **SIZES)
def test_a_step_does_not_depend_on_those_that_were_asked_for(
    size: int, batch: int, window: int, seed: int, start: int
) -> None:
    through = steps_of(made(size, batch, window, seed), batch, range(80))
    assert steps_of(made(size, batch, window, seed), batch, range(start, 80)) == through[start:]
    share = Share(4 * batch, 2, 2)
    rows = [TrainingRows(made(size, 4 * batch, window, seed), share, rank, 3, 6) for rank in range(2)]
    whole = list(TrainingRows(made(size, 4 * batch, window, seed), Share(4 * batch, 1, 1), 0, 0, 6))[3:]
    parts = [part for both in zip(*rows, strict=True) for part in both]
    assert [list(chain(*parts[4 * step : 4 * step + 4])) for step in range(3)] == whole


@settings(max_examples=80)
@given(**SIZES)
def test_windows_are_sorted_and_dealt_out(size: int, batch: int, window: int, seed: int) -> None:
    """Read from the definition: windows count from the first whole step of an epoch; a torn step stays as it is."""
    length_of = LongSource(ToyData(length=size), 0).length
    plain = steps_of(Order(size, seed), batch, range(40))
    found = steps_of(made(size, batch, window, seed), batch, range(40))
    epochs = [{p // size for p in range(step * batch, (step + 1) * batch)} for step in range(40)]
    for epoch in range(40 * batch // size - 1):
        whole = [step for step in range(40) if epochs[step] == {epoch}]
        for first in range(0, len(whole), window):
            steps = whole[first : first + window]
            expected = sorted((row for step in steps for row in plain[step]), key=length_of)
            parts = [expected[at : at + batch] for at in range(0, len(expected), batch)]
            assert sorted(found[step] for step in steps) == sorted(parts)
    torn = [step for step in range(40) if len(epochs[step]) > 1]
    assert [found[step] for step in torn] == [plain[step] for step in torn]


def test_the_steps_of_a_window_come_in_an_order_of_their_own() -> None:
    """Else each window would lead from short to long. The very first step is the longest."""
    found, length_of = made(1000, 10, 20), LongSource(ToyData(length=1000), 0).length
    means = [float(np.mean([length_of(row) for row in step])) for step in steps_of(found, 10, range(200))]
    turns = [tuple(np.argsort(means[first : first + 20]).tolist()) for first in range(0, 200, 20)]
    assert len(set(turns)) == len(turns)
    assert tuple(range(20)) not in turns
    assert means[0] == max(means[:20])
    assert any(means[first] < max(means[first : first + 20]) for first in range(20, 200, 20))
    other = steps_of(made(1000, 10, 20, seed=1), 10, range(200))
    assert other != steps_of(found, 10, range(200))


def padded(source: LongSource, found: order.AnyOrder, share: Share, steps: int) -> float:
    """The part of the tokens that is padding, from batches as a family would make them."""
    masks = []
    for rank in range(share.world):
        for rows in TrainingRows(found, share, rank, 0, steps):
            lengths = torch.tensor([source.length(row) for row, _ in rows])
            masks.append((torch.arange(int(lengths.max())) < lengths[:, None]).flatten())
    return float((~torch.cat(masks)).float().mean())


@pytest.mark.parametrize(("micro_batches", "world"), [(1, 1), (4, 1), (2, 2)])
def test_padding_falls(micro_batches: int, world: int) -> None:
    source, share = LongSource(ToyData(length=1000), 0), Share(16, micro_batches, world)
    parts = [padded(source, order_of(source, 0, 16, window), share, 62) for window in (0, 1, 5, 62)]
    assert parts == sorted(parts, reverse=True)
    assert parts[3] < 0.1 < 0.3 < parts[0]
    if micro_batches * world > 1:  # within a step alone
        assert parts[1] < 0.8 * parts[0]


def test_what_check_says_of_padding() -> None:
    config = toy_config({"data": {"length": 100}, "train": {"steps": 10, "micro_batches": 2}}, LONG)
    source, share = LongSource(ToyData(length=100), 0), Share(8, 2, 1)
    plain, best, less = (f"{padded(source, order_of(source, 0, 8, window), share, 10):.0%}" for window in (0, 50, 3))
    assert len({plain, best, less}) == 3
    (found,) = check_ahead.padding(long_sources(config), config, share, 10)
    assert found.found == f"{plain} (as it is set) of the tokens in 10 steps; {best} with loader.sort_window=50"
    config = toy_config({"data": {"length": 100}, "loader": {"sort_window": 3}}, LONG)
    (found,) = check_ahead.padding(long_sources(config), config, share, 10)
    assert found.found == f"{plain} of the tokens in 10 steps; {less} (as it is set) with loader.sort_window=3"
    assert not list(check_ahead.padding(toy_sources(config, Host()), config, share, 10))


def long_sources(config: RunConfig) -> Sources:
    return LONG.sources(config, Host())


def test_without_a_window_nothing_changes(tmp_path: Path) -> None:
    """A source that tells lengths is trained on as one that does not; negative twin: with a window."""
    source = LongSource(ToyData(length=20), 0)
    assert type(order_of(source, 0, 8)) is Order
    run(tmp_path / "toy", toy_config(EACH_STEP))
    run(tmp_path / "long", toy_config(EACH_STEP, LONG), LONG)
    assert_equal_runs(tmp_path / "toy", tmp_path / "long")
    run(tmp_path / "sorted", toy_config({**EACH_STEP, "loader": {"sort_window": 2}}, LONG), LONG)
    with pytest.raises(AssertionError):
        assert_equal_runs(tmp_path / "toy", tmp_path / "sorted")


def test_every_cut_continues_bit_for_bit(tmp_path: Path) -> None:
    """Within windows and between them, with other numbers of workers."""
    whole = tmp_path / "whole"
    run(whole, toy_config(SORTED, LONG), LONG)
    for step in range(13):
        part = tmp_path / f"cut{step}"
        cut(whole, part, step)
        workers = 2 * (step % 4 == 1)
        run(part, toy_config({**SORTED, "loader": {"sort_window": 2, "workers": workers}}, LONG), LONG, resume=True)
        assert_equal_runs(whole, part)


@pytest.mark.parametrize("place", [0, 2])
def test_a_forgotten_argument_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Negative twin: without the seed or the window's first step, other steps follow the cut."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole, toy_config(SORTED, LONG), LONG)
    cut(whole, part, 5)
    plain, forgetful = order.generator, without(place, order.generator)
    monkeypatch.setattr(order, "generator", lambda *rest: (forgetful if "window" in rest else plain)(*rest))
    run(part, toy_config(SORTED, LONG), LONG, resume=True)
    with pytest.raises(AssertionError):
        assert_equal_runs(whole, part)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with forked_ranks() as program:
        yield program


def test_two_processes_see_what_one_sees(tmp_path: Path, ranks: Ranks) -> None:
    changes = {**SORTED, "model": {"dropout": 0.0}}
    noted = ranks.train(tmp_path / "two", "long", changes)
    assert [rank.error for rank in noted] == [None, None]
    found = made(20, 8, 2)
    assert samples(noted, 2) == steps_of(found, 8, range(12))
    run(tmp_path / "one", toy_config(changes, LONG), LONG)
    for ours, theirs in zip(*(lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        if ours["kind"] == "train":
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)  # as in test_two_ranks
    cut(tmp_path / "two", tmp_path / "part", 4)
    ranks.train(tmp_path / "part", "long", changes)
    assert_equal_runs(tmp_path / "two", tmp_path / "part")


def test_workers_load_the_same_batches() -> None:
    source, share = LongSource(ToyData(length=30), 0), Share(8, 2, 1)

    def batches(workers: int) -> list[tuple[list[int], list[float]]]:
        rows = TrainingRows(order_of(source, 0, 8, 3), share, 0, 2, 7)
        found = Batches(source, rows, Loader(workers=workers, sort_window=3))
        return [(batch["index"].tolist(), batch["x"].flatten().tolist()) for batch in found]

    assert batches(0) == batches(2)


@pytest.mark.parametrize(
    "change",
    [
        {"train": ToySource(ToyData(), 0)},
        {"train": LongSource(ToyData(), 0, groups=np.arange(20) // 2)},
        {"train": LongSource(ToyData(), 0, mix=Mix(np.arange(20) % 2))},
        {"stages": {"later": ToySource(ToyData(), 0)}},
    ],
    ids=["no length", "groups", "kinds", "a later stage"],
)
def test_a_window_without_lengths_is_refused(tmp_path: Path, change: Mapping[str, Source]) -> None:
    def changed(config: RunConfig, host: Host) -> Sources:
        return replace(LONG.sources(config, host), **change)

    stages = (Stage("first", share=0.5), Stage("later", share=0.5))
    family: Family = replace(TOY, sources=changed, stages=lambda config: stages)
    config = toy_config({"loader": {"sort_window": 2}}, family)
    words = (
        r"^loader\.sort_window is 2, but the training samples of this run \(toy\) have no length to sort by: nothing "
        r"is padded to the longest of a batch, or its rows are each other's negatives; set it to 0$"
    )
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "run", config, family)
    assert not (tmp_path / "run" / "config.yaml").exists()
    report = preflight.check(family, config, tmp_path / "run", quiet=True)
    assert [text.partition(",")[0] for text in report.problems] == ["loader.sort_window is 2"]


@pytest.mark.parametrize(
    "name", ["interaction.data.TrainSource", "thinking.data.FeatureSource", "video_retrieval.data.TrainSource"]
)
def test_rows_that_meet_in_a_loss_have_no_length(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert not issubclass(getattr(import_module(f"sensorium.families.{module}"), kind), LengthSource)
    assert issubclass(LongSource, LengthSource)
