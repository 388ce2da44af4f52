"""The trainable task of `climate_text`: the loss of the target's tokens, given the field and the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.engine.contract import Batch, Output
from sensorium.engine.settings import RunConfig
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.data import DataConfig
from sensorium.families.climate_text.encoders import FieldFacts
from sensorium.families.climate_text.model import ClimateTextFusion

# Frozen weights are kept in the numbers that they are computed with; what trains is fp32 always.
FROZEN_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PARTS = ("encoder", "llm", "lora")
_MATRICES = ("weight", "down", "up")  # leaves that are decayed: no gates, no positions, no learned queries


class ClimateTextTask(nn.Module):
    """``forward`` is the mean loss of a target token; each row counts by its tokens."""

    def __init__(self, model: ClimateTextFusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Output:
        """A batch as ``data.py`` makes it."""
        words = self.model.config.objective == "lm"
        weight = float(batch["target_mask"][:, 1:].sum()) if words else float(len(batch["target_mask"]))
        return Output(self.compute_loss(batch), {}, weight)

    def compute_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood of the target's tokens and its end, scalar; with ``contrastive_weight`` also
        that of pairs. Objective ``pooled_mse_legacy``: the published regression."""
        if self.model.config.objective != "lm":
            return self.model.regression(batch).mean()
        said = self.model(batch)
        loss: Tensor = said.losses().mean()
        return loss if said.contrast is None else loss + self.model.config.contrastive_weight * said.contrast


def sections(config: RunConfig) -> tuple[ModelConfig, DataConfig]:
    """The family's own sections of a configuration."""
    assert isinstance(config.model, ModelConfig)
    assert isinstance(config.data, DataConfig)
    return config.model, config.data


def build(config: RunConfig, facts: Mapping[str, Any]) -> ClimateTextTask:
    """The task of a run. Raises ConfigError where weights are missing."""
    model, _ = sections(config)
    dtype = FROZEN_DTYPES[config.train.precision]
    return ClimateTextTask(ClimateTextFusion(model, FieldFacts(**facts["fields"]), dtype=dtype))


def group(name: str, parameter: nn.Parameter) -> str:
    """``encoder``, ``llm``, ``lora``, ``gates``, or ``fusion`` for what joins them; with ``_no_decay`` behind it for
    all that is no matrix of a layer."""
    path = name.split(".")
    if path[-1] == "gain":
        return "gates_no_decay"
    whose = path[1] if path[1] in _PARTS else "fusion"
    return whose if parameter.ndim >= 2 and path[-1] in _MATRICES else f"{whose}_no_decay"
