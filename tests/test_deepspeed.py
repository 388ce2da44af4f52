"""DeepSpeed: ZeRO 0-3 on two processes is one process, saved and resumed bit for bit, and continued without it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lines
from rank_group import Group, Nursery, open_nursery
from test_resume import EACH_STEP

from sensorium import config as configuration
from sensorium.engine import checkpoint

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'sensorium[deepspeed]'"
    ),
]

FIRST = """
from sensorium.engine import settings, zero
from sensorium import families
zero.load(cpu=True)
from toy_variants import FAMILIES, scaled
from zero_families import DIVIDED
"""
TRAIN = """
family = {"divided": DIVIDED, **FAMILIES}.get(name) or families.load(name)
run = Path(run)
loop.train(family, settings.resolve(family, "tiny", config), run, resume=(run / "config.yaml").exists(), quiet=True)
"""
QUIET = {"track": {"tensorboard": False}}
STILL: Mapping[str, Any] = {
    **EACH_STEP,
    **QUIET,
    "model": {"dropout": 0.0},
    "train": {"steps": 10, "micro_batches": 2, "grad_clip": 2.0},
    "schedule": {"name": "cosine", "warmup_steps": 2},
}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    # Small buckets: of those that DeepSpeed likes, some gigabytes are laid out for each process.
    sizes = {"reduce_bucket_size": 5000, "allgather_bucket_size": 5000, "stage3_param_persistence_threshold": 10}
    content = {"zero_optimization": sizes}
    return {"deepspeed": {"enabled": True, "zero_stage": stage, "config": content, **more}}


KINDS: Mapping[str, Mapping[str, Any]] = {
    "ddp": {},
    **{f"zero {stage}": zero(stage) for stage in range(4)},
    "zero 2, offload": zero(2, cpu_offload=True),
}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with open_nursery(tmp_path_factory.mktemp("nursery"), FIRST) as nursery:
        yield nursery


def start(
    nursery: Nursery, run: Path, config: Mapping[str, Any], name: str = "divided", *, world: int = 2, first: str = ""
) -> Group:
    """Train, or continue what is there. ``first``: what each rank runs before."""
    given = f"name, config, run = {name!r}, {configuration.merge(config)!r}, {str(run)!r}"
    return nursery.start("\n".join((given, first, TRAIN)), world)


def finish(*groups: Group) -> None:
    for group in groups:
        assert set(group.codes()) == {0}, group.said(0) + group.said(len(group.pids) - 1)
        assert [group.said(rank) for rank in range(len(group.pids))] == [""] * len(group.pids)


def at(run: Path, step: int) -> checkpoint.Content:
    folder = checkpoint.folder_of(run, step)
    return checkpoint.load(folder, checkpoint.check(folder).family)


def assert_close(run: Path, expected: Path, step: int, losses: float = 1e-5, weights: float = 1e-4) -> None:
    """Losses of all steps, weights and optimizer state after ``step``; buffers are those of the first process."""
    ours, theirs = (
        [line["loss"] for line in lines(folder / "metrics.jsonl") if line["kind"] == "train"]
        for folder in (run, expected)
    )
    assert len(ours) == len(theirs) == step
    assert ours == pytest.approx(theirs, rel=losses)
    one, other = at(run, step), at(expected, step)
    assert one.frozen == other.frozen
    assert one.optimizer.keys() == other.optimizer.keys()
    names = {key.rpartition("/")[0] for key in one.optimizer}
    for left, right in ((one.weights, other.weights), (one.optimizer, other.optimizer)):
        assert left.keys() == right.keys()
        for name in (name for name in left if left is one.optimizer or name in names):
            assert left[name].dtype == right[name].dtype
            torch.testing.assert_close(left[name], right[name], rtol=weights, atol=weights)


@pytest.fixture(scope="module")
def alike(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process and, in every way, by two."""
    folder = tmp_path_factory.mktemp("alike")
    finish(start(nursery, folder / "one", STILL, "toy in stages", world=1))
    for kind, settings in KINDS.items():
        finish(start(nursery, folder / kind, {**STILL, **settings}, "toy in stages"))
        finish(start(nursery, folder / f"divided {kind}", {**STILL, **settings}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_are_one(alike: Path, kind: str) -> None:
    """Ten steps in two stages, clipped; sums in another order."""
    assert_close(alike / kind, alike / "one", 10)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ddp"])
def test_what_is_hard_to_divide(alike: Path, kind: str) -> None:
    """Frozen weights of another type, weights changed after a step, buffers that are handed on: as DDP has them."""
    assert_close(alike / f"divided {kind}", alike / "divided ddp", 10)
    ours, theirs = at(alike / f"divided {kind}", 10).weights, at(alike / "divided ddp", 10).weights
    torch.testing.assert_close(ours, theirs)
    assert float(ours["scale"].max()) <= 1.0
