"""Stages with data, rates, a preparation and a best checkpoint of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOY, ToyData, ToySource, ToyTask, lines, toy_config, toy_sources
from test_resume import EACH_STEP, assert_equal_runs, cut, run
from torch import nn

from sensorium.engine import checkpoint, optim, rundir, session, settings
from sensorium.engine.contract import Batch, Begin, Family, Host, Mix, Output, Sources, Stage
from sensorium.errors import CheckpointError

STAGES = (
    Stage("first", share=0.25, trainable=("head.*",)),
    Stage("second", share=0.25, lr_scales={"head.*": 0.5, "body.*": 0.25}, trainable=("body.*", "head.*")),
    Stage("third", share=0.5),
)


class AnchoredTask(ToyTask):
    """From the second stage on, what the model said when the stage began is a target, too."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.stage = ""
        self.anchor: ToyTask | None = None
        self.seen_indices: list[list[int]] = []

    def forward(self, batch: Batch) -> Output:
        if self.training:
            self.seen_indices.append(batch["index"].tolist())
        output = super().forward(batch)
        if self.anchor is None:
            return output
        with torch.no_grad():
            target = self.anchor.predict(batch)
        return replace(output, loss=output.loss + (self.predict(batch) - target).square().mean())


def begin_stage(task: nn.Module, begin: Begin) -> None:
    assert isinstance(task, AnchoredTask)
    task.stage, task.anchor = begin.stage.name, None
    if begin.stage.name != "first":
        anchor = copy.deepcopy(task)
        anchor.load_state_dict(dict(begin.weights()), strict=False)
        object.__setattr__(task, "anchor", anchor.eval())  # not a part of the task: it is not saved


def sources(config: settings.RunConfig, host: Host) -> Sources:
    found = toy_sources(config, host)
    assert isinstance(config.data, ToyData)
    mixed = ToySource(config.data, 0, mix=Mix(np.arange(config.data.length) % 2))
    return replace(found, stages={"first": ToySource(config.data, 5000), "second": mixed})


def _task(config: settings.RunConfig, facts: Mapping[str, Any]) -> nn.Module:
    del facts
    return AnchoredTask(config.model)


FAMILY: Family = replace(TOY, sources=sources, task=_task, stages=lambda config: STAGES, begin_stage=begin_stage)


def test_every_cut_continues_bit_for_bit(tmp_path: Path) -> None:
    """Also where the model of before the stage has to come from its checkpoint."""
    layers = {**EACH_STEP, "evaluate": {"every_steps": 1}, "checkpoint": {"every_steps": 1, "keep": 2}}
    layers["schedule"] = {"name": "cosine", "warmup_steps": 5, "warmup_fraction": 0.3}
    config = toy_config(layers, FAMILY)
    keeping_all = toy_config({**layers, "checkpoint": {"every_steps": 1, "keep": 50}}, FAMILY)
    run(tmp_path / "whole", keeping_all, FAMILY)
    for step in range(13):
        part = tmp_path / f"cut{step}"
        cut(tmp_path / "whole", part, step)
        run(part, config, FAMILY, resume=True)
        assert_equal_runs(tmp_path / "whole", part)


def test_the_first_stage_may_ask_what_it_began_with(tmp_path: Path) -> None:
    """There is no checkpoint of before the first step: the weights follow from the seed."""
    stages = (replace(STAGES[1], share=0.5), STAGES[2])
    family = replace(FAMILY, stages=lambda config: stages)
    config = toy_config({**EACH_STEP, "checkpoint": {"every_steps": 1, "keep": 50}}, family)
    run(tmp_path / "whole", config, family)
    cut(tmp_path / "whole", tmp_path / "part", 2)
    run(tmp_path / "part", config, family, resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "part")


def test_what_a_stage_began_with_is_kept_and_needed(tmp_path: Path) -> None:
    config = toy_config({**EACH_STEP, "checkpoint": {"every_steps": 1, "keep": 2}}, FAMILY)
    folder = tmp_path / "run"
    run(folder, config, FAMILY)
    state = checkpoint.load(checkpoint.folder_of(folder, 12), "toy").state
    best = [
        min(
            (line for line in lines(folder / "metrics.jsonl") if line["kind"] == "val" and first < line["step"] <= end),
            key=lambda line: line["metrics"]["loss"],
        )["step"]
        for first, end in ((0, 3), (3, 6), (6, 12))
    ]
    assert state["kept"] == sorted({best[0], 3, best[1], 6})
    assert state["best"]["step"] == best[2]
    there = {int(path.name.removeprefix("step_")) for path in checkpoint.complete(folder)[0]}
    assert there == {*state["kept"], best[2], 11, 12}
    for step in (12, 6):
        checkpoint.drop(checkpoint.folder_of(folder, step))
    (folder / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="step_00000006"):
        run(folder, config, FAMILY, resume=True)


def test_an_opened_checkpoint_knows_its_stage(tmp_path: Path) -> None:
    keeping_all = toy_config({**EACH_STEP, "checkpoint": {"every_steps": 1, "keep": 50}}, FAMILY)
    run(tmp_path / "run", keeping_all, FAMILY)
    found = []
    for step in range(1, 13):
        task = session.open_run(FAMILY, tmp_path / "run", f"step_{step:08d}").task
        assert isinstance(task, AnchoredTask)
        found.append(task.stage)
    assert found == ["first"] * 3 + ["second"] * 3 + ["third"] * 6


def test_each_stage_trains_on_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[AnchoredTask] = []

    def watched(config: settings.RunConfig, facts: Mapping[str, Any]) -> nn.Module:
        task = _task(config, facts)
        assert isinstance(task, AnchoredTask)
        tasks.append(task)
        return task

    config = toy_config(EACH_STEP, FAMILY)
    run(tmp_path / "run", config, replace(FAMILY, task=watched))
    kinds = [{index % 2 for index in step} for step in tasks[0].seen_indices]
    assert all(len(kind) == 1 for kind in kinds[3:6])
    assert not all(len(kind) == 1 for kind in kinds[:3] + kinds[6:])
    stored = rundir.read_facts(tmp_path / "run")["fingerprints"]
    assert stored["train of stage first"] == "toy-20-5000"
    (tmp_path / "run/summary.json").unlink()
    monkeypatch.setattr(ToySource, "__len__", lambda self: 20)
    other = replace(FAMILY, sources=lambda config, host: replace(sources(config, host), stages={}))
    with pytest.raises(CheckpointError, match="train of stage first, train of stage second data are not those"):
        run(tmp_path / "run", config, other, resume=True)


def test_the_rate_of_a_stage_s_parts() -> None:
    task = AnchoredTask(toy_config(family=FAMILY).model)
    chosen = {name: p for name, p in task.named_parameters() if p.requires_grad}
    optimizer = optim.build(chosen, TOY.group, toy_config().optim, STAGES[1].lr_scales)
    rates = optim.set_rates(optimizer, 0.1)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in chosen.items():
        assert found[id(parameter)] == pytest.approx(0.05 if name.startswith("head") else 0.025)
    assert rates == {"decay": 0.05, "no_decay": 0.05}
