"""A step that is not finite leaves everything as it was: weights, buffers, optimizer; only the guard counts it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, TOY_TWO_STAGES, lines, toy_config
from test_resume import EACH_STEP, assert_equal_runs, cut, run
from torch import nn
from toy_variants import FRAGILE, scaled

from sensorium.engine import checkpoint
from sensorium.engine.backend import Backend
from sensorium.engine.contract import Family
from sensorium.engine.guard import Buffers
from sensorium.engine.order import Order, Share
from sensorium.engine.settings import Train
from sensorium.errors import RunError

KINDS = {"explode_at": "loss", "nan_at": "loss", "steep_at": "gradient", "torn_at": "gradient"}
STEEP = {"data": {"noise": 10.0}}  # gradients that overflow with several scales


def last_sample(step: int) -> int:
    """The last that a step of eight rows sees, of data so long that no sample comes twice."""
    return Order(200, 0).sample(8 * step + 7)


def at_steps(what: str, *steps: int) -> Mapping[str, Any]:
    """Steps, counted from 0, whose last sample is bad; all samples before it in the step have done their work."""
    return {**EACH_STEP, "data": {"length": 200, what: [last_sample(step) for step in steps]}}


def assert_left_as_it_was(folder: Path, step: int) -> None:
    """The step changed no weight, no buffer and no state of the optimizer."""
    before, after = (checkpoint.load(checkpoint.folder_of(folder, number), TOY.name) for number in (step - 1, step))
    assert checkpoint.digest_of(before.weights) == checkpoint.digest_of(after.weights)
    assert checkpoint.digest_of(before.optimizer) == checkpoint.digest_of(after.optimizer)


def expected_scales(scale: float, counts: Sequence[int]) -> list[float]:
    """The scale after each step: half as large after a step that was skipped, twice as large after four good ones."""
    scales, good = [], 0
    for before, now in itertools.pairwise([0, *counts]):
        good = 0 if now > before else good + 1
        scale *= 0.5 if now > before else 2.0 if good == 4 else 1.0
        good %= 4
        scales.append(scale)
    return scales


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("what", KINDS)
def test_a_skipped_step_leaves_no_trace(tmp_path: Path, what: str, parts: int) -> None:
    """Also with micro-batches, of which three were finite and wrote into the buffers."""
    changes = {**at_steps(what, 5), "train": {"micro_batches": parts, "steps": 8}}
    run(tmp_path / "run", toy_config(changes, FRAGILE), FRAGILE)
    said = [line["text"] for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "event"]
    assert said == [f"step 6: the {KINDS[what]} is not finite; step skipped (1 in a row)"]
    assert_left_as_it_was(tmp_path / "run", 6)
    with pytest.raises(AssertionError):  # negative twin
        assert_left_as_it_was(tmp_path / "run", 7)
    weights = checkpoint.load(checkpoint.folder_of(tmp_path / "run", 8), TOY.name).weights
    assert weights["seen"] == 7 * 8
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_without_their_copies_the_buffers_stay_poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin: one picture of NaN, and no validation is a number any more."""
    monkeypatch.setattr(Buffers, "put_back", lambda *_: None)
    run(tmp_path / "run", toy_config({**at_steps("nan_at", 2), "train": {"steps": 8}}, FRAGILE), FRAGILE)
    weights = checkpoint.load(checkpoint.folder_of(tmp_path / "run", 8), TOY.name).weights
    assert weights["seen"] == 8 * 8
    assert weights["norm.running_mean"].isnan().all()
    found = [line["metrics"]["loss"] for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "val"]
    assert found == ["nan"] * 2


class Varied(nn.Module):
    """Buffers of several types, one that is bound anew instead of written into, one that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def move(self) -> None:
        self.norm(torch.randn(4, 2))
        self.flags[1] = ~self.flags[1]
        self.count = self.count + 1
        self.scratch += 1


def test_all_stored_buffers_are_put_back_and_no_others() -> None:
    task = Varied()
    task.move()
    buffers = Buffers(task)
    for _ in range(2):
        before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
        buffers.keep()
        task.move()
        assert not any(torch.equal(tensor, before[name]) for name, tensor in task.named_buffers() if name in before)
        buffers.put_back(buffers.kept())
        assert before.keys() == task.state_dict().keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    assert task.scratch.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("step", [3, 4])
def test_a_run_cut_among_skipped_steps_gives_up_where_the_whole_one_does(tmp_path: Path, step: int) -> None:
    changes = {**at_steps("torn_at", 2, 3, 4), "guard": {"max_skipped": 3}}
    texts, whole = [], tmp_path / "whole"
    for folder in (whole, tmp_path / "part"):
        if folder != whole:
            (whole / "evaluation").mkdir()
            for name in ("summary.json", "evaluation/test.json"):  # which a run that gave up does not have
                (whole / name).touch()
            cut(whole, folder, step)
        with pytest.raises(RunError, match="step 5: the gradient is not finite, 3 steps in a row; stopped") as caught:
            run(folder, toy_config(changes, FRAGILE), FRAGILE, resume=folder != whole)
        assert f"Last good checkpoint: {checkpoint.folder_of(folder, 4)}." in str(caught.value)
        texts.append((folder / "metrics.jsonl").read_bytes())
    assert texts[0] == texts[1]


def test_a_good_step_ends_the_series(tmp_path: Path) -> None:
    """Negative twin: as many steps, but not in a row."""
    changes = {**at_steps("torn_at", 2, 3, 5), "guard": {"max_skipped": 3}}
    run(tmp_path / "run", toy_config(changes, FRAGILE), FRAGILE)
    counts = [line["skipped_steps"] for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "train"]
    assert counts == [0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("family", [TOY, TOY_TWO_STAGES], ids=["toy", "stages"])
def test_a_loss_scale_that_overflows_is_lowered_and_resumed(tmp_path: Path, family: Family) -> None:
    """Cut among the skipped steps, before the scale grows, and at the border of the stages."""
    changes = {**EACH_STEP, **STEEP, "guard": {"max_skipped": 20}}
    whole = tmp_path / "whole"
    with scaled(2.0**127):
        run(whole, toy_config(changes, family), family)
        for step in (1, 5, 6):
            cut(whole, tmp_path / f"cut{step}", step)
            run(tmp_path / f"cut{step}", toy_config(changes, family), family, resume=True)
            assert_equal_runs(whole, tmp_path / f"cut{step}")
    counts = [line["skipped_steps"] for line in lines(whole / "metrics.jsonl") if line["kind"] == "train"]
    assert counts[1] == 2
    states = [checkpoint.load(checkpoint.folder_of(whole, step), TOY.name).state for step in range(1, 13)]
    assert [state["scaler"]["scale"] for state in states] == expected_scales(2.0**127, counts)
    assert_left_as_it_was(whole, 2)


def test_the_search_for_a_scale_does_not_stop_the_run(tmp_path: Path) -> None:
    """The first guess may be far too large: halving it a few times in a row is no failure."""
    with scaled(2.0**127):
        run(tmp_path / "run", toy_config({**EACH_STEP, **STEEP, "guard": {"max_skipped": 1}}))
    state = checkpoint.load(checkpoint.folder_of(tmp_path / "run", 2), TOY.name).state
    assert (state["scaler"]["scale"], state["guard"]) == (2.0**125, {"in_a_row": 0, "skipped": 2, "at_chance": 0})


def test_what_no_scale_mends_stops_the_run(tmp_path: Path) -> None:
    """Negative twin: from 4 the scale falls to 2, then to 1, from where on the skipped steps count."""
    changes = {**EACH_STEP, **at_steps("torn_at", 0, 1, 2, 3), "guard": {"max_skipped": 2}}
    with scaled(4.0), pytest.raises(RunError, match=r"step 3: the gradient is not finite, 2 steps in a row"):
        run(tmp_path / "run", toy_config(changes, FRAGILE), FRAGILE)
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert "step 1: the gradient does not fit into fp16; step skipped, loss scale lowered to 2" in text


def test_a_norm_that_overflows_over_finite_gradients_moves_nothing() -> None:
    """The scaler sees finite gradients alone, and would take the step without clipping it."""
    with scaled(1.0), Backend(Train(steps=1, device="cpu")) as backend:
        task = nn.Linear(4, 1, bias=False)
        optimizer = torch.optim.AdamW(task.parameters(), lr=0.1, fused=True)
        model = backend.prepare(task, optimizer, dict(task.named_parameters()), {}, Share(1, 1, 1))
        before = task.weight.detach().clone()
        for size, moves in ((1e30, False), (1.0, True)):
            backend.backward(size * model(torch.ones(1, 4)).sum())
            norm, moved = backend.finish_step(1.0, clip=1.0)
            assert (math.isfinite(norm), moved) == (moves, moves)
            assert torch.equal(before, task.weight) != moves
            assert bool(optimizer.state) == moves
