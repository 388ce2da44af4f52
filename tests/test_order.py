"""Data order, seeds, schedules and clocks are pure functions of position."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import ToyData, ToySource, toy_config
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.engine.contract import Mix, Stage
from sensorium.engine.order import (
    Clock,
    MixedOrder,
    Order,
    Share,
    clock_of,
    evaluation_batches,
    rows_at,
    stand_in,
    total_steps,
)
from sensorium.engine.schedule import in_steps, learning_rate
from sensorium.engine.seeds import derive, reseed
from sensorium.engine.settings import Schedule
from sensorium.engine.stages import Span, spans
from sensorium.errors import ConfigError


@given(length=st.integers(1, 40), epoch=st.integers(0, 3), seed=st.integers(0, 5))
def test_every_epoch_holds_every_sample_once(length: int, epoch: int, seed: int) -> None:
    order = Order(length, seed)
    found = [order.sample(p) for p in range(epoch * length, (epoch + 1) * length)]
    assert sorted(found) == list(range(length))


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [Order(50, seed).sample(p) for p in range(number * 50, number * 50 + 50)]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12), epoch=st.integers(0, 2))
def test_a_group_occurs_once_a_round(sizes: list[int], epoch: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = Order(len(groups), 3, groups)
    found = [order.sample(p) for p in range(epoch * len(groups), (epoch + 1) * len(groups))]
    assert sorted(found) == list(range(len(groups)))
    place = 0
    for number in range(max(sizes)):
        members = sum(size > number for size in sizes)
        round_groups = groups[found[place : place + members]]
        assert len(set(round_groups)) == members
        place += members


def test_without_groups_a_round_would_hold_doubles() -> None:
    """Negative twin of the test above."""
    groups = np.repeat(np.arange(20), 5)
    plain = Order(100, 3)
    first_round = groups[[plain.sample(p) for p in range(20)]]
    assert len(set(first_round)) < 20


def test_ranks_and_micro_batches_divide_one_order() -> None:
    whole = list(Share(24, 1, 1).positions(5, 0, 0))
    for micro_batches, world in ((2, 1), (1, 3), (4, 2)):
        share = Share(24, micro_batches, world)
        parts = [p for m in range(micro_batches) for r in range(world) for p in share.positions(5, m, r)]
        assert parts == whole
    with pytest.raises(ConfigError, match="multiple of 6"):
        Share(20, 2, 3)


def test_a_step_larger_than_the_data_is_refused() -> None:
    source = ToySource(toy_config().data, 0)  # type: ignore[arg-type]
    assert clock_of(source, toy_config({"train": {"batch_size": len(source)}})).length == len(source)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 1,001, but there are \d+ training samples"):
        clock_of(source, toy_config({"train": {"batch_size": 1001}}))


def test_sample_seeds_follow_the_position_not_the_rank() -> None:
    order = Order(10, 0)
    alone = rows_at(order, Share(8, 1, 1).positions(2, 0, 0))
    shared = [row for rank in range(2) for row in rows_at(order, Share(8, 1, 2).positions(2, 0, rank))]
    assert alone == shared
    assert len({seed for _, seed in alone}) == 8


def test_derive_separates_purposes_and_positions() -> None:
    values = [
        derive(0, "a", 1),
        derive(0, "a", 11),
        derive(0, "a1", 1),
        derive(0, "a", 1, 1),
        derive(1, "a", 1),
        derive(0, "a", "1"),
    ]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)


def test_reseed_sets_torch() -> None:
    reseed(0, "forward", 3)
    first = torch.rand(3)
    torch.rand(7)
    reseed(0, "forward", 3)
    assert torch.equal(first, torch.rand(3))


def test_steps_and_clock() -> None:
    assert total_steps(30_000, 8, 10, None) == 37_500
    assert total_steps(10, 4, 1, None) == 3
    assert total_steps(10, 4, 0.1, None) == 1
    assert total_steps(10, 4, None, 7) == 7
    clock = Clock(length=10, batch_size=4, total=8)
    assert [s for s in range(1, 9) if clock.due(s, None, 1.0)] == [3, 5, 8]
    assert [s for s in range(1, 9) if clock.due(s, 3, None)] == [3, 6, 8]
    assert not any(clock.due(s, None, None) for s in range(1, 9))


def test_evaluation_batches_do_not_depend_on_ranks() -> None:
    alone = list(evaluation_batches(11, 4, 0, 1))
    shared = sorted((b for rank in range(3) for b in evaluation_batches(11, 4, rank, 3)), key=lambda b: b.start)
    assert alone == shared == [range(0, 4), range(4, 8), range(8, 11)]


def test_schedules() -> None:
    span = Span(Stage("all"), 0, 1000)
    warm = Schedule(name="constant", warmup_steps=100)
    assert learning_rate(warm, 2e-4, span, 0) == pytest.approx(2e-6)
    assert learning_rate(warm, 2e-4, span, 50) == pytest.approx(1.02e-4)
    assert learning_rate(warm, 2e-4, span, 500) == 2e-4
    cosine = Schedule(name="cosine", warmup_steps=10, final_fraction=0.1)
    rates = [learning_rate(cosine, 1.0, span, step) for step in range(1000)]
    assert rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(b <= a for a, b in pairwise(rates[10:]))
    late = Span(Stage("second", lr_scale=0.5), 500, 1000)
    assert learning_rate(Schedule(name="linear", warmup_steps=2), 1.0, late, 500) == 0.25


def test_a_warm_up_in_epochs() -> None:
    assert in_steps(Schedule(warmup_epochs=1.5), 10.4).warmup_steps == 16
    assert in_steps(Schedule(warmup_steps=7), 10.4).warmup_steps == 7
    with pytest.raises(ValueError, match="one of"):
        Schedule(warmup_steps=7, warmup_epochs=1.0)


def test_stage_spans() -> None:
    stages = (Stage("a", 0.2), Stage("b", 0.5), Stage("c", 0.3))
    assert [(s.first, s.end) for s in spans(stages, 10)] == [(0, 2), (2, 7), (7, 10)]
    assert [(s.first, s.end) for s in spans(stages, 30, [2, 7, 10])] == [(0, 2), (2, 7), (7, 30)]
    assert [(s.first, s.end) for s in spans(stages, 1)] == [(0, 0), (0, 1), (1, 1)]
    with pytest.raises(ConfigError, match="5 steps end before the last stage, 'c', begins at step 7"):
        spans(stages, 5, [2, 7, 10])
    with pytest.raises(ConfigError, match="sum to 1"):
        spans(stages[:2], 10)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 3),
    weighted=st.booleans(),
)
def test_kinds_do_not_meet_and_none_is_lost(sizes: list[int], batch_size: int, seed: int, weighted: bool) -> None:
    kinds = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    mix = Mix(kinds, tuple(range(1, len(sizes) + 1)) if weighted else None)
    order = MixedOrder(mix, seed, None, batch_size)
    steps = 3 * order.length // batch_size * max(sizes)
    seen: dict[int, list[int]] = {kind: [] for kind in range(len(sizes))}
    for step in range(steps):
        found = [order.sample(p) for p in range(step * batch_size, (step + 1) * batch_size)]
        assert len({int(kinds[i]) for i in found}) == 1
        seen[int(kinds[found[0]])] += found
    for kind, size in enumerate(sizes):
        rounds = [seen[kind][i : i + size] for i in range(0, len(seen[kind]) - size + 1, size)]
        assert rounds
        assert all(sorted(one) == np.flatnonzero(kinds == kind).tolist() for one in rounds)
    again = MixedOrder(mix, seed, None, batch_size)
    assert [again.sample(p) for p in range(50, 60)] == [order.sample(p) for p in range(50, 60)]


def test_kinds_have_turns_by_their_sizes_or_weights() -> None:
    kinds = np.repeat([0, 1, 2], [60, 30, 10])

    def turns(weights: tuple[float, ...] | None, epoch: int) -> list[int]:
        order = MixedOrder(Mix(kinds, weights), 0, None, 10)
        assert order.length == 100
        return [int(kinds[order.sample(10 * step)]) for step in range(10 * epoch, 10 * epoch + 10)]

    assert np.bincount(turns(None, 0)).tolist() == np.bincount(turns(None, 5)).tolist() == [6, 3, 1]
    assert np.bincount(turns((1.0, 1.0, 2.0), 0)).tolist() == [3, 2, 5]
    assert turns(None, 0) != turns(None, 1)
    assert turns(None, 0) != sorted(turns(None, 0))


def test_a_group_occurs_once_a_round_of_its_kind() -> None:
    groups, kinds = np.repeat(np.arange(20), 5), np.repeat([0, 1], 50)
    order = MixedOrder(Mix(kinds), 0, groups, 10)
    for step in range(30):
        found = groups[[order.sample(p) for p in range(10 * step, 10 * step + 10)]]
        assert len(set(found)) == 10


def test_what_stands_in_is_of_the_same_kind() -> None:
    source = ToySource(ToyData(length=20), 0, mix=Mix(np.arange(20) % 2))
    assert {stand_in(source, 4, seed, 0) % 2 for seed in range(50)} == {0}
    assert {stand_in(replace(source, mix=None), 4, seed, 0) % 2 for seed in range(50)} == {0, 1}


def test_warm_up_takes_no_more_than_its_part_of_a_stage() -> None:
    short, long = Span(Stage("a"), 0, 40), Span(Stage("b"), 40, 4040)
    schedule = Schedule(warmup_steps=100, warmup_fraction=0.05)
    rates = [learning_rate(schedule, 1.0, short, step) for step in range(3)]
    assert rates == [0.5, 1.0, 1.0]
    assert learning_rate(schedule, 1.0, long, 40 + 49) == 0.5
