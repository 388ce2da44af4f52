"""The model in one ``.pt`` file of tensors and plain values, as the training guide names and loads it.

```
model_state_dict     tensors on the CPU, by name: of the model alone, so that ``create_model`` takes them strictly
size, embed_dim, num_classes    what ``create_model`` is called with
model                the whole model section of the configuration
vocabulary           words, lowercase, strip_accents (words.py)
mel                  mean and std of each band; seconds: what is longer is cut
labels               names of the classifier's first rows
stage, epoch, metrics           where in training, and what was measured there
format, family, checksum        1; interaction; sha256 of all that is not the weights, and of these
run                  where a run goes on from the file: what the engine needs for that, with a checksum of its own
```
It holds no optimizer, and none of the heads that only training needs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from sensorium import config as configuration
from sensorium import reading, tensor_files
from sensorium.config import Section
from sensorium.engine.contract import Loaded
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import DataConfig
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.processor import Processor, statistics
from sensorium.families.interaction.task import InteractionTask
from sensorium.families.interaction.words import Vocabulary, WordTokenizer
from sensorium.parts.encoders_base import weights_digest

FORMAT, FAMILY_NAME, WEIGHTS = 1, "interaction", "model_state_dict"


class Mel(Section):
    """Statistics of the training set's log-mel frames, and the longest sound."""

    mean: list[float]
    std: list[float]
    seconds: float = Field(gt=0)


class Values(Section):
    """All of a file but the weights and the checksum."""

    format: int
    family: str
    size: str
    embed_dim: int
    num_classes: int
    model: dict[str, Any]
    vocabulary: dict[str, Any]
    mel: Mel
    labels: list[str]
    stage: str
    epoch: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Portable:
    """A file that was read and proven. ``model`` is in evaluation mode."""

    values: Values
    model: InteractionModel
    processor: Processor


def portable_content(loaded: Loaded, *, stage: str, epoch: float, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What ``torch.save`` is to write of a trained run. Of ``metrics`` what is not finite is left out."""
    task, data = loaded.task, loaded.config.data
    assert isinstance(task, InteractionTask)
    assert isinstance(data, DataConfig)
    config, facts = task.config, loaded.facts
    values = Values(
        format=FORMAT,
        family=FAMILY_NAME,
        size=config.size,
        embed_dim=config.fused_width,
        num_classes=config.num_classes,
        model=configuration.dump(config),
        vocabulary=dict(facts["vocabulary"]),
        mel=Mel(mean=list(facts["mel_mean"]), std=list(facts["mel_std"]), seconds=data.audio_max_seconds),
        labels=list(task.labels),
        stage=stage,
        epoch=epoch,
        metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
    )
    plain = values.model_dump()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in task.model.state_dict().items()}
    return {WEIGHTS: weights, **plain, "checksum": _checksum(plain, weights_digest(task.model))}


def read_portable(path: Path) -> Portable:
    """Read a file of ``portable_content``, and prove it. Raises CheckpointError for any other; no code in it is run."""
    content = tensor_files.read(path)
    if not isinstance(content, dict) or content.get("family") != FAMILY_NAME or WEIGHTS not in content:
        raise CheckpointError(f"{path}: no model of `interaction` (it names no such family and no {WEIGHTS})")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')}; this version reads format {FORMAT}")
    weights, checksum = content.pop(WEIGHTS), content.pop("checksum", None)
    content.pop("run", None)
    if problem := reading.problem_of(content):
        raise CheckpointError(f"{path}: damaged; {problem}")
    try:
        values = Values.model_validate(content, strict=True)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CheckpointError(f"{path}: damaged at {place}: {error.errors()[0]['msg']}") from None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: damaged; {WEIGHTS} must be tensors by name")
    tensor_files.require_plain(path, weights)
    model = _model(path, values, weights)
    if _checksum(content, weights_digest(model)) != checksum:
        raise CheckpointError(f"{path}: damaged (its checksum differs)")
    tokenizer = WordTokenizer(Vocabulary.of(values.vocabulary), model.config.max_tokens)
    mean, std = statistics(values.mel.mean), statistics(values.mel.std)
    labels = tuple(values.labels)
    processor = Processor(tokenizer, model.config.image_size, mean, std, values.mel.seconds, labels)
    return Portable(values, model.eval(), processor)


def _model(path: Path, values: Values, weights: Mapping[str, Tensor]) -> InteractionModel:
    try:
        config = configuration.build(ModelConfig, values.model)
    except ConfigError as error:
        raise CheckpointError(f"{path}: damaged; model {str(error).splitlines()[-1].strip()}") from None
    sizes = [len(values.mel.mean), len(values.mel.std), len(values.labels), len(values.vocabulary.get("words", ""))]
    most = [config.mel_bands, config.mel_bands, config.num_classes, config.vocab]
    if sizes[:2] != most[:2] or any(size > limit for size, limit in zip(sizes, most, strict=True)):
        raise CheckpointError(f"{path}: damaged; its mel statistics, labels and words do not fit its model")
    with torch.device("meta"):
        model = InteractionModel(config)
    try:
        model.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: its weights do not fit its model ({reason})") from None
    return model


def _checksum(values: Mapping[str, Any], weights: str) -> str:
    return hashlib.sha256(json.dumps([values, weights], sort_keys=True).encode()).hexdigest()
