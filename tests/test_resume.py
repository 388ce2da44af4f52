"""An interrupted run continues bit for bit."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from event_view import scalars
from helpers import TOY, TOY_TWO_STAGES, ToySource, lines, toy_config, toy_sources
from safetensors.torch import load_file
from torch import nn
from toy_variants import FRAGILE_TWO_STAGES

from sensorium.engine import checkpoint, loop, order
from sensorium.engine.contract import Family, Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import Interrupted

EACH_STEP = {"checkpoint": {"every_steps": 1, "keep": 50}, "evaluate": {"every_steps": 5}}


@pytest.fixture(autouse=True, scope="module")
def _quick(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each run begins with a collection of garbage; what the first one imports need not be searched every time."""
    run(tmp_path_factory.mktemp("first") / "run", toy_config())
    gc.collect()
    gc.freeze()


def run(folder: Path, config: RunConfig, family: Family = TOY, *, resume: bool = False) -> None:
    loop.train(family, config, folder, resume=resume, quiet=True)


def cut(whole: Path, target: Path, step: int) -> None:
    """The state that a kill after ``step`` steps leaves: checkpoints up to there, and the logs of later steps."""
    shutil.copytree(whole, target)
    for folder in (target / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    for name in ("summary.json", "evaluation/test.json"):
        (target / name).unlink()


def assert_equal_runs(left: Path, right: Path) -> None:
    ours, theirs = (sorted((run / "checkpoints").iterdir())[-1] for run in (left, right))
    assert ours.name == theirs.name
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (ours / "state.json").read_text() == (theirs / "state.json").read_text()
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    assert (left / "evaluation/test.json").read_text() == (right / "evaluation/test.json").read_text()
    assert scalars(left / "tensorboard") == scalars(right / "tensorboard")


class _Grouped(ToySource):
    """Five samples a group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups = np.arange(len(self)) // 5


def _grouped(config: RunConfig, host: Host) -> Sources:
    found = toy_sources(config, host)
    return replace(found, train=_Grouped(found.train.data, 0))


# An epoch is two and a half steps: its borders lie between steps and within them.
VARIANTS: list[tuple[str, Family, Mapping[str, Any]]] = [
    ("plain", TOY, {}),
    ("micro-batches", TOY, {"train": {"micro_batches": 4}}),
    ("stages", TOY_TWO_STAGES, {"schedule": {"name": "cosine", "warmup_steps": 2}}),
    ("bad samples", TOY, {"data": {"broken": [3, 7]}, "loader": {"bad_samples": "skip"}}),
    ("bf16", TOY, {"train": {"precision": "bf16"}}),
    ("groups", replace(TOY, sources=_grouped), {"data": {"length": 23}, "evaluate": {"every_steps": 1}}),
    (
        "all at once",
        FRAGILE_TWO_STAGES,
        {
            "train": {"micro_batches": 2},
            "data": {"broken": [3], "explode_at": [5], "torn_at": [11]},
            "loader": {"bad_samples": "skip"},
            "schedule": {"name": "linear"},
        },
    ),
]


@pytest.mark.parametrize(("family", "overrides"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_every_cut_continues_bit_for_bit(tmp_path: Path, family: Family, overrides: Mapping[str, Any]) -> None:
    """The last cut is after the last step, before the run was evaluated."""
    layers = {**EACH_STEP, **overrides}
    whole = tmp_path / "whole"
    run(whole, toy_config(layers, family), family)
    for step in range(13):
        part = tmp_path / f"cut{step}"
        cut(whole, part, step)
        run(part, toy_config({**layers, "checkpoint": {"keep": 50}}, family), family, resume=True)
        assert_equal_runs(whole, part)


@pytest.mark.parametrize("family", [TOY, FRAGILE_TWO_STAGES], ids=["toy", "stages"])
def test_three_resumes_and_other_workers(tmp_path: Path, family: Family) -> None:
    whole, before = tmp_path / "whole", tmp_path / "whole"
    run(whole, toy_config(EACH_STEP, family), family)
    for step, workers in ((3, 2), (6, 0), (10, 2)):
        after = tmp_path / f"resumed{step}"
        cut(before, after, step)
        run(after, toy_config({**EACH_STEP, "loader": {"workers": workers}}, family), family, resume=True)
        assert_equal_runs(whole, after)
        before = after


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "run", toy_config())
    before = state_of(tmp_path / "run")
    assert len(before) > 10
    run(tmp_path / "run", toy_config(), resume=True)
    assert state_of(tmp_path / "run") == before
    run(tmp_path / "run", toy_config({"train": {"steps": 13}}), resume=True)
    assert state_of(tmp_path / "run") != before  # negative twin: one step more is seen


def state_of(run: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Every file but the lock, which says who looked last."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def without(place: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with one argument fewer."""
    return lambda *given: function(*given[:place], *given[place + 1 :])


FORGOTTEN = [
    *(pytest.param(loop, "reseed", place, id=name) for place, name in enumerate(("seed", "purpose"))),
    pytest.param(loop, "reseed", 4, id="rank"),
]
FORGOTTEN_PLACES = [
    pytest.param(loop, "reseed", 2, id="step"),
    pytest.param(loop, "reseed", 3, id="micro"),
    pytest.param(order, "derive", 2, id="position"),
    pytest.param(order, "generator", 2, id="epoch"),
]


@pytest.mark.parametrize(("module", "name", "place"), FORGOTTEN + FORGOTTEN_PLACES)
def test_the_comparison_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, place: int
) -> None:
    """Negative twin: a seed that forgets one of its arguments gives another run, be it in the last step alone."""
    config = toy_config({**EACH_STEP, "train": {"micro_batches": 2}})
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole, config)
    cut(whole, part, 11)
    monkeypatch.setattr(module, name, without(place, getattr(module, name)))
    run(part, config, resume=True)
    with pytest.raises(AssertionError):
        assert_equal_runs(whole, part)


def draws_of(folder: Path, seed: int = 0) -> list[tuple[str, Any]]:
    """Purpose and value of every seed that a run draws from, and the order of each epoch."""
    found: list[tuple[str, Any]] = []

    class Watched(ToySource):
        def example(self, index: int, seed: int) -> Mapping[str, Any]:
            found.append(("example", seed))
            return super().example(index, seed)

    def task(config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        built = TOY.task(config, facts)
        built.register_forward_pre_hook(lambda *_: found.append(("forward", torch.initial_seed())))
        return built

    def sources(config: RunConfig, host: Host) -> Sources:
        return Sources(Watched(toy_sources(config, host).train.data, 0))

    changes = {"seed": seed, "train": {"micro_batches": 2}, "checkpoint": {"every_epochs": None}}
    run(folder, toy_config(changes), replace(TOY, task=task, sources=sources))
    stream = order.Order(20, seed)
    epochs = [("epoch", tuple(stream.sample(20 * epoch + place) for place in range(20))) for epoch in range(5)]
    return [*found, *epochs]


def assert_all_differ(draws: list[tuple[str, Any]]) -> None:
    assert len({value for _, value in draws}) == len(draws)


def test_every_place_of_a_run_has_its_own_draws(tmp_path: Path) -> None:
    """Resumes could be exact and the draws all the same: no two forward passes, samples or epochs have one seed."""
    first, second = draws_of(tmp_path / "first"), draws_of(tmp_path / "second", seed=1)
    assert [purpose for purpose, _ in first].count("forward") == 24
    assert [purpose for purpose, _ in first].count("example") == 96
    assert_all_differ([*first, *second])


@pytest.mark.parametrize(("module", "name", "place"), FORGOTTEN_PLACES)
def test_equal_draws_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, place: int
) -> None:
    """Negative twin."""
    monkeypatch.setattr(module, name, without(place, getattr(module, name)))
    with pytest.raises(AssertionError):
        assert_all_differ(draws_of(tmp_path / "run"))


def test_a_signal_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config({"checkpoint": {"every_epochs": None}, "evaluate": {"every_epochs": None}})
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole, config)
    step = loop._step

    def interrupted(one: Any, model: Any, stream: Any, number: int) -> dict[str, float]:
        if number == 4:
            one.stop.append(2)
        return step(one, model, stream, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", interrupted)
        with pytest.raises(Interrupted, match="stopped at step 5; saved"):
            run(part, config)
    run(part, config, resume=True)
    assert_equal_runs(whole, part)


def test_a_longer_run_keeps_the_stage_border(tmp_path: Path) -> None:
    config = toy_config(EACH_STEP, TOY_TWO_STAGES)
    run(tmp_path / "run", config, TOY_TWO_STAGES)
    longer = toy_config({**EACH_STEP, "train": {"steps": 20}}, TOY_TWO_STAGES)
    run(tmp_path / "run", longer, TOY_TWO_STAGES, resume=True)
    steps = [line for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert {line["stage"] for line in steps[:6]} == {"head"}
    assert {line["stage"] for line in steps[6:]} == {"all"}


def test_a_stage_moves_only_its_parameters(tmp_path: Path) -> None:
    config = toy_config(EACH_STEP, TOY_TWO_STAGES)
    run(tmp_path / "run", config, TOY_TWO_STAGES)
    at = {step: load_file(checkpoint.folder_of(tmp_path / "run", step) / checkpoint.WEIGHTS) for step in (1, 6, 12)}
    assert torch.equal(at[1]["body.0.weight"], at[6]["body.0.weight"])
    assert not torch.equal(at[1]["head.weight"], at[6]["head.weight"])
    assert not torch.equal(at[6]["body.0.weight"], at[12]["body.0.weight"])


def test_micro_batches_do_not_change_the_gradient(tmp_path: Path) -> None:
    """Without dropout and noise one step in four parts is the same step; fp32 sums differ in the last bits."""
    still = {"model": {"dropout": 0.0}, "data": {"noise": 0.0}, "train": {"steps": 3}, "optim": {"eps": 1e-2}}
    for parts in (1, 4):
        overrides = {**still, "train": {"steps": 3, "micro_batches": parts}}
        run(tmp_path / str(parts), toy_config(overrides))
    one, four = (lines(tmp_path / str(parts) / "metrics.jsonl") for parts in (1, 4))
    for a, b in zip(one, four, strict=True):
        if a["kind"] == "train":
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
