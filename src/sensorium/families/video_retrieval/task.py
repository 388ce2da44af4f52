"""The trainable task of `video_retrieval`, and which of its parts train when."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sensorium.engine.contract import Batch, Begin, Output, Stage
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError
from sensorium.families.video_retrieval.config import PARTS, ModelConfig, Part, switches
from sensorium.families.video_retrieval.data import DataConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel, VideoFeatures
from sensorium.parts.chunks import Rows, in_chunks, take

_NAMES = ("video", "video_mask", "input_ids", "attention_mask")  # in a batch
_MATRICES = ("weight", "down", "up")  # leaves that are decayed: no positions, no embeddings of slots


class VideoRetrievalTask(nn.Module):
    """The losses of a batch of pairs of a video and a text. ``chunks`` above 1: GradCache (parts/chunks.py), or with
    ``loss.negatives=micro`` a loss of each chunk. ``grouped``: the model's own loss knows which rows belong together.
    """

    def __init__(self, model: UnifiedTempMeSTOPModel, chunks: int, *, grouped: bool = True) -> None:
        super().__init__()
        self.model, self.chunks, self.grouped = model, chunks, grouped

    def forward(self, batch: Batch) -> Output:
        """``video`` ``[B, T, 3, R, R]`` uint8, ``video_mask`` ``[B, T]``, ``input_ids`` and ``attention_mask``
        ``[B, L]``, ``groups`` ``[B]``: the video's number."""
        if not self.training or self.chunks == 1:
            losses = self._losses(batch)
        elif self.model.config.loss.negatives == "micro":
            losses = self._apart(batch)
        else:
            losses = self._in_chunks(batch)
        logs = {name: value.detach() for name, value in losses.items() if name != "total_loss"}
        return Output(losses["total_loss"], logs, float(len(batch["groups"])))

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = [batch[name] for name in _NAMES]
        groups = batch["groups"] if self.grouped else None
        losses: dict[str, Tensor] = self.model(*given, torch.zeros_like(batch["input_ids"]), groups)
        return losses

    def _apart(self, batch: Batch) -> dict[str, Tensor]:
        """The mean over losses of single chunks, whose rows do not meet."""

        def of_chunk(part: Rows) -> dict[str, Tensor]:
            return {name: loss.expand(len(part)) for name, loss in self._losses(take(batch, part)).items()}

        found = in_chunks(of_chunk, _rows(batch), self.chunks)
        return {name: losses.mean() for name, losses in found.items()}

    def _in_chunks(self, batch: Batch) -> dict[str, Tensor]:
        found = in_chunks(lambda part: self._represent(take(batch, part)), _rows(batch), self.chunks)
        video = VideoFeatures(found["video"], found["frames"], found.get("slots"))
        return self.model.loss_from_features(video, found["text"], batch["groups"])

    def _represent(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        video = self.model.encode_video(batch["video"], batch["video_mask"])
        text = self.model.encode_text(batch["input_ids"], batch["attention_mask"])
        found = {"video": video.video, "frames": video.frames, "text": text}
        return found if video.slots is None else {**found, "slots": video.slots}


def _rows(batch: Batch) -> Rows:
    return torch.arange(len(batch["groups"]), device=batch["groups"].device)


def sections(config: RunConfig) -> tuple[ModelConfig, DataConfig]:
    """The family's own sections of a configuration."""
    assert isinstance(config.model, ModelConfig)
    assert isinstance(config.data, DataConfig)
    return config.model, config.data


def trainable_parts(model: ModelConfig) -> tuple[Part, ...]:
    """The parts that have parameters in this model."""
    on = switches(model, PARTS)
    has = {"tempme": on.lora or on.positions, "stop": on.spatial or on.temporal}
    return tuple(part for part in PARTS if has[part])


def stages(config: RunConfig) -> tuple[Stage, ...]:
    """One stage, or with ``model.mode=sequential`` two. Raises ConfigError where nothing would train."""
    model, _ = sections(config)
    there = trainable_parts(model)
    wanted: Mapping[str, tuple[Part, ...]] = {
        "joint": there,
        "tempme_only": ("tempme",),
        "stop_only": ("stop",),
        "sequential": ("tempme", "stop"),
    }
    missing = [part for part in wanted[model.mode] if part not in there]
    if missing:
        has = f"its parts are {' and '.join(there)}" if there else "it has none that train"
        raise ConfigError(f"model.mode {model.mode} trains {missing[0]}, which model.kind {model.kind} lacks; {has}")
    if not there and not model.train_clip:
        raise ConfigError(
            f"model.kind {model.kind} has nothing to train; set model.train_clip=true to train CLIP itself, or take "
            "another kind"
        )
    if model.mode == "sequential":
        first = _first_share(config)
        shares: tuple[tuple[str, float, tuple[Part, ...]], ...] = (
            ("tempme", first, ("tempme",)),
            ("stop", 1 - first, ("stop",)),
        )
    else:
        shares = ((model.mode, 1.0, wanted[model.mode]),)
    clip = ("model.clip.*",) if model.train_clip else ()
    return tuple(Stage(name, share, (*(f"model.{part}.*" for part in parts), *clip)) for name, share, parts in shares)


def _first_share(config: RunConfig) -> float:
    """Half of the epochs; of an odd number the first stage takes the one more."""
    epochs = config.train.epochs
    return 0.5 if epochs is None or epochs < 2 or epochs != round(epochs) else math.ceil(epochs / 2) / epochs


def active_parts(model: ModelConfig, stage: str) -> frozenset[Part]:
    """The parts that take part in a stage's forward pass: those that train in it and those that were trained."""
    training: Mapping[str, tuple[Part, ...]] = {
        "joint": PARTS,
        "tempme_only": ("tempme",),
        "stop_only": ("stop",),
        "tempme": ("tempme",),  # of the two of `sequential`
        "stop": PARTS,
    }
    return frozenset({*training[stage], *model.trained})


def begin_stage(task: nn.Module, begin: Begin) -> None:
    """Switch parts on and off."""
    assert isinstance(task, VideoRetrievalTask)
    task.model.active_parts = active_parts(sections(begin.config)[0], begin.stage.name)


def group(name: str, parameter: nn.Parameter) -> str:
    """``tempme``, ``stop``, ``clip``, or ``own`` for what a class built upon the model adds, by the module that holds
    it; with ``_no_decay`` behind it for everything that is no matrix of a layer."""
    path = name.split(".")
    whose = path[1] if path[0] == "model" and path[1] in ("tempme", "stop", "clip") else "own"
    return whose if parameter.ndim >= 2 and path[-1] in _MATRICES else f"{whose}_no_decay"
