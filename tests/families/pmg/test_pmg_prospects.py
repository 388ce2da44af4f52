"""What ``sensorium check`` says of a `pmg` run: how far it can get, its prompts, its cache, the memory of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sensorium import families
from sensorium.engine import check_ahead, settings
from sensorium.engine.contract import Ahead, Batch, Finding, Host
from sensorium.engine.order import clock_of, require_lengths
from sensorium.engine.seeds import derive, generator, reseed
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg import memory, prospects
from sensorium.families.pmg.data import SortableSource, TrainSource, padded
from sensorium.families.pmg.memory import demand
from sensorium.families.pmg.task import PMGTask

FAMILY = families.load("pmg")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("runs")


def ahead(changes: Mapping[str, Any], preset: str = "tiny", rows: int = 4) -> Ahead:
    config = settings.resolve(FAMILY, preset, changes)
    sources = FAMILY.sources(config, Host())
    reseed(0, "weights")
    task = FAMILY.task(config, FAMILY.facts(config, sources))
    reach = check_ahead.reach(FAMILY, config, task, clock_of(sources.train, config))
    return Ahead(config, sources, task, reach, rows)


def row(found: Ahead, item: str) -> Finding:
    return next(one for one in prospects.outlook(found) if one.item == item)


GUIDE: Mapping[str, Any] = {  # its optimizer and length, on small models
    "model": {"llm": "random:tiny", "stable_diffusion": "random:tiny", "init": "normal", "num_image_prompt": 16},
    "data": {"toy": {}, "image_size": 64},
    "train": {"steps": 1875, "epochs": None, "batch_size": 8, "micro_batches": 1},
    "schedule": {"warmup_steps": 0},
}


def test_the_guides_rate_moves_noise_of_size_one_by_half_a_percent() -> None:
    """1,875 steps from 5e-6 down to 0 are 5e-6 * 1875 / 2 = 0.0047 together."""
    found = ahead(GUIDE, "guide")
    assert found.reach["adapter.image_prompt_NH"] == pytest.approx(0.0047, rel=0.01)
    line = row(found, "reach")
    prompt = found.task.adapter.image_prompt_NH.detach()  # type: ignore[union-attr]
    assert f"image prompt {0.0046850 / float(prompt.square().mean().sqrt()):.2%}" in line.found
    assert 0.004 < 0.0046850 / float(prompt.std()) < 0.006
    assert line.warning
    groups = {"mapping": {"lr_scale": 2.0}}
    some = row(ahead({**GUIDE, "optim": {"groups": groups}}, "guide"), "reach")
    assert "little is learned; raise optim.groups.soft.lr_scale, optim.groups.prefix.lr_scale 11-fold" in some.found


def test_the_advice_is_enough_and_no_more() -> None:
    line = row(ahead(GUIDE, "guide"), "reach").found
    times = int(line.partition("-fold")[0].rpartition("raise optim.lr ")[2])
    assert not row(ahead({**GUIDE, "optim": {"lr": times * 5e-6}}, "guide"), "reach").warning
    assert row(ahead({**GUIDE, "optim": {"lr": (times - 1) * 5e-6}}, "guide"), "reach").warning


def test_where_all_parts_stay_the_rate_of_all_is_named() -> None:
    line = row(ahead({"optim": {"lr": 1e-9}}), "reach")
    assert line.warning
    assert "raise optim.lr " in line.found
    line = row(ahead({"optim": {"groups": {"prefix": {"lr_scale": 0.0}}}}), "reach")
    assert "prefix 0.00%" in line.found
    assert "raise optim.groups.prefix.lr_scale above 0 " in line.found


def test_what_learns_is_counted() -> None:
    found = ahead({"model": {"num_prefix_prompt": 3}})
    learned = sum(parameter.numel() for parameter in found.task.parameters() if parameter.requires_grad)
    assert row(found, "what learns").found == f"image prompt 64, prefix 192, mapping 1,056: {learned:,} in all"


def test_prompts_are_counted_by_length() -> None:
    found = ahead({})
    line = prospects.prompts(found, [10, 10, 11, 13])
    assert line.found.startswith("tokens 10: 2, 11: 1, 12: 0, 13: 1; padding ")
    line = prospects.prompts(found, [*range(20, 40), 60])
    bars = [one.partition(": ") for one in line.found.partition(";")[0].removeprefix("tokens ").split(", ")]
    assert bars[0] == ("20-25", ": ", "6")
    assert bars[-1] == ("56-61", ": ", "1")
    assert sum(int(count) for _, _, count in bars) == 21
    assert "(as it is set), " in line.found
    assert not line.warning


def test_padding_is_that_of_the_batches() -> None:
    lengths = np.random.default_rng(0).integers(5, 70, 101)
    shuffled = generator(0, "prompt lengths").permutation(lengths).tolist()
    masks = [padded([[1] * one for one in shuffled[n : n + 4]], 0)[1] for n in range(0, 101, 4)]
    share = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert prospects.padding(lengths, 4, 0) == pytest.approx(share)
    assert prospects.padding(lengths, 1, 0) < share < prospects.padding(lengths, 32, 0)


def test_questions_that_are_padded_to_the_longest_can_be_sorted() -> None:
    found = ahead({"loader": {"sort_window": 2}})
    source = found.sources.train
    require_lengths(found.sources, found.config)
    assert isinstance(source, SortableSource)
    batch = source.collate([source.example(number, 0) for number in range(4)])
    assert [source.length(number) for number in range(4)] == batch["text_mask"].sum(dim=1).tolist()
    assert "% to the longest of 4 unsorted, " in row(found, "prompts").found
    assert "% to the longest of 4 unsorted (as it is set), " in row(ahead({}), "prompts").found
    fixed = ahead({"loader": {"sort_window": 2}, "model": {"pad_to": "max"}})
    with pytest.raises(ConfigError, match=r"loader\.sort_window is 2, .* of this run \(pmg\) have no length"):
        require_lengths(fixed.sources, fixed.config)


def test_padding_to_the_cap_is_warned_of_where_it_costs_most() -> None:
    found = ahead({"model": {"pad_to": "max"}})
    line = row(found, "prompts")
    assert line.warning
    assert "93% to 598 (as it is set); model.pad_to=longest saves most of it" in line.found
    assert not row(ahead({"model": {"pad_to": "max", "max_sequence_length": 60}}), "prompts").warning


def test_the_cache_is_as_large_as_its_folders(cache: Path) -> None:
    found = row(ahead({"model": {"conditioning": "target_soft_style"}}), "feature cache").found
    root = prospects.default_root()
    size = {path.name: sum(file.stat().st_size for file in path.iterdir()) for path in root.iterdir() if path.is_dir()}
    split = ahead({"model": {"conditioning": "target_soft_style"}}).sources.train.split  # type: ignore[attr-defined]
    stores = (split.frozen.pictures, split.frozen.plain, split.frozen.captions, split.frozen.styles)
    names = {store.namespace for store in stores}
    assert len(names) == 4
    assert found.endswith(f": {sum(size[name] for name in names) / 1e6:.3g} MB on disk")
    assert found.startswith(f"VAE moments at 64 pixels {size[split.frozen.pictures.namespace] / 1e6:.3g} MB, text ")


# --- memory


def parts_of(changes: Mapping[str, Any], rows: int = 4) -> dict[str, int]:
    config = settings.resolve(FAMILY, "tiny", changes)
    return dict(demand(config, FAMILY.sources(config, Host()), rows, CPU).parts)


def batch_of_longest(source: TrainSource, rows: int) -> Batch:
    lengths = source.split.questions
    longest = max(range(len(source)), key=lambda one: len(lengths[one]))
    return source.collate([source.example(longest, derive(0, "demand"))] * rows)


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "no prefix": {"num_prefix_prompt": 0},
    "padded": {"pad_to": "max", "max_sequence_length": 100},
    "average and style": {"ema_decay": 0.9, "conditioning": "target_soft_style"},
    "negative": {"negative": {"weight": 0.5, "kind": "item"}, "soft_dropout": 0.1},
}


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in SETTINGS), ("plain", "bf16")])
def test_foreseen_is_what_the_allocator_gives_out(name: str, precision: str) -> None:
    """A real step under PyTorch's profiler, which sees every allocation of the CPU, the scratch of kernels included."""
    found = ahead({"model": SETTINGS[name], "train": {"precision": precision}})
    parts = demand(found.config, found.sources, 4, CPU).parts
    task = found.task.train()
    assert isinstance(task, PMGTask)
    assert isinstance(found.sources.train, TrainSource)
    weights = {"language model": task.llm, "UNet": task.unet}
    assert {part: parts[part] for part in weights} == {part: size_of(module) for part, module in weights.items()}
    batch = batch_of_longest(found.sources.train, 4)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    for parameter in task.adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):  # the first one also makes what is kept, and is not looked at
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            with autocast:
                loss = task(batch).loss
            loss.backward()
            del loss
    on_real_tensors = memory.step_bytes(task, batch, autocast)
    assert {part: parts[part] for part in on_real_tensors} == on_real_tensors
    step = parts["activations of the language model"] + parts["activations of the UNet"] + parts["backward pass"]
    assert step == pytest.approx(allocated(profile), rel=0.15)


def size_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def allocated(profile: torch.profiler.profile) -> int:
    """Bytes given out at most at once."""
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        now += one.nbytes()
        most = max(most, now)
    return most


def test_memory_grows_with_rows_tokens_and_pixels() -> None:
    small, large = parts_of({}, 2), parts_of({}, 8)
    same = [part for part in small if large[part] == small[part]]
    assert same == ["language model", "UNet", "adapter, gradient and optimizer"]
    assert sum(large.values()) - sum(small.values()) == pytest.approx(
        1.5 * (sum(parts_of({}, 6).values()) - sum(small.values())), rel=0.02
    )
    longer = parts_of({"model": {"pad_to": "max", "max_sequence_length": 200}}, 2)
    assert longer["activations of the language model"] > 3 * small["activations of the language model"]
    assert longer["activations of the UNet"] == small["activations of the UNet"]


def test_nothing_large_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a model that this machine could not hold, in the time of a small one."""
    from transformers import LlamaConfig

    huge = LlamaConfig(hidden_size=16384, intermediate_size=57344, num_hidden_layers=12, num_attention_heads=128)
    config = settings.resolve(FAMILY, "tiny", {"train": {"precision": "bf16"}})
    found = FAMILY.sources(config, Host())
    monkeypatch.setattr("sensorium.families.pmg.language.read_config", lambda *_: huge)
    parts = demand(config, found, 24, CPU).parts
    each = 4 * 16384**2 + 3 * 16384 * 57344
    assert parts["language model"] == pytest.approx(2 * (12 * each + 32_000 * 16384), rel=1e-4)  # 94 GB
    assert parts["activations of the language model"] > 8e9


def levers(changes: Mapping[str, Any]) -> list[str]:
    config = settings.resolve(FAMILY, "tiny", {"model": changes})
    return [one.partition(" ")[0] for one in demand(config, FAMILY.sources(config, Host()), 2, CPU).levers]


def test_levers_are_those_that_are_left() -> None:
    assert levers({"pad_to": "max"}) == ["model.pad_to=longest", "model.gradient_checkpointing=true"]
    assert levers({"pad_to": "max", "max_sequence_length": 50}) == ["model.gradient_checkpointing=true"]
    assert levers({"gradient_checkpointing": True}) == []


def test_every_lever_needs_less() -> None:
    changes: dict[str, Any] = {"pad_to": "max"}
    before = sum(parts_of({"model": changes}).values())
    for lever in ("pad_to", "gradient_checkpointing"):
        changes |= {lever: {"pad_to": "longest", "gradient_checkpointing": True}[lever]}
        after = sum(parts_of({"model": changes}).values())
        assert after < before
        before = after


def test_the_longest_prompt_that_can_be_used_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings.resolve(FAMILY, "tiny", {})
    train = FAMILY.sources(config, Host()).train
    assert isinstance(train, TrainSource)
    lengths = [len(one) for one in train.split.questions]
    assert memory._longest(train, 0)["input_ids"].shape == (1, math.ceil(max(lengths) / 8) * 8)
    long = {number for number, length in enumerate(lengths) if length > min(lengths)}
    whole = TrainSource.example

    def example(self: TrainSource, index: int, seed: int) -> Mapping[str, Any]:
        if index in long:
            raise DataError("broken on purpose")
        return whole(self, index, seed)

    monkeypatch.setattr(TrainSource, "example", example)
    assert memory._longest(train, 0)["text_mask"].sum() == min(lengths)
    long |= set(range(len(lengths)))
    with pytest.raises(DataError, match="none of 36 training samples can be used"):
        memory._longest(train, 0)
