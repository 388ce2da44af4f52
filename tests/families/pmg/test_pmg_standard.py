"""A mapping that learns in states of mean 0 and spread 1, and is stored as if it never had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pmg_rows import adapter_of, texts, trunk
from torch import Tensor, nn

import sensorium
from sensorium import families
from sensorium.engine import loop, session, settings
from sensorium.engine.contract import Host
from sensorium.families.pmg.adapter_files import for_plain_states
from sensorium.families.pmg.model import PMGAdapter
from sensorium.families.pmg.task import PMGTask
from sensorium.families.pmg.use import Pictures

FAMILY = families.load("pmg")
FEW = 5


def trained(folder: Path, changes: Mapping[str, Any], steps: int = 1) -> PMGTask:
    """The task behind so many steps of a new run."""
    config = settings.resolve(FAMILY, "tiny", {**changes, "train": {"steps": steps}, "data": {"grid_users": 0}})
    loop.train(FAMILY, config, folder, quiet=True)
    task = session.open_run(FAMILY, folder, "latest").task
    assert isinstance(task, PMGTask)
    return task


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def test_folded_in_it_does_the_same() -> None:
    model = trunk()
    adapter = adapter_of(model)
    before = adapter_of(model)
    adapter.make_standard()
    adapter.standardise(torch.randn(40, adapter.sizes.width) * 3 + 7)
    assert adapter.mapping is not None
    with torch.no_grad():
        nn.init.normal_(adapter.mapping.weight)
        nn.init.normal_(adapter.mapping.bias)
    plain = PMGAdapter(adapter.sizes)
    plain.load_state_dict(for_plain_states(adapter.state_dict()))
    ids, mask = texts((5, 9))
    assert torch.allclose(plain(model, ids, mask), adapter(model, ids, mask), atol=1e-4)
    unfolded = {name: value for name, value in adapter.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(unfolded)
    assert not torch.allclose(plain(model, ids, mask), adapter(model, ids, mask), atol=0.1)
    values = before.state_dict()
    assert for_plain_states(values).keys() == values.keys()


def test_a_number_that_hardly_differs_does_not_count_as_much_as_the_others() -> None:
    adapter = adapter_of(trunk())
    adapter.make_standard()
    states = torch.randn(200, adapter.sizes.width)
    states[:, 3] = 41.0
    adapter.standardise(states)
    assert adapter.mean_H is not None
    assert adapter.spread_H is not None
    assert adapter.mean_H[3] == 41.0
    assert 0.09 < adapter.spread_H[3] < 0.11
    assert adapter.spread_H[4] == pytest.approx(states[:, 4].std(unbiased=False))


def test_a_run_takes_them_from_its_first_histories(tmp_path: Path) -> None:
    changes = {"model": {"standardise": FEW}}
    task = trained(tmp_path / "run", changes)
    assert task.adapter.is_standard
    config = settings.resolve(FAMILY, "tiny", {**changes, "data": {"grid_users": 0}})
    questions = FAMILY.sources(config, Host()).shared(FEW)
    seen: list[Tensor] = []
    assert task.adapter.mapping is not None
    task.adapter.mapping.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        count = sum(1 for ids, mask in questions if task.adapter(task.llm, ids, mask) is not None)
    assert count == FEW
    found = torch.cat(seen)  # one step has moved soft tokens and prefix a little
    assert found.mean(0).abs().mean() < 0.3
    assert 0.5 < found.std() < 1.5
    assert not any(name.startswith("adapter.spread") for name, _ in task.named_parameters())


def test_nothing_of_it_without_the_setting_and_none_is_stored(tmp_path: Path) -> None:
    task = trained(tmp_path / "plain", {})
    assert task.adapter.mean_H is None
    standard = trained(tmp_path / "run", {"model": {"standardise": FEW}}, steps=3)
    model = sensorium.load(tmp_path / "run")
    assert isinstance(model, Pictures)
    assert model.task.adapter.mean_H is None
    assert model.task.adapter.state_dict().keys() == task.adapter.state_dict().keys()
    ids, mask = torch.arange(3, 15)[None], torch.ones(1, 12, dtype=torch.bool)
    with torch.no_grad():
        same = standard.adapter(standard.llm, ids, mask)
        assert same.abs().mean() > 1e-4
        assert torch.allclose(model.task.adapter(model.task.llm, ids, mask), same, atol=1e-5)


def test_an_adapter_that_is_given_stays_what_it_is(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", {"model": {"standardise": FEW}}, steps=2)
    given = {"model": {"standardise": FEW, "start_from": str(tmp_path / "first")}, "optim": {"lr": 1e-12}}
    second = trained(tmp_path / "second", given)
    ids, mask = torch.arange(3, 15)[None], torch.ones(1, 12, dtype=torch.bool)
    with torch.no_grad():
        wanted, found = (one.adapter(one.llm, ids, mask) for one in (first, second))
    assert torch.allclose(found, wanted, atol=1e-4)
