"""Data order, seeds, schedules and clocks are pure functions of position."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.engine.contract import Stage
from sensorium.engine.order import Clock, Order, Share, evaluation_batches, total_steps
from sensorium.engine.schedule import learning_rate
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


def test_sample_seeds_follow_the_position_not_the_rank() -> None:
    order = Order(10, 0)
    alone = order.rows(Share(8, 1, 1).positions(2, 0, 0))
    shared = [row for rank in range(2) for row in order.rows(Share(8, 1, 2).positions(2, 0, rank))]
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


def test_stage_spans() -> None:
    stages = (Stage("a", 0.2), Stage("b", 0.5), Stage("c", 0.3))
    assert [(s.first, s.end) for s in spans(stages, 10)] == [(0, 2), (2, 7), (7, 10)]
    assert [(s.first, s.end) for s in spans(stages, 30, [2, 7, 10])] == [(0, 2), (2, 7), (7, 30)]
    with pytest.raises(ConfigError, match="too few"):
        spans(stages, 1)
    with pytest.raises(ConfigError, match="sum to 1"):
        spans(stages[:2], 10)
