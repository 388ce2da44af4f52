"""A DeepSpeed JSON: translated to the run's settings, handed on, or refused; and what such a run needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import TOY, toy_config
from toy_variants import FRAGILE

from sensorium import config as configuration
from sensorium import launched
from sensorium.engine import check, settings, zero_json, zero_start
from sensorium.errors import ConfigError

GUIDE = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "steps_per_print": 10,
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 1,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
    },
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.95], "eps": "auto", "weight_decay": 0.1}},
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"warmup_num_steps": 3, "warmup_min_ratio": 0, "total_num_steps": 100, "cos_min_ratio": 0.1},
    },
    "activation_checkpointing": {"partition_activations": True},
}


def resolved(content: Any, **more: Any) -> settings.RunConfig:
    return toy_config(configuration.merge({"deepspeed": {"config": content}}, more))


def test_everything_that_the_run_says_itself_is_translated() -> None:
    config = resolved(GUIDE)
    assert (config.train.micro_batches, config.train.grad_clip, config.train.precision) == (2, 0.5, "bf16")
    assert (config.deepspeed.zero_stage, config.deepspeed.cpu_offload) == (1, True)
    assert (config.optim.lr, config.optim.betas, config.optim.weight_decay) == (5e-5, (0.9, 0.95), 0.1)
    assert (config.schedule.name, config.schedule.warmup_steps, config.schedule.final_fraction) == ("cosine", 3, 0.1)
    assert config.deepspeed.config == {
        "train_micro_batch_size_per_gpu": 4,
        "steps_per_print": 10,
        "fp16": {"loss_scale": 0, "initial_scale_power": 16},
        "zero_optimization": {"overlap_comm": True},
        "activation_checkpointing": {"partition_activations": True},
    }


def test_what_deepspeed_gets() -> None:
    given = resolved(GUIDE).deepspeed.config
    assert isinstance(given, dict)
    assert zero_json.for_deepspeed(given, 1, True, 0.5, (4, 2)) == {
        "steps_per_print": 10,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"overlap_comm": True, "stage": 1, "offload_optimizer": {"device": "cpu"}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def test_a_file_is_kept_by_its_content(tmp_path: Path) -> None:
    """Translated once: what is stored is resolved to itself, also when a resumed run changes what it may."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(GUIDE))
    config = resolved(str(path))
    assert config == resolved(GUIDE)
    assert settings.resolve(TOY, "tiny", configuration.dump(config)) == config
    longer = settings.resolve(TOY, "tiny", configuration.dump(config), {"optim": {"lr": 1e-4}})
    configuration.check_resume(config, longer)
    with pytest.raises(ConfigError, match=r"ds2\.json: cannot be read"):
        resolved(str(tmp_path / "ds2.json"))


def test_other_divisions_are_no_other_run() -> None:
    changed = toy_config({"deepspeed": {"zero_stage": 3, "enabled": True, "config": {"wall_clock_breakdown": True}}})
    configuration.check_resume(toy_config(), changed)
    with pytest.raises(ConfigError, match=r"optim\.eps"):
        configuration.check_resume(toy_config(), toy_config({"optim": {"eps": 1e-6}}))


@pytest.mark.parametrize(
    ("content", "mine", "problem"),
    [
        ({"gradient_clipping": 0.5}, {"train": {"grad_clip": 1.0}}, "gradient_clipping means train.grad_clip 0.5, but"),
        ({"fp16": {"enabled": True}}, {"train": {"precision": "bf16"}}, "fp16.enabled means train.precision 'fp16', b"),
        ({"zero_optimization": {"stage": 3}}, {"deepspeed": {"zero_stage": 2}}, "deepspeed.zero_stage 3, but deepspe"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, {"optim": {"lr": 0.2}}, "optim.lr 0.1, but optim.lr"),
    ],
)
def test_contradictions_name_both_values(content: dict[str, Any], mine: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(content, **mine)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("delete one of them")


def test_the_same_said_twice_is_no_contradiction() -> None:
    assert resolved({"gradient_clipping": 0.5}, train={"grad_clip": 0.5}).train.grad_clip == 0.5


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"optimizer": {"type": "Lion", "params": {}}}, "optimizer: found 'Lion'; AdamW can be translated"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "optimizer: found 'Adam'"),
        (
            {"scheduler": {"type": "OneCycle"}},
            "scheduler: found 'OneCycle'; can be translated: WarmupLR, WarmupDecayLR",
        ),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 1e-6}}}, "a warm-up begins at 0"),
        ({"gradient_cliping": 1.0}, "gradient_cliping: has no place here; did you mean 'gradient_clipping'?"),
        ({"amp": {"enabled": True}}, "amp: has no place here; allowed: "),
        ({"zero_optimization": {"stage_3_gather": True}}, "zero_optimization.stage_3_gather: has no place here"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "found 'nvme'; allowed: cpu, none"),
        ({"zero_optimization": 2}, "zero_optimization: found 2; a section is needed"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16 and fp16 are both enabled; choose one"),
        (
            {"zero_optimization": {"stage": 4}},
            "deepspeed.zero_stage: input should be less than or equal to 3 (found 4)",
        ),
    ],
)
def test_what_has_no_place_is_refused(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(content)
    assert problem in str(caught.value)


def test_the_batch_of_the_json_is_that_of_the_run() -> None:
    zero_json.batch_identity({"train_batch_size": 128, "train_micro_batch_size_per_gpu": 4}, 4, 4, 8)
    with pytest.raises(ConfigError, match=r"train_batch_size 16 is not 4 x 4 x 8 = 128 .*: delete the key or set 128$"):
        zero_json.batch_identity({"train_batch_size": 16}, 4, 4, 8)
    with pytest.raises(ConfigError, match=r"_per_gpu 2 is not the first of 4 x 4 x 8 .* or set train.batch_size=64$"):
        zero_json.batch_identity({"train_micro_batch_size_per_gpu": 2}, 4, 4, 8)


def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, given = settings.DeepSpeed(), settings.DeepSpeed(config={})
    assert not plain.used
    assert given.used
    assert not given.model_copy(update={"enabled": False}).used
    assert plain.model_copy(update={"enabled": True}).used
    assert launched.words(["--local_rank=0", "a=b"]) == ["--local_rank=0", "a=b"]
    monkeypatch.setenv("CROSS_SIZE", "1")
    assert plain.used
    assert launched.words(["--local_rank=0", "a=b", "--local-rank=1"]) == ["a=b"]


def test_what_cannot_be_divided_is_refused() -> None:
    zero_start.require(settings.DeepSpeed(zero_stage=3), "adamw8bit", "inside-task")  # it is not used
    zero_start.require(settings.DeepSpeed(zero_stage=3, enabled=True), "adamw", FRAGILE.accumulation)
    with pytest.raises(ConfigError, match="adamw8bit does not go with DeepSpeed"):
        zero_start.require(settings.DeepSpeed(enabled=True), "adamw8bit", "sum")
    with pytest.raises(ConfigError, match="zero_stage 3 does not go with this family"):
        zero_start.require(settings.DeepSpeed(zero_stage=3, enabled=True), "adamw", "inside-task")


def test_without_deepspeed_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"DeepSpeed is not installed: pip install 'sensorium\[deepspeed\]', or set"):
        zero_start.load(cpu=True)


def test_the_check_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for content, problems in (({}, 1), (None, 0)):
        this = check._Check(TOY, toy_config({"deepspeed": {"config": content}}), tmp_path, check.Report(), True)
        check._deepspeed(this)
        assert len(this.report.problems) == problems
        assert [row.item for row in this.report.rows] == ["deepspeed"] * problems
