"""The configuration of a run: ``RunConfig`` and its sections. ``docs/config.md`` is generated from here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializeAsAny, create_model, model_validator

from sensorium import config as configuration
from sensorium import launched
from sensorium.config import Section, resumable
from sensorium.engine import zero_json
from sensorium.errors import ConfigError

if TYPE_CHECKING:
    from sensorium.engine.contract import Family


class Train(Section):
    epochs: float | None = resumable(
        None, "Passes over the training set (fractions allowed). Give this or `steps`.", gt=0
    )
    steps: int | None = resumable(None, "Optimizer steps in all. Give this or `epochs`.", ge=1)
    batch_size: int = Field(64, ge=1, description="Rows of one optimizer step, over all processes and micro-batches.")
    micro_batches: int = Field(
        1, ge=1, description="Parts in which a process computes its share of a step, to save memory."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of the forward pass; weights stay fp32."
    )
    tf32: bool = Field(False, description="On a GPU, multiply fp32 matrices in TF32; false: as PyTorch does by itself.")
    grad_clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null switches clipping off.")
    device: Literal["auto", "cpu", "cuda"] = resumable("auto", "Where to train.")
    warm_start: str | None = Field(
        None,
        description="Weights to begin with: a .pt file or a checkpoint folder; optimizer and position start anew.",
    )
    processes: int | None = resumable(
        None, "Processes on this machine, without a launcher; null: one a visible GPU, one on a CPU.", ge=1, le=1024
    )
    timeout_minutes: float = resumable(
        30.0, "How long processes wait for one that hangs, or works alone, before they stop.", gt=0, le=10_080
    )

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of train.epochs and train.steps")
        return self


class Group(Section):
    lr_scale: float = Field(1.0, ge=0, description="Multiplies the learning rate of this parameter group.")
    weight_decay: float | None = Field(
        None, ge=0, description="Weight decay of this group; null takes `optim.weight_decay`."
    )


class DeepSpeed(Section):
    enabled: Literal["auto"] | bool = resumable(
        "auto", "Train with DeepSpeed; auto: where its launcher started the run, or `deepspeed.config` is given."
    )
    zero_stage: int = resumable(
        2,
        "What the processes divide: 0 nothing, 1 the optimizer's state, 2 gradients besides, 3 weights besides.",
        ge=0,
        le=3,
    )
    cpu_offload: bool = resumable(False, "Keep the optimizer's state, and step, in the memory of the host.")
    config: str | dict[str, Any] | None = resumable(
        None, "A DeepSpeed JSON, or its content. What the run's own settings say, too, is translated to them."
    )

    @property
    def used(self) -> bool:
        """Whether a run of these settings, started as this process was, trains with DeepSpeed."""
        if self.enabled == "auto":
            return self.config is not None or launched.by_deepspeed()
        return self.enabled


class Optim(Section):
    name: Literal["adamw", "adamw8bit", "bertadam"] = Field(
        "adamw", description="Optimizer; adamw8bit needs bitsandbytes and a GPU, bertadam has no bias correction."
    )
    lr: float = resumable(1e-3, "Peak learning rate.", gt=0, le=10)
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of AdamW's two running means.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled weight decay (matrices only, unless a group says otherwise)."
    )
    groups: dict[str, Group] = Field(
        {}, description="Settings by parameter group, as the family names them, or by pattern: the first that matches."
    )

    @model_validator(mode="after")
    def _betas(self) -> Optim:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("optim.betas must lie in [0, 1)")
        return self


class Schedule(Section):
    name: Literal["constant", "cosine", "linear"] = Field("constant", description="Learning rate after the warm-up.")
    warmup_steps: int = Field(
        0, ge=0, description="Steps of linear warm-up: rate(step) = lr * (step + 1) / warmup_steps, in each stage."
    )
    warmup_epochs: float | None = Field(None, ge=0, description="The same in epochs, instead of `warmup_steps`.")
    warmup_fraction: float | None = Field(
        None, ge=0, le=1, description="Largest part of a stage that its warm-up may take; null: whatever it takes."
    )
    final_fraction: float = Field(
        0.0, ge=0, le=1, description="Part of the rate that is left at the last step (cosine, linear)."
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> Schedule:
        if self.warmup_epochs is not None and self.warmup_steps:
            raise ValueError("give one of schedule.warmup_steps and schedule.warmup_epochs")
        return self


class Loader(Section):
    workers: int = resumable(0, "Processes that prepare samples; 0 prepares them in the training process.", ge=0, le=64)
    prefetch: int = resumable(2, "Micro-batches that each worker prepares ahead.", ge=1, le=64)
    pin_memory: Literal["auto"] | bool = resumable("auto", "Copy batches to a GPU from pinned memory; auto: with one.")
    bad_samples: Literal["raise", "skip"] = Field(
        "raise", description="What to do with a broken sample: stop, or take another."
    )
    max_bad: int = Field(100, ge=0, description="With `skip`: stop after this many.")
    sort_window: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Sort the samples of so many steps by length, so that steps hold less padding; 0: do not.",
    )


class Checkpoint(Section):
    every_steps: int | None = resumable(
        None, "Save each so many steps; null saves at the end of each epoch only.", ge=1
    )
    every_epochs: float | None = resumable(1.0, "Save each so many epochs; null switches it off.", gt=0)
    keep: int = resumable(2, "Newest checkpoints kept; the best one is kept besides.", ge=2)
    milestone_epochs: float | None = resumable(
        None, "Save each so many epochs, and keep the newest `milestones` of these besides; null switches it off.", gt=0
    )
    milestone_steps: int | None = resumable(None, "The same in steps.", ge=1)
    milestones: int | None = resumable(None, "Milestones kept; null: as many as `keep`.", ge=1)
    best_metric: str = Field("loss", description="Validation metric that chooses the best checkpoint.")
    best_mode: Literal["min", "max"] = Field("min", description="Whether less or more of `best_metric` is better.")

    def most_milestones(self, steps: int) -> int:
        """How many milestones a run of so many steps keeps at most."""
        if self.milestone_epochs is None and self.milestone_steps is None:
            return 0
        most = self.milestones or self.keep
        return most if self.milestone_steps is None else min(most, steps // self.milestone_steps)

    @model_validator(mode="after")
    def _one_milestone(self) -> Checkpoint:
        if self.milestone_epochs is not None and self.milestone_steps is not None:
            raise ValueError("give one of checkpoint.milestone_epochs and checkpoint.milestone_steps")
        return self


class Evaluate(Section):
    every_epochs: float | None = resumable(
        1.0, "Evaluate on the validation split each so many epochs; null switches it off.", gt=0
    )
    every_steps: int | None = resumable(None, "Evaluate each so many steps besides.", ge=1)
    pictures_every_steps: int | None = resumable(
        None, "Draw pictures of validation samples each so many steps, where the family does; null: never.", ge=1
    )
    batch_size: int = Field(128, ge=1, description="Rows of an evaluation batch; contrastive losses depend on it.")
    test: bool = resumable(True, "After training, evaluate the best checkpoint on the test split, once.")


class Track(Section):
    log_every: int = resumable(10, "Steps between two lines or refreshes on the console.", ge=1)
    tensorboard: bool = resumable(True, "Write TensorBoard files into the run folder.")
    tensorboard_dir: str | None = resumable(None, "Folder of the TensorBoard files; null: in the run folder.")
    pictures_dir: str | None = resumable(
        None, "Folder of what is drawn while training; null: `samples` in the run folder.", min_length=1
    )
    tensorboard_names: dict[str, str] = resumable(
        {}, "Other names of curves in TensorBoard, by their own: `{train/grad_norm: grad_norm}`."
    )
    wandb: Literal["off", "offline", "online"] = resumable("off", "Weights & Biases; needs the extra `wandb`.")
    wandb_project: str = resumable("sensorium", "Project name at Weights & Biases.")
    wandb_entity: str | None = resumable(None, "User or team at Weights & Biases; null: who is logged in.")


class Guard(Section):
    max_skipped: int = Field(5, ge=1, description="Stop after so many non-finite steps in a row.")


class RunConfig(Section):
    """The whole run: serialisable, hashable by `digest`, strict. ``for_family`` fills in `model` and `data`."""

    family: str = Field(description="Family of the model: a folder in sensorium/families.")
    preset: str = Field(description="Preset that the values started from.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw.")
    model: SerializeAsAny[Section] = Field(description="The family's model.")
    data: SerializeAsAny[Section] = Field(description="The family's data.")
    train: Train = Train(epochs=1)
    deepspeed: DeepSpeed = DeepSpeed()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    loader: Loader = Loader()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    track: Track = Track()
    guard: Guard = Guard()


def config_class(family: Family) -> type[RunConfig]:
    """``RunConfig`` with the family's own ``model`` and ``data`` sections."""
    return _class_of(family.model, family.data)


@cache  # two configurations can only be equal if their classes are the same one
def _class_of(model: type[Section], data: type[Section]) -> type[RunConfig]:
    sections: dict[str, Any] = {"model": (model, model()), "data": (data, data())}
    return create_model("RunConfig", __base__=RunConfig, **sections)


_LENGTHS = ("epochs", "steps")


def resolve(family: Family, preset: str, *layers: Mapping[str, Any], origin: str = "configuration") -> RunConfig:
    """Precedence: preset < layers in their order. Raises ConfigError with all problems at once."""
    if not isinstance(preset, str) or preset not in family.presets:
        raise ConfigError(f"family {family.name!r} has no preset {preset!r}; it has: {', '.join(family.presets)}")
    other = next((str(layer["family"]) for layer in layers if layer.get("family", family.name) != family.name), None)
    if other is not None:
        raise ConfigError(f"{origin}: made for family {other!r}, not {family.name!r}")
    content = configuration.merge(family.presets[preset], *layers, {"family": family.name, "preset": preset})
    trains = [layer["train"] for layer in layers if isinstance(layer.get("train"), Mapping)]
    lengths = [given for train in trains if (given := {k for k in _LENGTHS if train.get(k) is not None})]
    if lengths and isinstance(content["train"], Mapping):  # a length given by the user replaces the preset's
        content["train"] = {k: v for k, v in content["train"].items() if k not in _LENGTHS or k in lengths[-1]}
    return configuration.build(config_class(family), _with_deepspeed(content, layers), origin)


def _with_deepspeed(content: dict[str, Any], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``content`` with its DeepSpeed JSON read and translated: over the preset, equal to what the user says himself."""
    section = content.get("deepspeed")
    found = section.get("config") if isinstance(section, Mapping) else None
    if isinstance(found, str):
        found = configuration.load_file(Path(found).expanduser())
    if not isinstance(found, Mapping):
        return content
    said, rest = zero_json.translate(found)
    zero_json.require_same(said, configuration.leaves(configuration.merge(*layers)))
    content = configuration.merge(content, zero_json.as_layer(said))
    content["deepspeed"]["config"] = rest
    return content


def preset_groups(family: Family, preset: str) -> Collection[str]:
    """The parameter groups that a preset speaks of."""
    found: Collection[str] = family.presets.get(preset, {}).get("optim", {}).get("groups", {})
    return found
