"""What the training guide of `video_retrieval` speaks of: the keys of its ``training_config.json``, names of metrics,
batches of five tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, create_model, model_validator
from torch import Tensor

from sensorium import config as configuration
from sensorium.config import Section, resumable
from sensorium.engine.contract import Batch, Example
from sensorium.errors import DataError
from sensorium.families.video_retrieval.config import Mode, ModelConfig
from sensorium.families.video_retrieval.data import DataConfig, EvalSource, EvaluationConfig, TrainSource
from sensorium.families.video_retrieval.evaluator import KS, SUMMED
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.files import write_file
from sensorium.metrics.retrieval import judge, products

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""``video_tensor, video_mask, input_ids, attention_mask, token_type_ids``, as ``compute_training_loss`` takes them."""

TEST_PATH = "./data/test"
_OPTIMIZERS = {"AdamW": "adamw", "BertAdam": "bertadam"}
_MEASURES = {"r_sum": "r_sum", "t2v_R1": "t2v/R@1", "v2t_R1": "v2t/R@1", "loss": "loss"}


class TrainingKeys(Section):
    """The guide's keys with its values, and from ``test_data_path`` on ours."""

    training_mode: Mode = "joint"
    tempme_lr: float = Field(1e-4, gt=0, le=10)
    stop_lr: float = Field(1e-5, gt=0, le=10)
    batch_size: int = Field(8, ge=1)
    num_epochs: float = resumable(20, "Of all stages together.", gt=0)
    warmup_epochs: float = Field(2, ge=0)
    optimizer: Literal["AdamW", "BertAdam"] = "AdamW"
    weight_decay: float = Field(0.01, ge=0)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_grad_norm: float | None = Field(1.0, gt=0)
    tempme_loss_weight: float = Field(1.0, ge=0, le=1000)
    stop_loss_weight: float = Field(1.0, ge=0, le=1000)
    datatype: Literal["msrvtt", "didemo", "activitynet", "vatex"] = "msrvtt"
    train_data_path: str = Field("./data/train", min_length=1)
    val_data_path: str = Field("./data/val", min_length=1)
    checkpoint_dir: str = resumable("./checkpoints/unified_model", "Where everything is written.", min_length=1)
    test_data_path: str = Field(TEST_PATH, min_length=1)
    amp: bool = True
    save_every_epochs: int = resumable(2, "Epochs between two checkpoint_epoch_*.pth.", ge=1)
    decay_all: bool = False
    clip_lr: float = Field(1e-7, gt=0, le=10)
    protocol: Literal["honest", "paper"] = "honest"

    @property
    def shortest_stage(self) -> float:
        """In epochs."""
        if self.training_mode != "sequential":
            return self.num_epochs
        whole = self.num_epochs >= 2 and self.num_epochs == round(self.num_epochs)
        return math.floor(self.num_epochs / 2) if whole else self.num_epochs / 2


class ContrastiveKeys(Section):
    """``negatives``: micro is plain accumulation of gradients."""

    negatives: Literal["effective", "micro"] = "effective"
    positives: Literal["multi", "diagonal"] = "multi"
    logit_scale: Literal["frozen", "learned"] = "frozen"


class EvaluationKeys(EvaluationConfig):
    """``select_by``: of the best epoch; None: r_sum, or what papers do with ``training.protocol`` paper."""

    select_by: Literal["r_sum", "t2v_R1", "v2t_R1", "loss"] | None = None


def _without(section: type[Section], names: frozenset[str]) -> dict[str, Any]:
    """The fields of a section but for some, to make another one of."""
    return {key: (info.annotation, info) for key, info in section.model_fields.items() if key not in names}


_OF_MODEL = _without(ModelConfig, frozenset({"mode", "trained", "loss"}))
_OF_DATA = _without(DataConfig, frozenset({"datatype", "train", "val", "test", "protocol", "evaluation"}))
ModelKeys = create_model("ModelKeys", __base__=Section, **_OF_MODEL)
DataKeys = create_model("DataKeys", __base__=Section, bad_videos=(Literal["raise", "skip"], "raise"), **_OF_DATA)


class UnifiedModelConfig(Section):
    """``training_config.json``; the defaults are the guide's values.

    ``data.root``: folder of a published data set as it is published, in place of the three paths of ``training``.
    """

    training: TrainingKeys = TrainingKeys()
    model: ModelKeys = ModelKeys()
    contrastive: ContrastiveKeys = ContrastiveKeys()
    data: DataKeys = DataKeys()
    evaluation: EvaluationKeys = EvaluationKeys()

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        training = self.training
        if training.warmup_epochs >= training.shortest_stage:
            raise ValueError(
                f"training.warmup_epochs {training.warmup_epochs:g} must be below the shortest stage, which has "
                f"{training.shortest_stage:g} of training.num_epochs {training.num_epochs:g}; lower the one or "
                "raise the other"
            )
        return self

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], origin: str = "configuration") -> UnifiedModelConfig:
        """Raises ConfigError that lists every problem."""
        return configuration.build(cls, content, origin)

    @classmethod
    def from_json(cls, path: str | Path) -> UnifiedModelConfig:
        """Read a file, in which comments, trailing commas and 1e-4 may stand. Raises ConfigError."""
        return cls.from_dict(configuration.load_file(Path(path)), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` reads them."""
        return configuration.dump(self)

    def to_json(self, path: str | Path) -> None:
        """Write all values as plain JSON. Raises DiskError."""
        write_file(Path(path), (json.dumps(self.to_dict(), indent=2) + "\n").encode())

    def changed(self, changes: Mapping[str, Any], origin: str) -> UnifiedModelConfig:
        """With other values. Raises ConfigError. What was not given stays not given."""
        given = self.model_dump(mode="json", exclude_unset=True)
        return self.from_dict(configuration.merge(given, changes), origin)

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.training.checkpoint_dir)

    @property
    def test_path(self) -> str | None:
        """None where it is the usual one and not there."""
        path = self.training.test_data_path
        return None if path == TEST_PATH and not Path(path).exists() else path

    def settings(self) -> dict[str, Any]:
        """As settings of a run on one process, in fp32."""
        training, data = self.training, configuration.dump(self.data)
        paths = {"train": training.train_data_path, "val": training.val_data_path, "test": self.test_path}
        select = self.evaluation.select_by or ("r_sum" if training.protocol == "honest" else "t2v_R1")
        evaluation = configuration.dump(self.evaluation)
        del evaluation["select_by"]
        bad = data.pop("bad_videos")
        parts = training.gradient_accumulation_steps
        return {
            "model": {
                **configuration.dump(self.model),
                "mode": training.training_mode,
                "loss": {
                    "tempme_weight": training.tempme_loss_weight,
                    "stop_weight": training.stop_loss_weight,
                    **configuration.dump(self.contrastive),
                },
            },
            "data": {
                **data,
                **({} if data["root"] is not None else paths),
                "datatype": training.datatype,
                "protocol": training.protocol,
                "evaluation": evaluation,
            },
            "train": {
                "epochs": training.num_epochs,
                "batch_size": training.batch_size * parts,
                "micro_batches": parts,
                "precision": "fp32",
                "grad_clip": training.max_grad_norm,
            },
            "optim": {
                "name": _OPTIMIZERS[training.optimizer],
                "lr": training.tempme_lr,
                "weight_decay": training.weight_decay,
                "groups": self._groups(),
            },
            "schedule": {"name": training.scheduler, "warmup_epochs": training.warmup_epochs},
            "loader": {"bad_samples": bad},
            "checkpoint": {
                "milestone_epochs": float(training.save_every_epochs),
                "best_metric": _MEASURES[select],
                "best_mode": "min" if select == "loss" else "max",
            },
            "track": {"tensorboard_dir": str(self.folder / "logs"), "tensorboard_names": curve_names()},
        }

    def _groups(self) -> dict[str, Any]:
        """What ``optim.groups`` of a run says."""
        training = self.training
        rates = {"tempme*": training.tempme_lr, "stop*": training.stop_lr, "clip*": training.clip_lr}
        rates["own*"] = training.tempme_lr
        decay = training.weight_decay if training.decay_all else None
        return {name: {"lr_scale": rate / training.tempme_lr, "weight_decay": decay} for name, rate in rates.items()}


def named(metric: str) -> str:
    """What the guide calls a metric: ``t2v/R@1`` is ``t2v_R1``."""
    return metric.replace("R@", "R").replace("/", "_")


def curve_names() -> dict[str, str]:
    """What the guide calls curves, by their usual names."""
    ranks = [f"{way}/{rank}" for way in ("t2v", "v2t") for rank in (*(f"R@{k}" for k in KS), "MdR", "MnR")]
    return {"train/grad_norm": "grad_norm", **{f"val/{rank}": f"val/{named(rank)}" for rank in ranks}}


@dataclass(eq=False)
class Pairs(TrainSource):
    """Every query of a part that is evaluated beside its video, of which always the same frames are seen."""

    @classmethod
    def of(cls, source: EvalSource) -> Pairs:
        return cls(source.videos, [(video, text) for text, video in source.queries], source.media)

    def example(self, index: int, seed: int) -> Example:
        del seed
        clip, text = self.pairs[index]
        group, stretch = self.clips[clip].group, self.clips[clip].stretch
        return {"groups": group, **self.media.seen(stretch, None), **self.media.said(text)}


def five(batch: Batch) -> Five:
    """A batch of pairs as the guide has it."""
    video, mask, ids, attention = (batch[name] for name in ("video", "video_mask", "input_ids", "attention_mask"))
    return video, mask, ids, attention, torch.zeros_like(ids)


@torch.no_grad()
def evaluate_pairs(model: UnifiedTempMeSTOPModel, batches: Iterable[Five]) -> dict[str, float]:
    """Ranks over all pairs of some batches: ``t2v_R1`` … in percent, ``r_sum`` of both directions.

    Rows with equal frames hold one video and rows with equal tokens one caption: each is encoded once, and a pair that
    stands there twice counts once. Raises DataError for what is no batch of five tensors, and for no pairs.
    """
    device, was_training = model.clip.temperature.log_scale.device, model.training
    videos, captions = _Seen(), _Seen()
    pairs: dict[tuple[int, int], None] = {}
    model.eval()
    for batch in batches:
        if not (isinstance(batch, tuple | list) and len(batch) == 5 and all(isinstance(one, Tensor) for one in batch)):
            raise DataError(
                "a batch is five tensors: video_tensor, video_mask, input_ids, attention_mask, token_type_ids"
            )
        video, mask, ids, attention = (part.to(device) for part in batch[:4])
        rows, new = videos.numbers(video, mask)
        if new:
            videos.vectors.append(model.encode_video(video[new], mask[new]).video.cpu().numpy())
        texts, new = captions.numbers(ids, attention)
        if new:
            captions.vectors.append(model.encode_text(ids[new], attention[new]).cpu().numpy())
        pairs |= dict.fromkeys(zip(rows, texts, strict=True))
    model.train(was_training)
    if not pairs:
        raise DataError("no batches: there is nothing to evaluate")
    video_of, caption_of = np.array(list(pairs)).T
    scores_VC = products(np.concatenate(videos.vectors), np.concatenate(captions.vectors))
    right_VC = np.zeros(scores_VC.shape, np.bool_)
    right_VC[video_of, caption_of] = True
    right_QV = video_of[:, None] == np.arange(len(scores_VC))
    results = {"t2v": judge(scores_VC.T[caption_of], right_QV, KS), "v2t": judge(scores_VC, right_VC, KS)}
    metrics = {f"{way}_R{k}": found.recall[k] for way, found in results.items() for k in KS}
    for way, found in results.items():
        metrics |= {f"{way}_MdR": found.median_rank, f"{way}_MnR": found.mean_rank}
    return {**metrics, "r_sum": sum(found.recall[k] for found in results.values() for k in SUMMED)}


class _Seen:
    """Numbers for what was not seen before, by content. ``vectors``: of what has one, in the order of the numbers."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        self.vectors: list[np.ndarray] = []

    def numbers(self, *parts: Tensor) -> tuple[list[int], list[int]]:
        """The number of each row of ``parts`` together, and the rows that are new."""
        numbers, new = [], []
        for row, content in enumerate(zip(*(part.cpu().numpy() for part in parts), strict=True)):
            key = hashlib.sha256(b"".join(one.tobytes() for one in content)).digest()
            if key not in self.known:
                self.known[key] = len(self.known)
                new.append(row)
            numbers.append(self.known[key])
        return numbers, new
