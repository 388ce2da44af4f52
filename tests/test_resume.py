"""An interrupted run continues bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, TOY_TWO_STAGES, lines, toy_config
from safetensors.torch import load_file

from sensorium.engine import checkpoint, loop
from sensorium.engine.contract import Family
from sensorium.engine.settings import RunConfig
from sensorium.errors import Interrupted

EACH_STEP = {"checkpoint": {"every_steps": 1, "keep": 50}}


def run(folder: Path, config: RunConfig, family: Family = TOY, *, resume: bool = False) -> None:
    loop.train(family, config, folder, resume=resume, quiet=True)


def cut(whole: Path, target: Path, step: int) -> None:
    """The state that a kill after ``step`` steps leaves: checkpoints up to there, and log lines of later steps."""
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


VARIANTS: list[tuple[str, Family, Mapping[str, Any]]] = [
    ("plain", TOY, {}),
    ("micro-batches", TOY, {"train": {"micro_batches": 4}}),
    ("stages", TOY_TWO_STAGES, {"schedule": {"name": "cosine", "warmup_steps": 2}}),
    ("bad samples", TOY, {"data": {"broken": [3, 7]}, "loader": {"bad_samples": "skip"}}),
    ("bf16", TOY, {"train": {"precision": "bf16"}}),
]


@pytest.mark.parametrize(("family", "overrides"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_every_cut_continues_bit_for_bit(tmp_path: Path, family: Family, overrides: Mapping[str, Any]) -> None:
    config = toy_config({**overrides, **EACH_STEP}, family)
    whole = tmp_path / "whole"
    run(whole, config, family)
    for step in range(12):
        part = tmp_path / f"cut{step}"
        cut(whole, part, step)
        run(part, config, family, resume=True)
        assert_equal_runs(whole, part)


def test_two_resumes_and_other_workers(tmp_path: Path) -> None:
    config = toy_config(EACH_STEP)
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole, config)
    cut(whole, part, 3)
    workers = toy_config({**EACH_STEP, "loader": {"workers": 2}})
    run(part, workers, resume=True)
    cut(part, tmp_path / "again", 7)
    run(tmp_path / "again", config, resume=True)
    assert_equal_runs(whole, tmp_path / "again")


def test_the_comparison_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin: a seed that forgets the step gives another run."""
    config = toy_config(EACH_STEP)
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole, config)
    cut(whole, part, 5)
    original = loop.reseed
    monkeypatch.setattr(loop, "reseed", lambda seed, *position: original(seed, *position[:1]))
    run(part, config, resume=True)
    with pytest.raises(AssertionError):
        assert_equal_runs(whole, part)


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
