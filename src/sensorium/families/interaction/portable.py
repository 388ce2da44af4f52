"""The trained model in the guide's ``.pt`` file: ``model_state_dict`` and plain values, for whoever loads it.

What the engine writes into such a file (engine/portable.py) comes with it: configuration, facts, position, checksums.
The heads that only training needs do not: it fits ``create_model(size)`` strictly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorium import config as configuration
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import DataConfig
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.processor import Processor, statistics
from sensorium.families.interaction.words import Vocabulary, WordTokenizer

PREFIX = "model."  # of the names of these weights in a run


def values(config: RunConfig, facts: Mapping[str, Any], stage: str, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What stands in the file beside the weights and what the engine writes: plain values. ``metrics``: of the
    validation, empty where there was none; what is not finite is left out."""
    model = config.model
    assert isinstance(model, ModelConfig)
    return {
        "size": model.size,
        "embed_dim": model.fused_width,
        "num_classes": model.num_classes,
        "vocabulary": facts["vocabulary"],
        "mel": {"mean": facts["mel_mean"], "std": facts["mel_std"]},
        "labels": list(facts["labels"]),
        "stage": stage,
        "metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
    }


def model_of(
    config: Mapping[str, Any], facts: Mapping[str, Any], weights: Mapping[str, Tensor], origin: str
) -> tuple[InteractionModel, Processor]:
    """The model of a run's configuration, facts and weights, on the CPU and in evaluation mode, and what makes its
    inputs of files and texts. ``origin``: for messages. Raises CheckpointError when they do not fit each other."""
    try:
        model_config = configuration.build(ModelConfig, config.get("model", {}))
        data = configuration.build(DataConfig, config.get("data", {}))
        tokenizer = WordTokenizer(Vocabulary.of(facts["vocabulary"]), model_config.max_tokens)
        mean, std = statistics(facts["mel_mean"]), statistics(facts["mel_std"])
        labels = tuple(str(label) for label in facts["labels"])
    except (ConfigError, DataError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{origin}: describes no model of `interaction` ({error})") from None
    with torch.device("meta"):
        model = InteractionModel(model_config)
    mine = {n.removeprefix(PREFIX): tensor for n, tensor in weights.items() if n.startswith(PREFIX)}
    try:
        model.load_state_dict(mine, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{origin}: its weights do not fit its model ({reason})") from None
    return model.eval(), Processor(tokenizer, model_config.image_size, mean, std, data.audio_max_seconds, labels)
