"""Keys of the guide's YAML files, and the settings of a run that they stand for.

    guide = GuideConfig.read(Path("configs/flickr_train.yaml"))
    guide.value("training.learning_rate")                                            # 5e-06
    guide.settings(world=1)                                                          # as docs/config.md has it

`KEYS` and `PARTS` are the whole table; every other key of `model` and `data` of docs/config.md is one of `pmg` and of
`dataset` under its own name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model

from sensorium import config as configuration
from sensorium.config import Section, resumable
from sensorium.engine.settings import RunConfig
from sensorium.errors import SensoriumError
from sensorium.families.pmg.config import GONE, DataConfig, ModelConfig
from sensorium.families.pmg.drawing import DrawConfig

PRESET, WARMUP = "guide", 0.1  # largest part of the run that is warm-up
GENERATE = "generate"  # keys that begin so are of families/pmg/drawing.py
OURS = object()  # the default is that of the setting

KEYS: Mapping[str, tuple[str, Any]] = {
    "dataset.name": ("data.name", OURS),
    "dataset.image_dir": ("data.image_dir", OURS),
    "dataset.path_prefix": ("data.path_prefix", OURS),
    "dataset.user_preferences": ("data.user_preferences", OURS),
    "dataset.limit_train": ("data.limit_train", OURS),
    "dataset.bad_samples": ("loader.bad_samples", OURS),
    "dataset.max_bad": ("loader.max_bad", OURS),
    "model.stable_diffusion": ("model.stable_diffusion", GONE),
    "model.llama": ("model.llm", OURS),
    "model.clip": ("model.clip", "./checkpoints/clip-vit-base-patch32"),
    "training.num_train_epochs": ("train.epochs", 3),
    "training.gradient_accumulation_steps": ("train.micro_batches", 4),
    "training.val_batch_size": ("evaluate.batch_size", 1),
    "training.learning_rate": ("optim.lr", 5e-6),
    "training.lr_scheduler": ("schedule.name", "linear"),
    "training.lr_warmup_steps": ("schedule.warmup_steps", 100),
    "training.adam_epsilon": ("optim.eps", 1e-6),
    "training.adam_weight_decay": ("optim.weight_decay", 0.01),
    "training.max_grad_norm": ("train.grad_clip", 1.0),
    "training.save_steps": ("checkpoint.milestone_steps", 1000),
    "training.validation_steps": ("evaluate.every_steps", 100),
    "training.validation_image_steps": ("evaluate.pictures_every_steps", 500),
    "training.validation_image_users": ("data.grid_users", OURS),
    "training.validation_image_denoising_steps": ("data.grid_steps", OURS),
    "training.logging_steps": ("track.log_every", 10),
    "training.seed": ("seed", 42),
    "training.tf32": ("train.tf32", True),
    "training.dataloader_num_workers": ("loader.workers", 4),
    "training.gradient_checkpointing": ("model.gradient_checkpointing", OURS),
    "training.snr_gamma": ("model.snr_gamma", OURS),
    "training.noise_offset": ("model.noise_offset", OURS),
    "training.ema_decay": ("model.ema_decay", OURS),
    "training.soft_dropout": ("model.soft_dropout", OURS),
    "training.style_dropout": ("model.style_dropout", OURS),
    "training.start_from": ("model.start_from", OURS),
    "pmg.image_size": ("data.image_size", OURS),
    "pmg.resize": ("data.resize", OURS),
    "inference.steps": (f"{GENERATE}.steps", 50),
    "inference.guidance": (f"{GENERATE}.guidance", OURS),
    "inference.scheduler": (f"{GENERATE}.scheduler", OURS),
    "inference.images": (f"{GENERATE}.images", OURS),
    "inference.seed": (f"{GENERATE}.seed", OURS),
    "inference.seed_rule": (f"{GENERATE}.seed_rule", OURS),
    "inference.mode": (f"{GENERATE}.mode", OURS),
    "inference.keywords": (f"{GENERATE}.keywords", OURS),
    "inference.num_keywords": (f"{GENERATE}.num_keywords", OURS),
    "inference.target_text": (f"{GENERATE}.target_text", OURS),
    "inference.weighting": (f"{GENERATE}.weighting", OURS),
    "inference.preference_weights": (f"{GENERATE}.preference_weights", OURS),
    "inference.select": (f"{GENERATE}.select", OURS),
    "inference.alpha": (f"{GENERATE}.alpha", OURS),
    "inference.batch": (f"{GENERATE}.batch", OURS),
    "inference.negative_prompt": ("data.negative_prompt", OURS),
}
"""The guide's key, the setting that it is, and the guide's value."""


def _path(text: str) -> Any:
    return Field(None, min_length=1, description=text)


PARTS: Mapping[str, tuple[Any, Any, str]] = {
    "dataset.data_dir": (str | None, _path("Of the data set; default ./datasets/NAME."), "data.train_json"),
    "dataset.processed_dir": (str | None, _path("Default DATA_DIR/processed_dataset."), "data.train_json"),
    "dataset.train_json": (str | None, _path("Default PROCESSED_DIR/train.json."), "data.train_json"),
    "dataset.val_json": (str | None, _path("Likewise val.json; null: none."), "data.val_json"),
    "dataset.test_json": (str | None, _path("Likewise, if it is there; null: none."), "data.test_json"),
    "metrics.weights_dir": (str | None, _path("Folder of the judges' downloaded weights (EVALUATION.md)."), ""),
    "training.train_batch_size": (
        int,
        Field(6, ge=1, description="Samples of each process at a time."),
        "train.batch_size",
    ),
    "training.mixed_precision": (
        Literal["bf16", "fp16", "fp32", "no"],
        Field("bf16", description="Arithmetic; `no` is fp32."),
        "train.precision",
    ),
    "training.adam_beta1": (float, Field(0.9, ge=0, lt=1, description="First decay of AdamW."), "optim.betas"),
    "training.adam_beta2": (float, Field(0.999, ge=0, lt=1, description="Second decay of AdamW."), "optim.betas"),
    "training.output_dir": (
        str | None,
        resumable(None, "Where everything is written; default ./outputs/name.", min_length=1),
        "track.tensorboard_dir",
    ),
    "training.checkpoints_total_limit": (
        int | None,
        resumable(None, "Checkpoints kept; null: all.", ge=1),
        "checkpoint.milestones",
    ),
    "training.resume_from": (str, resumable("", "As --resume_from; empty: a new run."), ""),
}
"""Keys that are no setting by themselves: type, field, and the setting that `GuideConfig.settings` makes of them."""

_NO_FILES = [name for name in ("toy", "manifest") if name in DataConfig.model_fields]  # data that are elsewhere
_ALL = 1_000_000  # checkpoints: more than any run has
_SECTIONS = ("dataset", "model", "training", "pmg", "inference", "metrics")


def _others() -> dict[str, tuple[str, Any]]:
    """Keys of the run's model and data that no other key is."""
    taken = {ours for ours, _ in KEYS.values()} | {ours for *_, ours in PARTS.values()}
    found: dict[str, tuple[str, Any]] = {}
    for section, model in (("pmg", ModelConfig), ("dataset", DataConfig)):
        ours = "model" if section == "pmg" else "data"
        names = [name for name in model.model_fields if f"{ours}.{name}" not in taken]
        found |= {f"{section}.{name}": (f"{ours}.{name}", OURS) for name in names}
    return found


SETTINGS: Mapping[str, tuple[str, Any]] = {**KEYS, **_others()}


def field_of(ours: str) -> Any:
    """The pydantic field of a setting, `section.key` of docs/config.md."""
    section, _, name = ours.rpartition(".")
    known: Mapping[str, type[Section]] = {"model": ModelConfig, "data": DataConfig, GENERATE: DrawConfig, "": RunConfig}
    if section not in known:
        return RunConfig.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
    return known[section].model_fields[name]


def _fields(section: str) -> dict[str, Any]:
    found = {}
    for key, (ours, default) in SETTINGS.items():
        of, _, name = key.partition(".")
        if of == section:
            field = copy.copy(field_of(ours))
            if default is not OURS:
                field.default = default
            found[name] = (field.annotation, field)
    own = {key.partition(".")[2]: part[:2] for key, part in PARTS.items() if key.startswith(f"{section}.")}
    return {**found, **own}


def _section(name: str) -> type[Section]:
    return create_model(f"{name.title()}Keys", __base__=Section, **_fields(name))


_MODELS: dict[str, Any] = {name: (model, model()) for name in _SECTIONS for model in (_section(name),)}
Keys: type[Section] = create_model("Keys", __base__=Section, **_MODELS)
"""What a file may hold: the sections of the guide, strict."""

_WORDS = {
    **{ours: key for key, (*_, ours) in PARTS.items() if ours},
    **{ours: key for key, (ours, _) in SETTINGS.items() if "." in ours and ours != key},
    "train.device": "--device",
    "train.warm_start": "training.start_from",
    "train.processes": "--processes",
    "train.batch_size": "training.train_batch_size x gradient_accumulation_steps x processes",
}
_OTHERS = re.compile(rf"(?<![\w.])(?:{'|'.join(sorted(map(re.escape, _WORDS), key=len, reverse=True))})(?![\w/])")


@contextmanager
def in_words_of_the_guide() -> Iterator[None]:
    """Errors name keys as the guide does: `optim.lr`, say, is no key of its files."""
    try:
        yield
    except SensoriumError as error:
        told = type(error)(_OTHERS.sub(lambda found: _WORDS[found[0]], str(error)))
        told.exit_code = error.exit_code
        raise told from error


class GuideConfig:
    """A file of the guide."""

    def __init__(self, keys: Section) -> None:
        self.keys = keys

    @classmethod
    def read(cls, path: Path, changes: Mapping[str, Any] | None = None) -> GuideConfig:
        """A file, and what is said besides. Raises ConfigError that lists every problem."""
        content = configuration.merge(configuration.load_file(path), changes or {})
        return cls(configuration.build(Keys, content, str(path)))

    def value(self, key: str) -> Any:
        """Of a key, `section.name`."""
        section, _, name = key.partition(".")
        return getattr(getattr(self.keys, section), name)

    def given(self, key: str) -> bool:
        """Whether the file says it."""
        section, _, name = key.partition(".")
        return name in getattr(self.keys, section).model_fields_set

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        given = self.value("training.output_dir")
        return Path(given or f"./outputs/{self.value('dataset.name').lower()}").expanduser()

    @property
    def data_dir(self) -> Path:
        """Of the data set."""
        return Path(self.value("dataset.data_dir") or f"./datasets/{self.value('dataset.name')}")

    @property
    def processed_dir(self) -> Path:
        """Of the processed samples."""
        return Path(self.value("dataset.processed_dir") or self.data_dir / "processed_dataset")

    def samples(self, split: str) -> str | None:
        """The file of a split; None: there is none."""
        key = f"dataset.{split}_json"
        path = self.processed_dir / f"{split}.json"
        if self.given(key) or any(self.value(f"dataset.{name}") is not None for name in _NO_FILES):
            found: str | None = self.value(key)
            return found
        return None if split == "test" and not path.expanduser().is_file() else str(path)

    def drawing(self) -> dict[str, Any]:
        """How to draw with what was trained, as families/pmg/drawing.py reads it."""
        places = {key: ours.rpartition(".") for key, (ours, _) in KEYS.items()}
        return {name: self.value(key) for key, (section, _, name) in places.items() if section == GENERATE}

    def settings(self, world: int) -> dict[str, Any]:
        """As settings of a run on so many processes."""
        training, folder = self.keys.model_dump(mode="json")["training"], self.folder
        rows, parts = training["train_batch_size"], training["gradient_accumulation_steps"]
        precision = {"no": "fp32"}.get(training["mixed_precision"], training["mixed_precision"])
        made = {
            "data": {f"{split}_json": self.samples(split) for split in ("train", "val", "test")},
            "train": {"batch_size": rows * parts * world, "precision": precision},
            "optim": {"betas": [training["adam_beta1"], training["adam_beta2"]]},
            "schedule": {"warmup_fraction": WARMUP},
            "checkpoint": {
                "every_steps": None,
                "every_epochs": None,
                "milestones": training["checkpoints_total_limit"] or _ALL,
            },
            "track": {"tensorboard_dir": str(folder / "logs"), "pictures_dir": str(folder / "samples")},
        }
        return configuration.merge(self._plain(), made)

    def _plain(self) -> dict[str, Any]:
        """The keys that are settings."""
        content = self.keys.model_dump(mode="json")
        found: dict[str, Any] = {}
        for key, (ours, _) in SETTINGS.items():
            section, _, name = key.partition(".")
            of, _, ours_name = ours.rpartition(".")
            if of != GENERATE:
                (found.setdefault(of, {}) if of else found)[ours_name] = content[section][name]
        return found
