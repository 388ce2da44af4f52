"""What is foreseen of a run: memory of a step, as it then is; what is assumed; tokens on the disk."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import check as preflight
from sensorium.engine import settings
from sensorium.engine.contract import Ahead, Finding, Host, Sources
from sensorium.errors import DiskError
from sensorium.families.climate_text import memory
from sensorium.families.climate_text.data import TrainSource
from sensorium.families.climate_text.memory import demand, learning, longest, state
from sensorium.families.climate_text.outlook import outlook
from sensorium.parts.live import Live

FAMILY, CPU = families.load("climate_text"), torch.device("cpu")
FROZEN = {"freeze_llm": True}
PRITHVI = {
    "climate_encoder": "prithvi",
    "random_init": True,
    "prithvi": {"width": 32, "blocks": 1, "heads": 2},
    "max_climate_tokens": 36,
}
WIDE = {"demo": {"num_samples": 8, "shape": [2, 160, 24, 24], "val_fraction": 0.25}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def config_of(**changes: Any) -> settings.RunConfig:
    small = {"data": {"demo": {"num_samples": 8, "shape": [2, 8, 24, 24], "val_fraction": 0.25}}}
    return settings.resolve(FAMILY, "tiny", configuration.merge(small, changes))


def really(config: settings.RunConfig, sources: Sources, rows: int) -> tuple[int, int]:
    """Bytes of a real step's tensors, between forward and backward pass and at most; rows are of two lengths."""
    assert isinstance(sources.train, TrainSource)
    task = FAMILY.task(config, FAMILY.facts(config, sources)).train()
    batch = sources.train.collate([sources.train.example(longest(sources.train), 0)] * rows)
    for name in ("attention_mask", "target_mask"):
        batch[name][-1, -1] = False
    for parameter in learning(task):
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in learning(task) if parameter.grad is not None]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16")
    with Live([*task.parameters(), *task.buffers(), *batch.values(), *gradients]) as live:
        with autocast:
            loss = task(batch).loss
        held = live.now
        loss.backward()
    return held, live.peak


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"gradient_checkpointing": True, "num_fusion_layers": 3}},
        {"model": FROZEN | {"fusion_mode": "concatenate"}, "train": {"precision": "bf16"}},
        {"model": FROZEN | PRITHVI, "data": WIDE},
        {"model": FROZEN | PRITHVI, "data": WIDE | {"cache": False}, "train": {"precision": "bf16"}},
    ],
)
def test_memory_is_foreseen_as_it_is(changes: dict[str, Any]) -> None:
    """Within 1 %: only how positions are chosen is not the same."""
    if "random_init" in changes.get("model", {}):
        pytest.importorskip("PrithviWxC", reason="prithviwxc is not installed (extra `climate`)")
    config = config_of(**changes)
    sources = FAMILY.sources(config, Host())
    found = demand(config, sources, 6, CPU).parts
    held, peak = really(config, sources, 6)
    assert found["activations"] == pytest.approx(held, rel=0.01)
    assert found["activations"] + found["backward pass"] == pytest.approx(peak, rel=0.01)


def test_what_stays_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    assert state(config, 100) == memory.State(1600, 0, 0, 1)
    small = config.model_copy(update={"optim": config.optim.model_copy(update={"name": "adamw8bit"})})
    assert state(small, 100).device == 1000
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = {
        (stage, offload): state(
            config_of(deepspeed={"enabled": True, "zero_stage": stage, "cpu_offload": offload}), 100
        )
        for stage, offload in ((0, False), (1, False), (2, False), (3, False), (2, True))
    }
    assert {key: (one.device, one.host) for key, one in found.items()} == {
        (0, False): (1600, 0),
        (1, False): (400 + 400 + 300, 0),
        (2, False): (400 + 100 + 300, 0),
        (3, False): (100 + 100 + 300, 0),
        (2, True): (400, 100 + 300),
    }


def test_parts_and_levers() -> None:
    config = config_of(model=FROZEN)
    sources = FAMILY.sources(config, Host())
    found = demand(config, sources, 4, CPU)
    task = FAMILY.task(config, FAMILY.facts(config, sources))
    llm = task.model.llm
    assert found.parts["language model"] == sum(one.nbytes for one in (*llm.parameters(), *llm.buffers()))
    assert "climate encoder" not in found.parts  # it learns
    assert found.parts["what learns, gradient and optimizer"] == 16 * sum(one.numel() for one in learning(task))
    assert [one.partition(" ")[0] for one in found.levers] == [
        "model.gradient_checkpointing=true",
        "train.precision=bf16",
    ]
    half = demand(config_of(model=FROZEN, train={"precision": "bf16"}), sources, 4, CPU)
    assert half.parts["language model"] == pytest.approx(found.parts["language model"] / 2, rel=1e-3)


def rows_of(config: settings.RunConfig, sources: Sources) -> dict[str, Finding]:
    task = FAMILY.task(config, FAMILY.facts(config, sources))
    return {one.item: one for one in outlook(Ahead(config, sources, task, {}, 4))}


def test_rows_of_a_step_and_what_is_assumed() -> None:
    config = config_of(train={"batch_size": 16, "micro_batches": 2})
    sources = FAMILY.sources(config, Host())
    found = rows_of(config, sources)
    assert found["effective batch"].found == "4 rows x 2 micro-batches x 2 processes = 16 rows a step"
    assert found["inputs: train"] == Finding("inputs: train", "positions, times and channels are those of the files")
    assert found["kept tokens"].found.startswith("none: the encoder learns")
    assert isinstance(sources.train, TrainSource)
    part = sources.train.part
    bare = replace(part, entries=tuple(one.model_copy(update={"lat": None, "lon": None}) for one in part.entries))
    other = replace(sources, train=TrainSource(bare, sources.train.inputs))
    row = rows_of(config, other)["inputs: train"]
    assert row.warning
    assert row.found.startswith("positions assumed: 6 of 6 entries")


def test_kept_tokens_and_their_time(tmp_path: Path) -> None:
    pytest.importorskip("PrithviWxC", reason="prithviwxc is not installed (extra `climate`)")
    config = config_of(model=FROZEN | PRITHVI, data=WIDE)
    said: list[str] = []
    first = rows_of(config, FAMILY.sources(config, Host(say=said.append)))["kept tokens"].found
    assert first.startswith("10 fields, 0.")  # 6 to train, 2 of validation, 2 of the test
    assert "10 encoded now in " in first
    assert any(line.startswith("the kept tokens of 10 fields (up to 0.00 GB) are written to ") for line in said)
    again = rows_of(config, FAMILY.sources(config, Host()))["kept tokens"].found
    assert again.endswith("all were there")
    live = config_of(model=FROZEN | PRITHVI, data=WIDE | {"cache": False})
    assert "data.cache is false" in rows_of(live, FAMILY.sources(live, Host()))["kept tokens"].found


def test_no_room_for_tokens_is_said_before_any_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PrithviWxC", reason="prithviwxc is not installed (extra `climate`)")
    config = config_of(model=FROZEN | PRITHVI, data=WIDE)
    FAMILY.sources(config_of(model=FROZEN | PRITHVI, data=WIDE | {"cache": False}), Host())  # makes the weather
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(DiskError, match=r"the kept tokens of 10 fields .* needs 23,040 bytes .*; make room or take"):
        FAMILY.sources(config, Host())


def test_the_check_shows_it(tmp_path: Path) -> None:
    report = preflight.check(FAMILY, config_of(train={"batch_size": 4}), tmp_path / "run", quiet=True)
    assert report.problems == []
    rows = {row.item: row.found for row in report.rows}
    assert {"memory foreseen", "effective batch", "inputs: train", "inputs: val", "kept tokens", "host memory"} < set(
        rows
    )
    assert json.dumps(report.as_json())
