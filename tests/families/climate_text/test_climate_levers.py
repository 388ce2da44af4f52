"""``benchmarks/climate_levers.py``: its slow ways compute what the family does, and it ends where they do not."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from climate_rows import make_batch, make_model

from sensorium.engine import settings
from sensorium.engine.contract import Host

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def levers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("climate_levers")


def test_the_loss_of_all_positions_is_that_of_the_targets_alone(levers: ModuleType) -> None:
    model, batch = make_model(), make_batch()
    ours = model(batch).losses().mean().detach()
    torch.testing.assert_close(levers.loss_of_all(model, batch).detach(), ours)
    other = batch | {"target_mask": batch["target_mask"].roll(-1, dims=1)}
    assert abs(float(levers.loss_of_all(model, other).detach() - ours)) > 1e-2


def test_arms_that_differ_end_the_script(levers: ModuleType) -> None:
    arm = {"first": 2.0, "last": 1.0}
    levers.require_same("head", [[arm, arm], [{"first": 2.0, "last": 1.000005}]])
    with pytest.raises(SystemExit, match=r"head: last is 1\.0 and 1\.0001; the arms do not compute the same"):
        levers.require_same("head", [[arm], [{"first": 2.0, "last": 1.0001}]])
    with pytest.raises(SystemExit, match=r"sum is .*nan"):
        levers.require_same("files", [[{"sum": 5.0}], [{"sum": float("nan")}]])


def test_reports_are_summaries_and_as_long_as_was_asked_for(
    levers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    demo = {"num_samples": 8, "shape": [2, 8, 24, 24], "val_fraction": 0.25, "questions": 7}
    config = settings.resolve(levers.FAMILY, "tiny", {"data": {"demo": demo}})
    source = levers.FAMILY.sources(config, Host()).train
    found = levers.reports(source, argparse.Namespace(prompt=400))
    for before, now in zip(source.part.entries, found.part.entries, strict=True):
        if before.facts["asked"] == "summary":
            assert 300 < len(source.inputs.texts.target(now.target)) <= 401
            assert set(now.target.split(f"{before.target} ")) == {"", before.target}
        else:
            assert now == before
