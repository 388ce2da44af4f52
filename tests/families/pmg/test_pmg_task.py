"""Training, validation and its controls, moving average, resume with everything on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lines
from test_resume import assert_equal_runs, cut
from torch import Tensor

from sensorium import families
from sensorium.engine import checkpoint, loop, settings
from sensorium.engine.contract import Batch, Host, Sources
from sensorium.engine.seeds import reseed
from sensorium.errors import CheckpointError
from sensorium.families.pmg.data import EvalSource
from sensorium.families.pmg.evaluator import CAPTION, NOT_PERSONAL, OTHER, OWN, PMGEvaluator, compared
from sensorium.families.pmg.task import PMGTask
from sensorium.families.pmg.tiny import write_diffusion

FAMILY = families.load("pmg")
ALL: Mapping[str, Any] = {
    "model": {
        "conditioning": "target_soft_style",
        "ema_decay": 0.9,
        "soft_dropout": 0.2,
        "style_dropout": 0.2,
        "noise_offset": 0.1,
        "snr_gamma": 5.0,
        "gradient_checkpointing": True,
        "standardise": 4,
        "negative": {"weight": 0.5},
    },
    "train": {"steps": 6, "micro_batches": 2},
    "evaluate": {"every_steps": 2},
    "checkpoint": {"every_steps": 1, "keep": 50},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("runs")


def made(changes: Mapping[str, Any]) -> tuple[PMGTask, Sources]:
    config = settings.resolve(FAMILY, "tiny", changes)
    sources = FAMILY.sources(config, Host())
    facts = FAMILY.facts(config, sources)
    reseed(0, "weights")
    task = FAMILY.task(config, facts)
    assert isinstance(task, PMGTask)
    return task, sources


def batch_of(sources: Sources, rows: int = 4) -> Batch:
    return sources.train.collate([sources.train.example(number, number) for number in range(rows)])


def gradients(task: PMGTask, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    task.zero_grad()
    loss = task(batch).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("mode", ["soft_only", "target_soft", "target_soft_style"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_modes_and_checkpointing(mode: str, prefix: int) -> None:
    found = []
    for checkpointing in (False, True):
        model = {"conditioning": mode, "num_prefix_prompt": prefix, "gradient_checkpointing": checkpointing}
        task, sources = made({"model": model})
        found.append(gradients(task.train(), batch_of(sources)))
    (loss, plain), (again, kept) = found
    assert loss == pytest.approx(again, rel=1e-6)
    assert plain.keys() == kept.keys()
    assert len(plain) == (4 if prefix else 3)
    for name, value in plain.items():
        assert value.any()
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["item", "user"])
@pytest.mark.parametrize("form", ["logistic", "subtract"])
def test_the_preference_loss_is_added(kind: str, form: str) -> None:
    task, sources = made({"model": {"negative": {"weight": 0.5, "kind": kind, "form": form}}})
    output = task(batch_of(sources))
    mse, wrong = float(output.logs["mse"]), float(output.logs["mse_wrong"])
    assert wrong != mse
    loss = float(output.loss.detach())
    assert loss > mse if form == "logistic" else loss < mse
    assert all(value.any() for value in gradients(task, batch_of(sources))[1].values())


@pytest.mark.usefixtures("cache")
def test_what_learns_is_used_where_its_module_is_called() -> None:
    """Elsewhere ZeRO 3 has divided it (test_pmg_deepspeed.py, which needs DeepSpeed)."""
    task, sources = made({})
    called: list[str] = []
    task.adapter.register_forward_pre_hook(lambda *_: called.append("adapter"))
    assert task.adapter.mapping is not None
    task.adapter.mapping.register_forward_pre_hook(lambda *_: called.append("mapping"))
    task.train()(batch_of(sources))
    assert called == ["adapter", "mapping"]


@pytest.mark.usefixtures("cache")
def test_a_resume_with_everything_on_is_bit_for_bit(cache: Path) -> None:
    config = settings.resolve(FAMILY, "tiny", ALL)
    loop.train(FAMILY, config, cache / "whole", quiet=True)
    for step in (3, 5):
        cut(cache / "whole", cache / f"cut{step}", step)
        loop.train(FAMILY, config, cache / f"cut{step}", resume=True, quiet=True)
        assert_equal_runs(cache / "whole", cache / f"cut{step}")
    weights = checkpoint.load(checkpoint.folder_of(cache / "whole", 6), "pmg").weights
    assert len(weights) == 10  # the adapter, its moving average, mean and spread of states
    assert all(not torch.equal(weights[f"adapter.{name}"], weights["average." + name.replace(".", "/")])
               for name in ("image_prompt_NH", "prefix_L2KPD", "mapping.weight", "mapping.bias"))  # fmt: skip


def test_a_checkpoint_holds_the_adapter_alone(cache: Path) -> None:
    run = cache / "small"
    loop.train(FAMILY, settings.resolve(FAMILY, "tiny", {"train": {"steps": 2}}), run, quiet=True)
    folder = checkpoint.folder_of(run, 2)
    weights = checkpoint.load(folder, "pmg").weights
    assert {name.partition(".")[0] for name in weights} == {"adapter"}
    bytes_of_adapter = sum(tensor.nbytes for tensor in weights.values())
    size = (folder / checkpoint.WEIGHTS).stat().st_size
    assert bytes_of_adapter == 4 * (64 + 128 + 32 * 32 + 32)
    assert size < bytes_of_adapter + 64 * 1024
    page = (run / "report.html").read_text(encoding="utf-8")
    for shown in (
        "error, validation",
        "caption-only",
        "other-user",
        "Is it this user&#x27;s taste?",
        "what users like",
    ):
        assert shown in page, shown
    written = (run / "metrics.jsonl").read_text()
    assert '"other-user/error"' in written


@pytest.mark.usefixtures("cache")
def test_evaluation_uses_the_moving_average() -> None:
    task, sources = made({"model": {"ema_decay": 0.5}})
    batch = batch_of(sources)
    with torch.no_grad():
        before = task.eval().soft(batch["input_ids"], batch["text_mask"])
        for parameter in task.adapter.parameters():
            parameter += 1
        assert torch.equal(task.soft(batch["input_ids"], batch["text_mask"]), before)
        assert not torch.allclose(task.train().soft(batch["input_ids"], batch["text_mask"]), before)
        assert FAMILY.after_step is not None
        FAMILY.after_step(task, 0)
        assert task.average is not None
        moved = task.average.values()["image_prompt_NH"] - task.adapter.image_prompt_NH
    torch.testing.assert_close(moved, torch.full_like(moved, -0.5))


@pytest.mark.usefixtures("cache")
def test_frozen_models_stay_in_eval_mode() -> None:
    task, _ = made({})
    task.train()
    assert task.training
    assert not any(module.training for part in (task.llm, task.unet) for module in part.modules())


@pytest.mark.usefixtures("cache")
def test_the_caption_alone_is_computed_once_and_other_users_differ() -> None:
    task, sources = made({})
    assert isinstance(sources.val, EvalSource)
    batch = sources.val.collate([sources.val.example(number, 0) for number in range(3)])
    batch["index"] = torch.arange(3)
    evaluator = PMGEvaluator(settings.resolve(FAMILY, "tiny"))
    with torch.no_grad():
        first = evaluator.collect(task.eval(), batch, final=False)
        assert set(task.plain_losses) == {(0, 0), (0, 1), (0, 2)}
        calls = []
        task.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        second = evaluator.collect(task, batch, final=False)
    assert len(calls) == 8  # four draws, own and other
    assert all(torch.equal(first[name], second[name]) for name in (OWN, CAPTION, OTHER))
    assert not torch.allclose(first[OWN], first[OTHER], rtol=1e-6)
    alone = sources.val.split.tastes[0]
    assert alone.target.caption.startswith("a ")


def test_the_gain_is_judged_by_users() -> None:
    """Many samples of one user are one witness."""
    users = ["a"] * 50 + ["b", "c", "d"]
    own = torch.ones(53)
    better = torch.cat([torch.full((50,), 1.5), torch.full((3,), 0.9)])
    found = compared({OWN: own, CAPTION: torch.full((53,), 1.2), OTHER: better}, users)
    assert found[CAPTION][1] > 0
    assert found[OTHER][0] > 0 > found[OTHER][1]
    assert NOT_PERSONAL.isupper()


@pytest.mark.usefixtures("cache")
def test_personal_is_what_lies_below_both_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.families.pmg.evaluator.grid_gallery", lambda *_: ((), {}))
    task, sources = made({})
    assert isinstance(sources.val, EvalSource)
    count = len(sources.val)
    evaluator = PMGEvaluator(settings.resolve(FAMILY, "tiny"))
    for other, personal in ((1.5, 1.0), (0.9, 0.0)):
        errors = {OWN: 1.0, CAPTION: 1.5, OTHER: other, "soft_norm_ratio": 1.0}
        collected = {name: torch.full((count,), value) for name, value in errors.items()}
        found = evaluator.score(collected, sources.val, task, final=True)
        assert found.metrics[str(FAMILY.proof)] == personal
        assert bool(found.warnings) is not bool(personal)


def test_another_base_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Negative twin of every resume: the same sizes, other weights."""
    config = settings.resolve(FAMILY, "tiny", {"train": {"steps": 2}})
    loop.train(FAMILY, config, cache / "base", quiet=True)
    first = cache / "base"
    cut(first, cache / "other", 2)
    longer = settings.resolve(FAMILY, "tiny", {"train": {"steps": 3}})

    def another(config: settings.RunConfig, facts: Mapping[str, Any]) -> PMGTask:
        task = FAMILY.task(config, facts)
        assert isinstance(task, PMGTask)
        with torch.no_grad():
            next(iter(task.llm.parameters())).add_(1e-3)
        return task

    with pytest.raises(CheckpointError, match="frozen weights are not those"):
        loop.train(replace(FAMILY, task=another), longer, cache / "other", resume=True, quiet=True)
    loop.train(FAMILY, longer, cache / "other", resume=True, quiet=True)
    assert [line["step"] for line in lines(cache / "other" / "metrics.jsonl") if line["kind"] == "train"][-1] == 3


@pytest.mark.usefixtures("cache")
def test_velocities_and_another_width(tmp_path: Path) -> None:
    """As Stable Diffusion 2.x has them. Negative twin: told that it is noise, the same UNet errs otherwise."""
    found = []
    for name in ("v_prediction", "epsilon"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        write_diffusion(tmp_path / name, width=48, prediction=name)
        task, sources = made({"model": {"stable_diffusion": str(tmp_path / name), "snr_gamma": 5.0}})
        assert task.adapter.sizes.told == 48
        loss, found_gradients = gradients(task.train(), batch_of(sources))
        assert all(value.any() for value in found_gradients.values())
        found.append(loss)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


@pytest.mark.usefixtures("cache")
def test_bf16_is_near_fp32() -> None:
    """Frozen weights in bf16, the adapter in fp32; bf16 has 8 bits of mantissa."""
    soft = []
    for precision in ("fp32", "bf16"):
        task, sources = made({"train": {"precision": precision}})
        assert {p.dtype for p in task.adapter.parameters()} == {torch.float32}
        assert next(task.unet.parameters()).dtype == getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[precision])
        batch = batch_of(sources)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
            soft.append(task.soft(batch["input_ids"], batch["text_mask"]))
            assert soft[-1].dtype == torch.float32
            assert torch.isfinite(task(batch).loss)
    assert float((soft[0] - soft[1]).norm() / soft[0].norm()) < 0.1
