"""Guard, bad samples, best checkpoint, precision, and what evaluation leaves untouched."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    TOY,
    TOY_TWO_STAGES,
    ToyData,
    ToyEvaluator,
    ToyModel,
    ToySource,
    ToyTask,
    lines,
    toy_config,
    toy_sources,
)
from safetensors.torch import load_file
from torch import nn

from sensorium.engine import checkpoint, loop, rundir, session
from sensorium.engine.backend import _allow_tf32, usable_precision
from sensorium.engine.contract import Evaluation, Family
from sensorium.engine.evaluate import evaluate_run
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, DataError, RunError


def steps_of(run: Path) -> list[dict[str, float]]:
    return [line for line in lines(run / "metrics.jsonl") if line["kind"] == "train"]


def test_a_non_finite_step_changes_nothing_and_is_said(tmp_path: Path) -> None:
    config = toy_config(
        {
            "data": {"explode_at": [9], "length": 64},
            "seed": 1,
            "train": {"steps": 8},
            "checkpoint": {"every_steps": 1, "keep": 50},
        }
    )
    loop.train(TOY, config, tmp_path / "run", quiet=True)
    events = [line for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "event"]
    assert len(events) == 1
    assert "loss is not finite; step skipped" in events[0]["text"]
    step = events[0]["step"]
    folders = [checkpoint.folder_of(tmp_path / "run", s) / checkpoint.WEIGHTS for s in (step - 1, step, step + 1)]
    before, after, later = (load_file(f) for f in folders)
    assert torch.equal(before["head.weight"], after["head.weight"])
    assert not torch.equal(after["head.weight"], later["head.weight"])


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    config = toy_config({"data": {"explode_at": list(range(20))}, "guard": {"max_skipped": 3}})
    with pytest.raises(RunError, match="3 steps in a row; stopped") as caught:
        loop.train(TOY, config, tmp_path / "run", quiet=True)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_an_error_that_names_it(tmp_path: Path, workers: int) -> None:
    config = toy_config({"data": {"broken": [3]}, "loader": {"workers": workers}})
    with pytest.raises(DataError, match="toy sample 3: broken on purpose; mend or remove it"):
        loop.train(TOY, config, tmp_path / "run", quiet=True)


def test_skipped_samples_are_replaced_counted_and_capped(tmp_path: Path) -> None:
    skipping = {"data": {"broken": [3, 7]}, "loader": {"bad_samples": "skip"}}
    loop.train(TOY, toy_config(skipping), tmp_path / "run", quiet=True)
    content = checkpoint.load(checkpoint.folder_of(tmp_path / "run", 12), "toy")
    assert content.state["replaced"] >= 8
    skipping["loader"]["max_bad"] = 2
    for broken in ([3, 7], list(range(20))):  # too many, and no other in the place of one
        skipping["data"]["broken"] = broken
        with pytest.raises(DataError, match=r"bad samples; loader\.max_bad is 2\)$"):  # and no advice to skip
            loop.train(TOY, toy_config(skipping), tmp_path / f"capped{len(broken)}", quiet=True)


def test_evaluation_leaves_the_next_step_unchanged(tmp_path: Path) -> None:
    often = toy_config({"evaluate": {"every_steps": 1}})
    never = toy_config({"evaluate": {"every_epochs": None}})
    loop.train(TOY, often, tmp_path / "often", quiet=True)
    loop.train(TOY, never, tmp_path / "never", quiet=True)
    assert steps_of(tmp_path / "often") == steps_of(tmp_path / "never")


def test_the_best_checkpoint_is_kept_and_evaluated(tmp_path: Path) -> None:
    config = toy_config({"evaluate": {"every_steps": 1}, "checkpoint": {"best_mode": "max"}})
    result = loop.train(TOY, config, tmp_path / "run", quiet=True)
    assert result is not None
    values = {
        line["step"]: line["metrics"]["loss"] for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "val"
    }
    best = max(values, key=lambda step: values[step])
    assert best == 1  # the loss falls, so that the largest is the first
    assert session.choose_checkpoint(tmp_path / "run", "toy", "best") == checkpoint.folder_of(tmp_path / "run", 1)
    assert evaluate_run(TOY, tmp_path / "run", "test", "best", quiet=True) == result
    assert evaluate_run(TOY, tmp_path / "run", "test", "latest", quiet=True) != result
    with pytest.raises(CheckpointError, match="there are: best, latest, step_00000001"):
        session.choose_checkpoint(tmp_path / "run", "toy", "step_7")
    shutil.copytree(checkpoint.folder_of(tmp_path / "run", 1), tmp_path / "run/checkpoints/mine")
    assert evaluate_run(TOY, tmp_path / "run", "test", "mine", quiet=True) == result
    stored = rundir.read_json(tmp_path / "run/evaluation/test.json")
    assert (stored["step"], stored["checkpoint"]) == (1, "mine")


@pytest.mark.parametrize(
    ("values", "best", "alarms"),
    [([0.5, math.nan, 0.9], 2, [4]), ([math.nan, 0.5, 0.9], 4, [2]), ([math.nan] * 3, None, [2, 4, 6])],
    ids=["later", "first", "always"],
)
def test_a_validation_that_is_not_a_number_is_never_the_best(
    tmp_path: Path, values: list[float], best: int | None, alarms: list[int]
) -> None:
    rest = iter(values)

    class Judge(ToyEvaluator):
        def score(self, *_: object, final: bool) -> Evaluation:
            return Evaluation({"loss": 1.0 if final else next(rest)})

    family = replace(TOY, evaluator=lambda config: Judge())
    changes = {"train": {"steps": 6}, "evaluate": {"every_epochs": None, "every_steps": 2}}
    loop.train(family, toy_config(changes), tmp_path / "run", quiet=True)
    found = rundir.read_json(tmp_path / "run/summary.json")["best"]
    assert (found and found["step"]) == best
    events = [line for line in lines(tmp_path / "run/metrics.jsonl") if line["kind"] == "event"]
    assert [(event["step"], event["level"]) for event in events] == [(step, "alarm") for step in alarms]
    assert all("loss is not a number: this is not the best" in event["text"] for event in events)
    assert (tmp_path / "run/report.html").is_file()


def test_the_launchers_own_accumulation_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --gradient_accumulation_steps` reaches us as this variable."""
    config = toy_config({"train": {"steps": 3}})
    loop.train(TOY, config, tmp_path / "without", quiet=True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    loop.train(TOY, config, tmp_path / "with", quiet=True)
    assert steps_of(tmp_path / "with") == steps_of(tmp_path / "without")


def test_tied_weights_are_trained_saved_and_loaded(tmp_path: Path) -> None:
    class Tied(ToyTask):
        def __init__(self, model: ToyModel) -> None:
            super().__init__(model)
            self.other = nn.Linear(4, model.width, bias=False)
            self.other.weight = self.body[0].weight  # type: ignore[assignment]

    family = replace(TOY, task=lambda config, facts: Tied(config.model))
    loop.train(family, toy_config(), tmp_path / "run", quiet=True)
    state = session.open_run(family, tmp_path / "run", "latest").task.state_dict()
    stored = load_file(checkpoint.folder_of(tmp_path / "run", 12) / checkpoint.WEIGHTS)
    assert torch.equal(state["other.weight"], state["body.0.weight"])
    assert torch.equal(stored["body.0.weight"], state["body.0.weight"])


def test_an_unknown_best_metric_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'accuracy' is not measured; there are: loss"):
        loop.train(TOY, toy_config({"checkpoint": {"best_metric": "accuracy"}}), tmp_path / "run", quiet=True)


def test_frozen_weights_do_not_move_and_are_not_stored(tmp_path: Path) -> None:
    loop.train(TOY, toy_config(), tmp_path / "run", quiet=True)
    stored = load_file(checkpoint.folder_of(tmp_path / "run", 12) / checkpoint.WEIGHTS)
    assert not any(name.startswith("frozen") for name in stored)
    assert stored["seen"] == 96  # buffers are
    loaded = session.open_run(TOY, tmp_path / "run")
    assert isinstance(loaded.task, ToyTask)
    assert not loaded.task.training


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop.train(TOY, toy_config(), run, quiet=True)
    text = (run / "config.yaml").read_text() + "# edited\n"
    (run / "config.yaml").write_text(text.replace("width: 8", "width: 9"))
    with pytest.raises(CheckpointError, match="does not fit the model of this configuration"):
        session.open_run(TOY, run)
    (run / "config.yaml").write_text(text.replace("family: toy", "family: tyo"))
    with pytest.raises(CheckpointError, match="a run of family 'tyo', not 'toy'"):
        session.read_config(TOY, run)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop.train(TOY, toy_config(), run, quiet=True)
    with pytest.raises(CheckpointError, match="data are not those"):
        loop.train(TOY, toy_config({"data": {"length": 21}}), run, resume=True, quiet=True)


@pytest.mark.parametrize(("splits", "named"), [({"test": None}, "test"), ({"val": None, "test": None}, "test, val")])
def test_a_split_that_is_gone_or_another_is_refused(tmp_path: Path, splits: dict[str, None], named: str) -> None:
    run = tmp_path / "run"
    loop.train(TOY, toy_config(), run, quiet=True)
    less = replace(TOY, sources=lambda config, host: replace(toy_sources(config, host), **splits))
    with pytest.raises(CheckpointError, match=f"run: the {named} data are not those that this run was begun with"):
        loop.train(less, toy_config({"train": {"steps": 16}}), run, resume=True, quiet=True)
    other = replace(TOY, sources=lambda config, host: replace(toy_sources(config, host), test=ToySource(ToyData(), 9)))
    before = (run / "evaluation/test.json").read_bytes()
    with pytest.raises(CheckpointError, match="run: the test data are not those"):
        evaluate_run(other, run, "test", "best", quiet=True)
    assert (run / "evaluation/test.json").read_bytes() == before


@pytest.mark.parametrize("family", [TOY, TOY_TWO_STAGES], ids=["one stage", "two stages"])
def test_a_run_is_never_made_shorter(tmp_path: Path, family: Family) -> None:
    run = tmp_path / "run"
    loop.train(family, toy_config(family=family), run, quiet=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ConfigError, match=r"12 steps are done already; the run cannot be made shorter \(5 asked for\)"):
        loop.train(family, toy_config({"train": {"steps": 5}}, family), run, resume=True, quiet=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_resumes_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    loop.train(TOY, toy_config(), run, quiet=True)
    before = (run / "metrics.jsonl").read_bytes()
    assert loop.train(TOY, toy_config(), run, resume=True) is None
    assert "All 12 steps are done" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_precision_falls_back_with_a_line() -> None:
    assert usable_precision("fp16", cpu=True) == ("fp32", "fp32 (fp16 asked, no GPU)")
    assert usable_precision("bf16", cpu=True) == ("bf16", None)


def test_bf16_is_really_bf16(tmp_path: Path) -> None:
    loop.train(TOY, toy_config(), tmp_path / "fp32", quiet=True)
    loop.train(TOY, toy_config({"train": {"precision": "bf16"}}), tmp_path / "bf16", quiet=True)
    first, other = steps_of(tmp_path / "fp32")[0]["loss"], steps_of(tmp_path / "bf16")[0]["loss"]
    assert first != other
    assert first == pytest.approx(other, rel=2**-6)  # bf16 has 8 significant bits


def test_a_task_that_accumulates_itself_gets_all_rows_at_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def task(config: RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        built = TOY.task(config, facts)
        built.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]["index"])))
        return built

    for accumulation, rows in (("inside-task", 8), ("sum", 2)):
        seen.clear()
        changes = {"train": {"micro_batches": 4, "batch_size": 8, "steps": 2}, "evaluate": {"every_epochs": None}}
        family = replace(TOY, accumulation=accumulation, task=task)
        loop.train(family, toy_config(changes), tmp_path / accumulation, quiet=True)
        assert seen[:2] == [rows, rows]


def test_a_stage_that_names_no_parameter_is_an_error(tmp_path: Path) -> None:
    from sensorium.engine.contract import Stage

    family = replace(TOY_TWO_STAGES, stages=lambda config: (Stage("all", trainable=("hed.*",)),))
    with pytest.raises(ConfigError, match=r"stage 'all' names parameters that the model does not have: hed"):
        loop.train(family, toy_config(family=family), tmp_path / "run", quiet=True)


def test_a_loss_at_chance_raises_the_alarm_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sensorium.engine import guard

    monkeypatch.setattr(guard, "PATIENCE", 4)
    for name, stuck in (("stuck", True), ("learning", False)):
        family = replace(TOY, at_chance=lambda values, stuck=stuck: stuck)
        loop.train(family, toy_config(), tmp_path / name, quiet=True)
    events = [line for line in lines(tmp_path / "stuck/metrics.jsonl") if line["kind"] == "event"]
    assert [(event["step"], event["level"]) for event in events] == [(4, "alarm")]
    assert "not learning" in events[0]["text"]
    assert not any(line["kind"] == "event" for line in lines(tmp_path / "learning/metrics.jsonl"))


def test_tf32_is_asked_of_torch() -> None:
    before = torch.get_float32_matmul_precision()
    _allow_tf32(False)
    assert torch.get_float32_matmul_precision() == before
    try:
        _allow_tf32(True)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
