"""What ``sensorium check`` says before it trains, and the line at an end for want of memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, TOY_TWO_STAGES, ToyTask, lines, toy_config, toy_sources

from sensorium import cli, families
from sensorium.engine import check as preflight
from sensorium.engine import check_ahead, loop
from sensorium.engine.contract import Ahead, Batch, Demand, Family, Finding, Host, Output, Sources
from sensorium.engine.order import clock_of
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError, ShortageError

CPU = torch.device("cpu")


def demanded(config: RunConfig, sources: Sources, rows: int, device: torch.device) -> Demand:
    """A gigabyte, and half of one a row."""
    del config, sources, device
    return Demand({"weights": 1_000_000_000, "rows": 500_000_000 * rows}, ("model.width=1 (worse)",))


def looked(config: RunConfig, family: Family = TOY) -> dict[str, Finding]:
    sources = family.sources(config, Host())
    return {one.item: one for one in check_ahead.foreseen(family, config, sources, CPU, 1)}


@pytest.mark.parametrize(
    ("checkpoint", "names"),
    [
        ({"every_epochs": None}, "1 of 12 steps: step_00000012,"),
        ({"every_epochs": None, "every_steps": 5}, "3 of 12 steps: step_00000005, step_00000010, step_00000012,"),
        ({"every_epochs": None, "every_steps": 2}, "6 of 12 steps: step_00000002, step_00000004, …, step_00000012,"),
        ({"every_epochs": None, "milestone_steps": 7}, "2 of 12 steps: step_00000007, step_00000012,"),
    ],
)
def test_the_checkpoints_are_those_that_a_run_saves(
    checkpoint: Mapping[str, Any], names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = {"checkpoint": {**checkpoint, "keep": 20}, "evaluate": {"every_epochs": None}}
    config = toy_config(still)
    saved: list[str] = []
    monkeypatch.setattr(loop.checkpoint, "prune", lambda run, keep, kept, newest: saved.append(f"step_{newest:08d}"))
    loop.train(TOY, config, tmp_path / "run", quiet=True)
    found = looked(config)["checkpoints"].found
    assert found.startswith(names.rstrip(","))
    assert found.startswith(f"{len(saved)} of 12 steps")
    assert "validation" not in found
    assert "validation is better" in looked(toy_config())["checkpoints"].found
    assert set(found.partition(": ")[2].partition(";")[0].split(", ")) - {"…"} <= set(saved)


@pytest.mark.parametrize("family", [TOY, TOY_TWO_STAGES])
def test_the_reach_is_the_sum_of_the_rates_that_a_run_takes(family: Family, tmp_path: Path) -> None:
    """Warm-up, decay, scales of groups and stages."""
    config = toy_config(
        {
            "schedule": {"name": "cosine", "warmup_steps": 3},
            "optim": {"lr": 0.01, "groups": {"no_decay": {"lr_scale": 3.0}}},
            "track": {"tensorboard": False},
        },
        family,
    )
    loop.train(family, config, tmp_path / "run", quiet=True)
    steps = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    task, sources = ToyTask(config.model), toy_sources(config, Host())  # type: ignore[arg-type]
    found = check_ahead.reach(family, config, task, clock_of(sources.train, config))
    body = [line for line in steps if family is TOY or line["stage"] == "all"]
    assert found["head.weight"] == pytest.approx(sum(line["lr/decay"] for line in steps), rel=1e-9)
    assert found["head.bias"] == pytest.approx(sum(line["lr/no_decay"] for line in steps), rel=1e-9)
    assert found["body.0.weight"] == pytest.approx(sum(line["lr/decay"] for line in body), rel=1e-9)
    assert "frozen.weight" not in found


@pytest.mark.parametrize(
    ("room", "verdict", "most"),
    [
        (20_000_000_000, "fits", "8 rows (train.micro_batches=1,"),
        (5_200_000_000, "tight", "4 rows (train.micro_batches=2,"),
        (4_000_000_000, "does not fit", "4 rows (train.micro_batches=2,"),
        (2_300_000_000, "does not fit", "2 rows (train.micro_batches=4,"),
    ],
)
def test_what_is_foreseen_against_what_the_gpu_has(room: int, verdict: str, most: str) -> None:
    config, family = toy_config(), replace(TOY, demand=demanded)
    found = check_ahead.memory(family, config, toy_sources(config, Host()), (CPU, room), 1)
    assert f"that the GPU has: {verdict}; the most that does: {most}" in found.found
    assert "8 rows at a time: weights 1 GB, rows 4 GB: 5 GB in all" in found.found
    assert found.warning == (verdict != "fits")


def test_what_does_not_fit_ends_the_check_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> ToyTask:
        raise AssertionError

    monkeypatch.setattr(check_ahead, "_room", lambda device: 4_000_000_000)
    report = preflight.check(replace(TOY, demand=demanded, task=never), toy_config(), tmp_path / "run", quiet=True)
    (problem,) = report.problems
    assert problem.startswith(
        "memory: 8 rows at a time: weights 1 GB, rows 4 GB: 5 GB in all, of 4 GB that the GPU has"
    )
    assert problem.endswith("4 rows (train.micro_batches=2, the same steps), or model.width=1 (worse)")
    assert report.rows[-1].item == "memory foreseen"
    monkeypatch.setattr(check_ahead, "_room", lambda device: 5_200_000_000)  # tight
    report = preflight.check(replace(TOY, demand=demanded), toy_config(), tmp_path / "run", quiet=True)
    assert report.problems == []
    assert report.rows[-1].item == "disk"


def test_without_a_gpu_the_bytes_are_all_that_is_said() -> None:
    found = looked(toy_config({"train": {"micro_batches": 4}}), replace(TOY, demand=demanded))["memory foreseen"]
    assert (found.found, found.warning) == ("2 rows at a time: weights 1 GB, rows 1 GB: 2 GB in all", False)


def test_where_nothing_fits_the_levers_are_named() -> None:
    config, family = toy_config(), replace(TOY, demand=demanded)
    found = check_ahead.memory(family, config, toy_sources(config, Host()), (CPU, 1_000_000_000), 1)
    assert found.found.endswith("does not fit; nor do fewer rows; model.width=1 (worse)")


def test_a_family_adds_rows_of_its_own(tmp_path: Path) -> None:
    """With the task as it would begin, and what stops it is a problem that is said once."""

    def outlook(ahead: Ahead) -> list[Finding]:
        assert isinstance(ahead.task, ToyTask)
        return [Finding("width", f"{ahead.task.head.in_features} of {ahead.rows}", warning=True)]

    def stopped(ahead: Ahead) -> list[Finding]:
        raise DataError("toy: no outlook")

    report = preflight.check(replace(TOY, outlook=outlook), toy_config(), tmp_path / "run", quiet=True)
    row = next(row for row in report.rows if row.item == "width")
    assert (row.found, row.verdict, report.problems) == ("8 of 8", "note", [])
    report = preflight.check(replace(TOY, outlook=stopped), toy_config(), tmp_path / "run", quiet=True)
    assert report.problems == ["toy: no outlook"]


class Greedy(ToyTask):
    def forward(self, batch: Batch) -> Output:
        if len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")
        return super().forward(batch)


GREEDY = replace(TOY, task=lambda config, facts: Greedy(config.model))
SAID = (
    "out of memory with 8 rows at a time (CUDA out of memory. Tried to allocate 2 GiB; foreseen: weights 1 GB, rows "
    "4 GB: 5 GB in all); the cheapest way out first: model.width=1 (worse), train.micro_batches=2 (the same steps)"
)


def test_an_end_for_want_of_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(families, "load", lambda name: replace(GREEDY, demand=demanded))
    monkeypatch.setattr(sys, "argv", ["sensorium", "train", "toy", "--run", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == f"error: {SAID}\n"


def test_the_check_says_it_with_the_same_line(tmp_path: Path) -> None:
    report = preflight.check(replace(GREEDY, demand=demanded), toy_config(), tmp_path / "run", quiet=True)
    assert report.problems == [SAID.replace("8 rows at", "4 rows at").replace("rows 4 GB: 5", "rows 2 GB: 3")]


def test_the_advice_is_true(tmp_path: Path) -> None:
    """Divided as it says, a run fits; where nothing can be divided and nothing is foreseen, the reason is all."""
    parts = {"train": {"batch_size": 6}}
    with pytest.raises(ShortageError, match=r"6 rows .* first: train.micro_batches=2 \(the same steps\)$"):
        loop.train(GREEDY, toy_config(parts), tmp_path / "one", quiet=True)
    loop.train(GREEDY, toy_config({"train": {"batch_size": 6, "micro_batches": 3}}), tmp_path / "three", quiet=True)
    always = replace(TOY, task=lambda config, facts: AlwaysGreedy(config.model))
    with pytest.raises(ShortageError) as raised:
        loop.train(always, toy_config({"train": {"batch_size": 1}}), tmp_path / "four", quiet=True)
    assert str(raised.value) == "out of memory with 1 row at a time (DefaultCPUAllocator: can't allocate memory)"


class AlwaysGreedy(ToyTask):
    def forward(self, batch: Batch) -> Output:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_other_errors_of_torch_stay_what_they_are(tmp_path: Path) -> None:
    class Wrong(ToyTask):
        def forward(self, batch: Batch) -> Output:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        loop.train(replace(TOY, task=lambda config, facts: Wrong(config.model)), toy_config(), tmp_path, quiet=True)
