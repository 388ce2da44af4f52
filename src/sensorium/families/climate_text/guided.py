"""What the training guide of `climate_text` speaks of: the keys of its ``config.yaml``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, create_model, model_validator

from sensorium import config as configuration
from sensorium.config import Section, resumable
from sensorium.errors import ConfigError, SensoriumError
from sensorium.families.climate_text.config import FusionMode, ModelConfig
from sensorium.families.climate_text.data import DataConfig
from sensorium.families.climate_text.presets import PRESETS

PRESET = next(iter(PRESETS))  # whose model is the guide's
WARMUP, FINAL = 0.1, 0.1  # largest part of the run that is warm-up; part of the rate that is left at its end
_OURS = {  # of the model and of training, which the guide has in other sections or under other names
    "llm": "llama_model_name",
    "encoder_path": "prithvi_encoder_path",
    "freeze_encoder": "freeze_prithvi",
    "objective": "",
    "contrastive_weight": "",
    "gradient_checkpointing": "",
    "activation_checkpointing": "",
}
RUNS: Mapping[str, str] = {
    "train.micro_batches": "training.gradient_accumulation_steps",
    "train.grad_clip": "training.max_grad_norm",
    "optim.lr": "training.learning_rate",
    "optim.weight_decay": "training.weight_decay",
    "schedule.name": "training.schedule",
    "schedule.warmup_steps": "training.warmup_steps",
    "deepspeed.zero_stage": "deepspeed.zero_stage",
    "deepspeed.cpu_offload": "deepspeed.cpu_offload",
}
"""The guide's key by the engine's, for what a DeepSpeed JSON may say, too."""
_WORDS = {**{f"model.{ours}": f"model.{theirs}" for ours, theirs in _OURS.items() if theirs}, **RUNS}
_OTHERS = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, _WORDS))})(?![\w/])")


@contextmanager
def in_words_of_the_guide() -> Iterator[None]:
    """Errors name keys as ``config.yaml`` does: ``model.llm``, say, is no key there."""
    try:
        yield
    except SensoriumError as error:
        raise type(error)(_OTHERS.sub(lambda found: _WORDS[found[0]], str(error))) from error


def _without(section: type[Section], names: set[str]) -> dict[str, Any]:
    """The fields of a section but for some, to make another one of."""
    return {key: (info.annotation, info) for key, info in section.model_fields.items() if key not in names}


class _GuidesModel(Section):
    prithvi_encoder_path: str | None = Field(
        None, min_length=1, description="Weights of Prithvi WxC: the downloaded .pt, or the folder made of it."
    )
    llama_model_name: str = Field(
        "meta-llama/Meta-Llama-3-8B", min_length=1, description="Language model: a hub name or a local folder."
    )
    freeze_prithvi: bool = Field(True, description="Keep the weights of the climate encoder as they are.")
    fusion_mode: FusionMode = Field("cross_attention", description="cross_attention, concatenate or add.")
    num_fusion_layers: int = Field(4, ge=1, le=64, description="Gated blocks of cross_attention.")


ModelKeys = create_model(
    "ModelKeys", __base__=_GuidesModel, **_without(ModelConfig, {*_OURS, "fusion_mode", "num_fusion_layers"})
)
DataKeys = create_model(
    "DataKeys",
    __base__=Section,
    **_without(DataConfig, set()),
    num_workers=(int, resumable(2, "Processes that read samples; 0: none.", ge=0, le=64)),
    pin_memory=(Literal["auto"] | bool, resumable("auto", "Copy batches to a GPU from pinned memory.")),
)


class TrainingKeys(Section):
    """``training``."""

    epochs: float = resumable(10.0, "Passes over the training data.", gt=0)
    batch_size: int = Field(4, ge=1, description="Samples of each device at a time.")
    learning_rate: float = resumable(5e-5, "Peak learning rate.", gt=0, le=10)
    gradient_accumulation_steps: int = Field(4, ge=1, description="Such batches in one step.")
    warmup_steps: int = Field(100, ge=0, description="Steps in which the rate rises; at most a tenth of all.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Largest norm of a gradient; null: any.")
    objective: Literal["lm", "pooled_mse_legacy"] = Field("lm", description="See `model.objective` of a run.")
    contrastive_weight: float = Field(0.0, ge=0, le=1000, description="Of a loss between fields and texts.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="The rate after the warm-up.")
    weight_decay: float = Field(0.01, ge=0, description="Of matrices.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of every random draw.")
    output_dir: str = resumable("checkpoints/multimodal", "Where everything is written.", min_length=1)
    save_total_limit: int | None = resumable(None, "Epochs kept, the best one besides; null: all.", ge=2)
    activation_checkpointing: Literal["all", "every_2", "none"] = Field(
        "all", description="Which layers `deepspeed.gradient_checkpointing` is about."
    )
    profile_steps: tuple[int, int] | None = resumable(None, "First and last step of a trace by PyTorch's profiler.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps {list(self.profile_steps)}: expected the first and the last of some steps")
        if self.contrastive_weight and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "contrastive_weight sees the batch of a device alone; set gradient_accumulation_steps to 1, or "
                "contrastive_weight to 0"
            )
        return self


class DeepSpeedKeys(Section):
    """``deepspeed``; what is said of precision and activations holds without DeepSpeed, too."""

    enabled: Literal["auto"] | bool = resumable("auto", "auto: where its launcher or --deepspeed asks for it.")
    zero_stage: int = resumable(2, "What the processes divide.", ge=0, le=3)
    fp16: bool = Field(False, description="Compute in fp16, with a loss scaler.")
    bf16: bool | None = Field(None, description="Compute in bf16; null: where the GPU can, and fp16 is not asked for.")
    gradient_checkpointing: bool = Field(True, description="Compute activations anew in the backward pass.")
    cpu_offload: bool = resumable(False, "Keep the optimizer's state in the memory of the host.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are both true; choose one")
        return self

    def precision(self, *, gpu: bool, bf16: bool) -> tuple[str, str | None]:
        """What the device computes in, and a line where that is not what was asked for. ``bf16``: it has that."""
        if self.bf16 or (self.bf16 is None and not self.fp16):
            found = "bf16" if bf16 and (gpu or self.bf16) else "fp32"
            return found, "deepspeed.bf16: this device lacks it; fp32 instead" if self.bf16 and not bf16 else None
        if not self.fp16 or gpu:
            return ("fp16" if self.fp16 else "fp32"), None
        found = "bf16" if bf16 else "fp32"
        return found, f"deepspeed.fp16 needs a GPU; {found} instead"


class WandbKeys(Section):
    """``wandb``."""

    enabled: bool = resumable(False, "Send curves to Weights & Biases.")
    project: str = resumable("climate-text-fusion", "Its project.", min_length=1)
    entity: str | None = resumable(None, "Its user or team.", min_length=1)
    mode: Literal["online", "offline"] = resumable("online", "offline: keep them in the run folder.")


class RunKeys(Section):
    """``run``."""

    world_size: int | None = resumable(None, "Processes of the whole run; any other number is refused.", ge=1)


class GuideConfig(Section):
    """``config.yaml``; the defaults are the guide's values, where it gives any."""

    model: ModelKeys = ModelKeys()
    data: DataKeys = DataKeys()
    training: TrainingKeys = TrainingKeys()
    deepspeed: DeepSpeedKeys = DeepSpeedKeys()
    wandb: WandbKeys = WandbKeys()
    run: RunKeys = RunKeys()

    @classmethod
    def read(cls, path: Path, changes: Mapping[str, Any]) -> GuideConfig:
        """A file, and what is said besides. Raises ConfigError that lists every problem."""
        return configuration.build(cls, configuration.merge(configuration.load_file(path), changes), str(path))

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.training.output_dir)

    def given(self, key: str) -> bool:
        """Whether somebody set this key, ``section.name``."""
        section, _, name = key.partition(".")
        return name in getattr(self, section).model_fields_set

    def changed(self, changes: Mapping[str, Any], origin: str) -> GuideConfig:
        """With other values; what was not given stays not given. Raises ConfigError."""
        given = self.model_dump(mode="json", exclude_unset=True)
        return configuration.build(GuideConfig, configuration.merge(given, changes), origin)

    def with_json(self, said: Mapping[str, Any]) -> GuideConfig:
        """With what a DeepSpeed JSON says, by the engine's keys. Raises ConfigError naming both values where
        ``config.yaml`` says something else."""
        changes: dict[str, Any] = {}
        for ours, value in said.items():
            for key, wanted in _from_json(ours, value).items():
                section, _, name = key.partition(".")
                found = getattr(getattr(self, section), name)
                if self.given(key) and found != wanted:
                    raise ConfigError(f"{key} is {found!r}, but the DeepSpeed JSON says {wanted!r}; delete one of them")
                changes.setdefault(section, {})[name] = wanted
        return self.changed(changes, "DeepSpeed JSON")

    def require_world(self, world: int) -> None:
        """Raise ConfigError where another number of processes was wanted."""
        if self.run.world_size not in (None, world):
            raise ConfigError(
                f"run.world_size is {self.run.world_size}, not {world}, as were started: two nodes need a hostfile "
                "(hostfile.example), and --num_nodes and --num_gpus that fit it"
            )

    def settings(self, world: int, precision: str) -> dict[str, Any]:
        """As settings of a run on so many processes."""
        training, share = self.training, self.training.batch_size * self.training.gradient_accumulation_steps
        model, data = configuration.dump(self.model), configuration.dump(self.data)
        for ours, theirs in _OURS.items():
            if theirs:
                model[ours] = model.pop(theirs)
        model |= {name: getattr(training, name) for name in ("objective", "contrastive_weight")}
        model["gradient_checkpointing"] = self.deepspeed.gradient_checkpointing
        model["activation_checkpointing"] = training.activation_checkpointing
        workers, pinned = data.pop("num_workers"), data.pop("pin_memory")
        return {
            "seed": training.seed,
            "model": model,
            "data": data,
            "train": {
                "epochs": training.epochs,
                "batch_size": share * world,
                "micro_batches": training.gradient_accumulation_steps,
                "precision": precision,
                "grad_clip": training.max_grad_norm,
                "processes": 1,
            },
            "deepspeed": {name: getattr(self.deepspeed, name) for name in ("enabled", "zero_stage", "cpu_offload")},
            "optim": {"lr": training.learning_rate, "weight_decay": training.weight_decay},
            "schedule": {
                "name": training.schedule,
                "warmup_steps": training.warmup_steps,
                "warmup_fraction": WARMUP,
                "final_fraction": FINAL,
            },
            "loader": {"workers": workers, "pin_memory": pinned},
            "checkpoint": {"keep": max(2, training.save_total_limit or math.ceil(training.epochs))},
            "evaluate": {"batch_size": training.batch_size},
            "track": {
                "wandb": self.wandb.mode if self.wandb.enabled else "off",
                "wandb_project": self.wandb.project,
                "wandb_entity": self.wandb.entity,
            },
        }


def _from_json(ours: str, value: Any) -> dict[str, Any]:
    """The guide's keys that a key of the engine stands for."""
    if ours == "train.precision":
        return {"deepspeed.fp16": value == "fp16", **({"deepspeed.bf16": True} if value == "bf16" else {})}
    return {RUNS[ours]: value} if ours in RUNS else {}
