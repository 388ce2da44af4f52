"""``sensorium check``: what it finds before a long run, and that it finds nothing where nothing is wrong."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOY, TOY_TWO_STAGES, ToySource, ToyTask, toy_config

from sensorium import cli, families
from sensorium.engine import check as preflight
from sensorium.engine import check_memory, loop
from sensorium.engine.check_memory import Memory, read_peak, reset_peak, small_batches
from sensorium.engine.contract import Batch, Family, Host, Output, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError, Interrupted

CPU = torch.device("cpu")
ITEMS = (
    "configuration", "processes", "run folder", "device", "data: train", "data: val", "data: test",
    "checkpoints", "model", "training", "save and load", "resume", "memory", "validation", "time", "disk",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _fast_collection() -> Iterator[None]:
    """Every trial collects garbage twice; with all modules of the tests loaded that takes longer than its steps."""
    gc.freeze()
    yield
    gc.unfreeze()


def checked(folder: Path, overrides: Mapping[str, Any] | None = None, family: Family = TOY) -> preflight.Report:
    report = preflight.check(family, toy_config(overrides, family), folder / "run", quiet=True)
    assert not list(folder.glob(".*"))
    return report


def verdicts(report: preflight.Report) -> dict[str, str]:
    return {row.item: row.verdict for row in report.rows}


def found(report: preflight.Report, item: str) -> str:
    return next(row.found for row in report.rows if row.item == item)


def with_task(task: type[ToyTask]) -> Family:
    return replace(TOY, task=lambda config, facts: task(config.model))


def test_nothing_is_wrong_and_nothing_is_left(tmp_path: Path) -> None:
    report = checked(tmp_path)
    assert report.problems == []
    assert verdicts(report) == dict.fromkeys(ITEMS, "ok")
    assert report.measured["steps"] == 12
    assert report.measured["parameters"] == 49
    assert report.measured["disk_needed"] == 4 * report.measured["checkpoint_bytes"]
    assert not list(tmp_path.iterdir())
    report.refuse()


@pytest.mark.parametrize(
    ("family", "overrides", "item", "text"),
    [
        (TOY_TWO_STAGES, {}, "training", "4 steps of 8 rows"),
        (TOY, {"train": {"micro_batches": 2}}, "processes", "1, each with 8 rows of a step, micro-batches: 2"),
        (TOY, {"train": {"processes": 2}}, "training", "3 steps of 4 rows"),
        (TOY, {"schedule": {"name": "cosine", "warmup_steps": 100}}, "training", "3 steps of 8 rows"),
        (TOY, {"loader": {"workers": 2}}, "memory", "without the 2 loader workers"),
        (TOY, {"train": {"precision": "bf16"}}, "device", "cpu, 1 process, bf16"),
        (TOY, {"evaluate": {"batch_size": 2}}, "validation", "8 of 20 samples, 1 metrics"),
        (TOY, {"train": {"batch_size": 4}}, "memory", "too few rows to predict other batches"),
    ],
)
def test_other_right_runs(family: Family, overrides: Mapping[str, Any], item: str, text: str, tmp_path: Path) -> None:
    report = checked(tmp_path, overrides, family)
    assert report.problems == []
    assert text in found(report, item)


class Unseeded(ToyTask):
    draws = np.random.default_rng(0)

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        return replace(output, loss=output.loss * float(self.draws.uniform(0.5, 1.5)))


class Counting(ToyTask):
    def forward(self, batch: Batch) -> Output:
        self.calls = getattr(self, "calls", 0) + 1
        output = super().forward(batch)
        return replace(output, loss=output.loss * self.calls)


class Forgetful(ToyTask):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.register_buffer("factor", torch.ones(()), persistent=False)

    def forward(self, batch: Batch) -> Output:
        self.factor += 1
        output = super().forward(batch)
        return replace(output, loss=output.loss * self.factor)


@pytest.mark.parametrize("task", [Unseeded, Counting, Forgetful])
def test_a_resume_that_is_not_exact_is_found(task: type[ToyTask], tmp_path: Path) -> None:
    report = checked(tmp_path, family=with_task(task))
    (problem,) = report.problems
    assert problem.startswith("resume is not exact: weight '")
    assert "draws must come from the seeds that are given" in problem
    assert verdicts(report)["resume"] == "problem"


class Changing(ToyTask):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.register_load_state_dict_post_hook(self.change)

    @staticmethod
    def change(task: ToyTask, keys: Any) -> None:
        task.head.bias.data += 1


def test_a_task_that_loads_something_else_is_found(tmp_path: Path) -> None:
    report = checked(tmp_path, family=with_task(Changing))
    assert report.problems[0] == "a fresh task does not hold what was saved, for example 'head.bias'"
    assert verdicts(report)["save and load"] == "problem"


def test_all_broken_samples_are_listed(tmp_path: Path) -> None:
    """Also those of validation, and the rest is tried all the same."""

    def sources(config: RunConfig, host: Host) -> Sources:
        del host
        whole = config.data.model_copy(update={"broken": ()})
        return Sources(ToySource(config.data, 0), ToySource(config.data, 1000), ToySource(whole, 2000))

    broken = {"data": {"broken": [3, 7, 11]}}
    report = checked(tmp_path, broken, replace(TOY, sources=sources))
    expected = [f"{split}: toy sample {n}: broken on purpose" for split in ("train", "val") for n in (3, 7, 11)]
    assert report.problems == expected
    assert found(report, "data: val") == "20 samples; 20 tried, 3 broken"
    assert verdicts(report)["resume"] == "ok"
    with pytest.raises(
        ConfigError, match=r"^6 problems found\n  1\. train: toy sample 3: .*\n  2\. train: toy sample 7"
    ):
        report.refuse()


def test_broken_samples_that_may_be_skipped(tmp_path: Path) -> None:
    skipping = {"data": {"broken": [3, 7]}, "loader": {"bad_samples": "skip"}}
    report = checked(tmp_path, skipping)
    assert report.problems == []
    assert verdicts(report)["data: train"] == "note"
    assert found(report, "data: train") == "20 samples; 20 tried, 2 broken, about 10 to be replaced"
    report = checked(tmp_path, {**skipping, "loader": {"bad_samples": "skip", "max_bad": 9}})
    assert report.problems[-1] == "train: about 10 would be replaced; loader.max_bad is 9"
    assert len(report.problems) == 3


def test_a_subset_of_a_large_split_is_tried(tmp_path: Path) -> None:
    assert found(checked(tmp_path, {"data": {"length": 1000}}), "data: val") == "1,000 samples; 64 tried, none broken"


def test_a_misspelt_metric_is_found(tmp_path: Path) -> None:
    report = checked(tmp_path, {"checkpoint": {"best_metric": "los"}})
    assert report.problems == ["checkpoint.best_metric 'los' is not measured; did you mean 'loss'?"]
    never = {"checkpoint": {"best_metric": "los"}, "evaluate": {"every_epochs": None}}
    assert checked(tmp_path, never).problems == []


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 9_000, 1_000))
    (problem,) = checked(tmp_path).problems
    assert problem.startswith("a run that keeps 2 checkpoints, the best and the one being written, ")
    assert problem.endswith(", 1,000 are free; make room or take another place")


def test_too_little_memory_is_found_without_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([0, 1_020_000, 1_040_000, 1_040_000])  # a trial that is not measured, then 2, 4 and again 4 rows
    monkeypatch.setattr("sensorium.engine.check_trial.read_peak", lambda device: next(peaks))
    monkeypatch.setattr(preflight, "usable", lambda device, count: 1_070_000.0)
    report = checked(tmp_path)
    assert report.problems == [
        "8 rows a process need about 1.08 MB; usable: 1.07 MB; "
        "train.batch_size up to about 7 fits, or more train.micro_batches"
    ]
    assert "3 steps of 4 rows" in found(report, "training")
    assert "time" not in verdicts(report)


def test_memory_is_a_line_over_the_batch() -> None:
    memory = Memory((2, 1200), (4, 1400), rows=8, usable=2050)
    assert (memory.predicted, memory.error, memory.fits) == (1800, None, True)
    assert (memory.largest(1), memory.largest(4)) == (10, 8)
    measured = replace(memory, whole=2100)
    assert measured.error == pytest.approx(1800 / 2100 - 1)
    assert not measured.fits
    assert measured.largest(1) == 7  # from the widest of the measured batches: 900 bytes and 150 a row
    assert Memory((2, 1200), (4, 1200), rows=8, usable=2050).largest(1) is None
    assert (small_batches(16, 1), small_batches(24, 2), small_batches(7, 1)) == ((4, 8), (6, 12), None)


def test_the_peak_of_a_process_is_measured_and_set_back() -> None:
    assert reset_peak(CPU)
    before = read_peak(CPU)
    block = torch.ones(25_000_000)  # 100 MB
    assert read_peak(CPU) - before > 90e6
    del block
    assert read_peak(CPU) - before > 90e6  # it is a peak
    assert reset_peak(CPU)
    assert read_peak(CPU) - before < 50e6
    assert check_memory.usable(CPU, 2) == pytest.approx(check_memory.usable(CPU, 1) / 2, rel=0.1)


def test_a_system_that_does_not_measure_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_memory, "RESET", tmp_path / "proc/clear_refs")
    report = checked(tmp_path)
    assert report.problems == []
    assert verdicts(report)["memory"] == "note"
    assert "not measured" in found(report, "memory")


def test_a_used_run_folder_is_found_and_not_touched(tmp_path: Path) -> None:
    loop.train(TOY, toy_config(), tmp_path / "run", quiet=True)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    (problem,) = checked(tmp_path).problems
    assert "already holds a run" in problem
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_a_file_in_the_place_of_the_run_is_found(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert checked(tmp_path).problems == [f"{tmp_path / 'run'}: a file; --run takes another folder"]


def test_everything_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/cat.jpg").touch()
    wrong = {
        "data": {"explode_at": list(range(20))},
        "train": {"processes": 3},
        "checkpoint": {"best_metric": "accuracy"},
    }
    problems = checked(tmp_path, wrong).problems
    starts = ("train.batch_size is 8", f"{tmp_path / 'run'}: not empty", "the loss or its gradient was not finite in 3")
    assert [problem.startswith(start) for problem, start in zip(problems, starts, strict=False)] == [True] * 3
    assert problems[3:] == ["checkpoint.best_metric 'accuracy' is not measured; there are: loss"]


def test_data_that_cannot_be_read_end_the_check(tmp_path: Path) -> None:
    def sources(config: RunConfig, host: Host) -> Sources:
        raise DataError("data/toy: no such folder")

    report = checked(tmp_path, family=replace(TOY, sources=sources))
    assert report.problems == ["data/toy: no such folder"]
    assert "training" not in verdicts(report)


def test_what_the_loop_refuses_is_a_problem(tmp_path: Path) -> None:
    report = checked(tmp_path, {"optim": {"groups": {"hed": {"lr_scale": 2.0}}}})
    assert [problem.partition(";")[0] for problem in report.problems] == ["optim.groups: no parameter group 'hed'"]


class PressesCtrlC(ToyTask):
    def forward(self, batch: Batch) -> Output:
        os.kill(os.getpid(), signal.SIGINT)
        return super().forward(batch)


def test_a_signal_ends_the_check(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"^check: stopped$"):
        checked(tmp_path, family=with_task(PressesCtrlC))
    assert not list(tmp_path.iterdir())


def test_a_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="check works in one process"):
        checked(tmp_path)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of a command line."""
    monkeypatch.setattr(sys, "argv", ["sensorium", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, *capsys.readouterr()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "load", lambda name: TOY)
    code, out, err = command(monkeypatch, capsys, "check", "toy", "train.batch_size=16", "--run", "my run")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "ready: sensorium train toy --run 'my run' train.batch_size=16"
    assert "measured (error " in out
    code, out, err = command(monkeypatch, capsys, "check", "toy", "--json", "data.broken=[3]")
    content = json.loads(out)
    assert (code, content["ready"], content["problems"]) == (2, False, ["train: toy sample 3: broken on purpose"])
    assert err == "error: 1 problem found\n  1. train: toy sample 3: broken on purpose\n"
    assert not list(tmp_path.iterdir())


def test_a_real_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("check", "thinking", "--preset", "tiny", "--run", str(tmp_path / "run"), "--json")
    code, out, err = command(monkeypatch, capsys, *words)
    content = json.loads(out)
    assert (code, err, content["problems"]) == (0, "", [])
    assert [item["verdict"] for item in content["items"]] == ["ok"] * len(ITEMS)
    # Half of the 16 rows add 7 MB to a process of 450; what the allocator keeps or gives back is of that size.
    assert abs(content["measured"]["memory_error"]) < 0.05
