"""What every family promises, on its `tiny` preset. A new family is tested by being there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lines
from test_resume import assert_equal_runs, cut
from torch import Tensor, nn

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import loop, optim, session, settings
from sensorium.engine.contract import Batch, Example, Family, Host, Mix, Source, Sources
from sensorium.engine.seeds import reseed
from sensorium.engine.stages import learnable, spans
from sensorium.errors import DataError


@dataclass(frozen=True)
class Case:
    family: Family
    config: settings.RunConfig
    sources: Sources
    facts: Mapping[str, Any]

    def task(self) -> nn.Module:
        reseed(self.config.seed, "weights")
        return self.family.task(self.config, self.facts)

    def batch(self, rows: int, start: int = 0) -> Batch:
        source = self.sources.train
        batch = source.collate([source.example(i, 100 + i) for i in range(start, start + rows)])
        batch["index"] = torch.arange(start, start + rows)
        batch["step"] = torch.tensor(0)
        return batch


class Few:
    """The first ``length`` samples of a source."""

    def __init__(self, source: Source, length: int) -> None:
        self.source, self.length = source, min(length, len(source))
        self.fingerprint, self.collate = source.fingerprint, source.collate
        self.groups = None if source.groups is None else source.groups[: self.length]
        self.mix: Mix | None = None

    def __len__(self) -> int:
        return self.length

    def example(self, index: int, seed: int) -> Example:
        return self.source.example(index, seed)


@pytest.fixture(scope="module", params=families.names())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        family = families.load(request.param)
        config = settings.resolve(family, "tiny")
        sources = family.sources(config, Host())
        yield Case(family, config, sources, family.facts(config, sources))


def gradients(case: Case, task: nn.Module, batch: Batch) -> dict[str, Tensor]:
    reseed(0, "forward", 0)
    task.zero_grad()
    task(batch).loss.backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def steps(case: Case, task: nn.Module, batch: Batch, count: int) -> Iterator[float]:
    """Train, as far as somebody asks for the losses."""
    chosen = learnable(task)
    optimizer = optim.build(chosen, case.family.group, case.config.optim, {})
    for step in range(count):
        reseed(0, "forward", step)
        output = task({**batch, "step": torch.tensor(step)})
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if case.family.after_step is not None:
            case.family.after_step(task, step)
        yield float(output.loss.detach())


def test_configuration_survives_dump_and_build(case: Case) -> None:
    for preset in case.family.presets:
        config = settings.resolve(case.family, preset)
        assert configuration.build(settings.config_class(case.family), configuration.dump(config)) == config


def test_forward_is_finite_and_weighted(case: Case) -> None:
    output = case.task()(case.batch(4))
    assert torch.isfinite(output.loss)
    assert output.weight > 0
    assert all(torch.isfinite(value).all() for value in output.logs.values())


def test_trainable_parameters_get_gradients_and_frozen_ones_none(case: Case) -> None:
    task, batch = case.task(), case.batch(16)
    list(steps(case, task, batch, 2))  # what starts behind a zero is reached at the second step
    found = gradients(case, task, batch)
    assert found.keys() == learnable(task).keys()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    dead = [name for name, gradient in found.items() if not gradient.any()]
    assert not dead


def test_frozen_weights_stay(case: Case) -> None:
    task = case.task()
    names = learnable(task).keys()
    before = {name: p.detach().clone() for name, p in task.named_parameters() if name not in names}
    moving = {name: p.detach().clone() for name, p in task.named_parameters() if name in names}
    list(steps(case, task, case.batch(8), 3))
    after = dict(task.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(moving[name], after[name]) for name in moving)


def test_one_batch_is_overfitted(case: Case) -> None:
    """Within 120 steps, and to stay so: ten in a row, after which it need not go on."""
    first, *later = losses_until_low(steps(case, case.task(), case.batch(8), 120))
    assert max(later[-10:]) < 0.6 * first


def losses_until_low(losses: Iterator[float]) -> Iterator[float]:
    """As many as it takes until ten in a row are below 0.6 of the first one."""
    first = next(losses)
    yield first
    low = 0
    for loss in losses:
        yield loss
        low = low + 1 if loss < 0.6 * first else 0
        if low == 10:
            return


def test_a_dip_is_not_taken_for_overfitting() -> None:
    """Negative twin: nine in a row are not enough, and neither is a loss that comes back."""
    dip = [1.0, *[0.5] * 9]
    assert list(losses_until_low(iter([*dip, 0.7, *[0.5] * 10, 9.0]))) == [*dip, 0.7, *[0.5] * 10]
    assert max([*losses_until_low(iter([*dip, *[0.7] * 9]))][-10:]) > 0.6


def test_results_do_not_depend_on_batch_mates(case: Case) -> None:
    """Padding to a longer batch changes the order of float32 sums: 1e-5."""
    task = case.task().eval()
    evaluator = case.family.evaluator(case.config)
    with torch.no_grad():
        together = evaluator.collect(task, case.batch(8), final=False)
        apart = [evaluator.collect(task, case.batch(4, start), final=False) for start in (0, 4)]
    for name, values in together.items():
        if name != "loss":  # a contrastive loss is about the batch
            torch.testing.assert_close(values, torch.cat([part[name] for part in apart]), rtol=1e-5, atol=1e-5)


def test_micro_batches_do_not_change_the_step(case: Case, tmp_path: Path) -> None:
    """Whichever way the family accumulates. Sums in another order: float32, 1e-4."""
    found = []
    for parts in (1, 4):
        changes = {"train": {"micro_batches": parts, "steps": 1}, "evaluate": {"test": False}}
        config = settings.resolve(case.family, "tiny", changes)
        loop.train(case.family, config, tmp_path / str(parts), quiet=True)
        [line] = [line for line in lines(tmp_path / str(parts) / "metrics.jsonl") if line["kind"] == "train"]
        found.append((line["loss"], line["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][1] > 1e-3


def test_a_run_resumes_bit_for_bit(case: Case, tmp_path: Path) -> None:
    """Cut before a step that holds rows of two epochs, at the border of two, and at the border of each stage."""
    batch_size = 2 * max(1, case.config.train.batch_size // 2)
    few = replace(case.sources, train=Few(case.sources.train, 5 * batch_size // 2))
    family = replace(case.family, sources=lambda config, host: few, facts=lambda config, found: dict(case.facts))
    changes = {
        "train": {"steps": 7, "batch_size": batch_size, "micro_batches": 2},
        "checkpoint": {"every_steps": 1, "keep": 50},
        "evaluate": {"every_steps": 3},
    }
    config = settings.resolve(family, "tiny", changes)
    loop.train(family, config, tmp_path / "whole", quiet=True)
    borders = {span.end for span in spans(family.stages(config), 7)}
    for step in sorted({2, 5} | borders - {7}):
        part = tmp_path / f"cut{step}"
        cut(tmp_path / "whole", part, step)
        other = settings.resolve(family, "tiny", changes, {"loader": {"workers": 2 if step == 2 else 0}})
        loop.train(family, other, part, resume=True, quiet=True)
        assert_equal_runs(tmp_path / "whole", part)


def test_a_trained_run_opens_with_its_weights(case: Case, tmp_path: Path) -> None:
    config = settings.resolve(case.family, "tiny", {"train": {"steps": 3}})
    result = loop.train(case.family, config, tmp_path / "run", quiet=True)
    loaded = session.open_run(case.family, tmp_path / "run", "latest")
    evaluator = case.family.evaluator(config)
    with torch.no_grad():
        trained = evaluator.collect(loaded.task, case.batch(4), final=False)
        fresh = evaluator.collect(case.task().eval(), case.batch(4), final=False)
    assert any(not torch.equal(trained[name], fresh[name]) for name in trained)
    assert result is not None
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_a_bad_sample_is_named(case: Case, tmp_path: Path) -> None:
    class Broken(Few):
        def example(self, index: int, seed: int) -> Any:
            if index == 1:
                raise DataError("sample one: broken on purpose")
            return super().example(index, seed)

    broken = replace(case.sources, train=Broken(case.sources.train, len(case.sources.train)))
    family = replace(case.family, sources=lambda config, host: broken, facts=lambda config, found: dict(case.facts))
    config = settings.resolve(family, "tiny", {"train": {"steps": 100}})
    with pytest.raises(DataError, match="sample one: broken on purpose; mend or remove it"):
        loop.train(family, config, tmp_path / "run", quiet=True)
