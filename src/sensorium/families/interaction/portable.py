"""The trained model in the guide's ``.pt`` file: ``model_state_dict`` and plain values, for whoever loads it.

What the engine writes into such a file (engine/portable.py) comes with it: configuration, facts, position, checksums.
The heads that only training needs do not: it fits ``create_model(size)`` strictly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sensorium import config as configuration
from sensorium.engine.portable import read_pt
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import DataConfig
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.processor import Processor, statistics
from sensorium.families.interaction.words import Vocabulary, WordTokenizer

FAMILY_NAME = "interaction"
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


def load_model(path: str | Path) -> tuple[InteractionModel, Processor]:
    """The model of a ``.pt`` file that training wrote (``best_model.pt``), on the CPU and in evaluation mode, and what
    makes its inputs of files and texts. Nothing but the file is needed.

    Raises CheckpointError for any other file, and for one of which a byte changed; no code in it is run.
    """
    found = read_pt(Path(path))
    if found.head.family != FAMILY_NAME:
        raise CheckpointError(f"{path}: weights of family {found.head.family!r}, not {FAMILY_NAME!r}")
    try:
        config = configuration.build(ModelConfig, found.config.get("model", {}))
        data = configuration.build(DataConfig, found.config.get("data", {}))
        facts = found.facts
        tokenizer = WordTokenizer(Vocabulary.of(facts["vocabulary"]), config.max_tokens)
        mean, std = statistics(facts["mel_mean"]), statistics(facts["mel_std"])
        labels = tuple(str(label) for label in facts["labels"])
    except (ConfigError, DataError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: describes no model of `interaction` ({error})") from None
    with torch.device("meta"):
        model = InteractionModel(config)
    weights = {n.removeprefix(PREFIX): tensor for n, tensor in found.weights.items() if n.startswith(PREFIX)}
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: its weights do not fit its model ({reason})") from None
    return model.eval(), Processor(tokenizer, config.image_size, mean, std, data.audio_max_seconds, labels)
