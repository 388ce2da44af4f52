"""The trained parts in one ``.pth`` file of tensors and plain values, as the training guide names it.

```
model_state_dict     tensors on the CPU, by name: what training may change, LoRA, positions, prompters (CLIP only with
                     model.train_clip), so that ``load_state_dict(…, strict=False)`` of the model takes them
config               the guide's configuration: ``create_unified_model(UnifiedModelConfig.from_dict(config))``
mode, stage          how and at which stage of it was trained
active_parts         parts that take part in the forward pass: ``model.active_parts = …``
model_class          name of the model's class, where it is not ours; else None
epoch, metrics       where in training, and what was measured there
format, family, checksum     1; video_retrieval; sha256 of all that is not the weights
run                  where a run goes on from the file: what the engine needs for that, with a checksum of its own, also
                     of the weights
```
It holds no optimizer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sensorium import reading, tensor_files
from sensorium.config import Section
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.video_retrieval.config import Mode, Part
from sensorium.families.video_retrieval.guided import UnifiedModelConfig, named

FORMAT, FAMILY_NAME, WEIGHTS = 1, "video_retrieval", "model_state_dict"


class Values(Section):
    """All of a file but the weights, the checksum and what the engine adds."""

    format: int = FORMAT
    family: str = FAMILY_NAME
    config: dict[str, Any]
    mode: Mode
    stage: str
    active_parts: list[Part]
    model_class: str | None
    epoch: float
    metrics: dict[str, float]


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a file says of metrics: those that are numbers, under the guide's names."""
    return {named(name): float(value) for name, value in metrics.items() if math.isfinite(value)}


def portable_content(values: Values, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``torch.save`` is to write."""
    plain = values.model_dump(mode="json")
    return {WEIGHTS: {name: tensor.cpu() for name, tensor in weights.items()}, **plain, "checksum": _checksum(plain)}


def read_values(path: Path) -> tuple[Values, UnifiedModelConfig]:
    """What a file of ``portable_content`` says of itself, and the configuration in it. The weights are left to who uses
    them. Raises CheckpointError for any other file; no code in it is run."""
    content = tensor_files.read(path)
    if not isinstance(content, dict) or content.get("family") != FAMILY_NAME or WEIGHTS not in content:
        raise CheckpointError(f"{path}: no model of {FAMILY_NAME} (it names no such family and no {WEIGHTS})")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')}; this version reads format {FORMAT}")
    checksum = content.pop("checksum", None)
    plain = {name: value for name, value in content.items() if name not in (WEIGHTS, "run")}
    if problem := reading.problem_of(plain):
        raise CheckpointError(f"{path}: damaged; {problem}")
    try:
        values = Values.model_validate(plain, strict=True)
        config = UnifiedModelConfig.from_dict(values.config)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CheckpointError(f"{path}: damaged at {place}: {error.errors()[0]['msg']}") from None
    except ConfigError as error:
        raise CheckpointError(f"{path}: damaged; config {str(error).splitlines()[-1].strip()}") from None
    if _checksum(plain) != checksum:
        raise CheckpointError(f"{path}: damaged (its checksum differs)")
    return values, config


def _checksum(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
