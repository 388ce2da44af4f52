"""The three stages: what trains, how fast, and what the last one wants predicted.

The targets of the last stage are the embeddings of the model as it was at the end of the stage before, of every
training sample, encoded once into the feature cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.data import features
from sensorium.data.items import Modality
from sensorium.engine.contract import Begin, Stage
from sensorium.engine.settings import RunConfig
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import NAMES, RESIZE, DataConfig, Media, Stores, TrainSource, collate, middle
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.sources import ALIGN, FULL, UNIMODAL, contents_of, has_teachers, pooled_store
from sensorium.families.interaction.task import InteractionTask, embed
from sensorium.parts.encoders_base import SAMPLE_RATE, Encoded, computing, fixed_batches, freeze, weights_digest
from sensorium.parts.mel import log_mel

TOP_BLOCKS = 2  # of the image and the sound tower, trained while they are aligned
_TOWERS = ("vision", "text", "audio")
_ROWS = 32  # of one pass while targets are encoded


def stages(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run; a share of 0 leaves one out."""
    model = config.model
    assert isinstance(model, ModelConfig)
    plan, dims = model.stages, model.dims
    depths = {"vision": dims.vision_blocks, "text": dims.text_blocks, "audio": dims.audio_blocks}
    top = [
        f"model.{tower}.trunk.{part}"
        for tower in ("vision", "audio")
        for part in (*(f"blocks.{n}.*" for n in range(max(0, depths[tower] - TOP_BLOCKS), depths[tower])), "norm.*")
    ]
    text = ["model.text.trunk.*", "model.text.positions", "model.text.widen.*"][
        : 3 if dims.word_width < dims.width else 2
    ]
    heads = ["model.projections.*", "model.temperatures.*"]
    distil = ["distil.*"] if has_teachers(config) else []
    found = (
        Stage(
            UNIMODAL,
            plan.unimodal.share,
            ("model.vision.*", "model.audio.*", "pretrain.*", *distil),
            plan.unimodal.lr_scale,
        ),
        Stage(ALIGN, plan.align.share, (*text, *top, *heads, *distil), plan.align.lr_scale),
        Stage(
            FULL, plan.full.share, ("model.*", "recon.*"), plan.full.lr_scale, layer_scales(depths, plan.layer_decay)
        ),
    )
    total = sum(stage.share for stage in found)
    return tuple(Stage(s.name, s.share / total, s.trainable, s.lr_scale, s.lr_scales) for s in found if s.share)


def layer_scales(depths: Mapping[str, int], decay: float) -> dict[str, float]:
    """Rates by parameter: ``decay`` for each block between it and the top of its tower (Clark et al. 2020, ELECTRA)."""
    scales: dict[str, float] = {}
    for tower in _TOWERS:
        scales[f"model.{tower}.trunk.norm.*"] = 1.0
        for number in range(depths[tower]):
            scales[f"model.{tower}.trunk.blocks.{number}.*"] = decay ** (depths[tower] - 1 - number)
        scales[f"model.{tower}.*"] = decay ** depths[tower]
    return scales


def begin_stage(task: nn.Module, begin: Begin) -> None:
    """Tell the task its objective, and give the last stage its targets."""
    assert isinstance(task, InteractionTask)
    task.stage = begin.stage.name
    if begin.shared is None or begin.stage.name != FULL or not task.config.weights.recon:
        return
    assert isinstance(begin.shared, TrainSource)
    model = InteractionModel(task.config)
    weights = {name.removeprefix("model."): tensor for name, tensor in begin.weights().items()}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    begin.shared.targets, task.target_means = _targets(begin, model, begin.shared)


class TowerEncoder:
    """A tower as the feature cache wants it: unit vectors ``[256]`` of middle squares, whole recordings and texts."""

    has_vector = True
    width = 1  # of tokens, of which there are none
    batch_size = _ROWS

    def __init__(self, modality: Modality, model: InteractionModel, media: Media, begin: Begin) -> None:
        data = begin.config.data
        assert isinstance(data, DataConfig)
        self.modality, self.media, self.device = modality, media, begin.host.device
        self.model = freeze(model, self.device)
        self.name = f"{modality} tower of `interaction`"
        self.pooled_width = model.config.embedding
        self.max_seconds: float | None = data.audio_max_seconds
        words = hashlib.sha256(json.dumps(media.tokenizer.vocabulary.values()).encode()).hexdigest()
        shown: dict[Modality, list[Any]] = {
            "text": [words, media.tokenizer.max_tokens],
            "image": [media.side, RESIZE],
            "audio": [self.max_seconds, media.mean.tolist(), media.std.tolist()],
        }
        self.identity: Mapping[str, Any] = {
            "modality": modality,
            "class": "interaction tower",
            "weights": weights_digest(model),
            "shown": shown[modality],
            "width": self.width,
            "pooled_width": self.pooled_width,
            "has_vector": True,
        }

    def prepare(self, sample: Any) -> np.ndarray:
        """Tokens ``[L]``, pixels ``[3, S, S]`` or standardised frames ``[T, bands]``."""
        if self.modality == "text":
            return np.asarray(self.media.tokenizer.encode(sample)[0])
        if self.modality == "image":
            return np.asarray(middle(self.media.pictures.small(sample), self.media.side), np.uint8).transpose(2, 0, 1)
        assert self.max_seconds is not None
        frames = log_mel(sample[: round(self.max_seconds * SAMPLE_RATE)], len(self.media.mean))
        standard: np.ndarray = (frames - self.media.mean) / self.media.std
        return standard

    def encode(self, prepared: Sequence[np.ndarray]) -> list[Encoded]:
        """Each pass has as many rows, and each sample a length of its own: so neighbours change nothing."""
        lengths = [self._length(one) for one in prepared]
        found: dict[int, Encoded] = {}
        for length in sorted(set(lengths)):
            mine = [number for number, other in enumerate(lengths) if other == length]
            for real, rows in fixed_batches(len(mine), _ROWS):
                vectors = self._pass([prepared[mine[row]] for row in rows], length)
                for place, row in enumerate(real):
                    found[mine[row]] = Encoded(np.zeros((0, 1), np.float32), vectors[place])
        return [found[number] for number in range(len(prepared))]

    def _length(self, prepared: np.ndarray) -> int:
        """Of few different ones, so that many samples are encoded together."""
        if self.modality == "image":
            return len(prepared)
        if self.modality == "text":
            return min(-(-len(prepared) // 16) * 16, self.media.tokenizer.max_tokens)
        return -(-len(prepared) // 64) * 64

    def _pass(self, arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
        name = NAMES[self.modality]
        if self.modality != "image":  # one row more says how long all are, and is not looked at
            arrays = [*arrays, np.zeros((length, *arrays[0].shape[1:]), arrays[0].dtype)]
        batch = collate([{"group": 0, name: array} for array in arrays], self.media.tokenizer.pad)
        with computing(self.device):
            moved = {key: value[:_ROWS].to(self.device) for key, value in batch.items()}
            vectors: np.ndarray = embed(self.model, moved)[self.modality].cpu().numpy()
        return vectors


def _targets(begin: Begin, model: InteractionModel, source: TrainSource) -> tuple[Stores, dict[Modality, Tensor]]:
    """The stores of the targets of each modality, and the means over the training samples."""
    stores: dict[Modality, features.FeatureSource] = {}
    means: dict[Modality, Tensor] = {}
    for modality, distinct in contents_of(source.samples).items():
        if distinct:
            encoder = TowerEncoder(modality, model, source.media, begin)
            stores[modality], mean = pooled_store(encoder, distinct, begin.config, begin.host, "targets")
            means[modality] = torch.from_numpy(mean)
    return stores, means
