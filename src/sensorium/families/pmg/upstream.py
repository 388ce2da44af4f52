"""Published adapters: state dicts of the PyTorch code of PMG (github.com/INTREBID/PMG and PMG-Bench).

```
trainable_prompt                  [1, N, H]
prefix_encoder.embedding.weight   [P, L * 2 * K * D]     not there without a prefix
mapping_layer.weight, .bias       [d, H], [d]
prefix_tokens                     a counter, not looked at
```
Legend: N soft tokens, P prefix tokens, L layers, H width, K key/value heads, D size of a head, d as of the UNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium import families, tensor_files
from sensorium.engine import settings
from sensorium.engine.contract import Loaded
from sensorium.errors import CheckpointError
from sensorium.families.pmg import adapter_files
from sensorium.families.pmg.folders import base_digests
from sensorium.families.pmg.model import PMGAdapter, Sizes
from sensorium.families.pmg.prompts import template_of
from sensorium.families.pmg.task import FROZEN_DTYPES, open_task, sections

_SOFT, _PREFIX, _TRANSFORMED = "trainable_prompt", "prefix_encoder.embedding.weight", "prefix_encoder.trans"
_WEIGHT, _BIAS, _COUNTER = "mapping_layer.weight", "mapping_layer.bias", "prefix_tokens"
_WRAPPED = "module."  # names of a file that was written from inside DistributedDataParallel


def read_upstream(file: Path, model: Mapping[str, Any], data: Mapping[str, Any], precision: str) -> PMGAdapter:
    """See ``PMGAdapter.from_upstream``."""
    found = _tensors(file)
    counts = {"num_image_prompt": _rows(file, found, _SOFT, 1), "num_prefix_prompt": _rows(file, found, _PREFIX, 0)}
    changes = {"model": {**model, **counts}, "data": dict(data), "train": {"precision": precision}}
    config = settings.resolve(families.load("pmg"), "guide", changes)
    ours, place = sections(config)
    task = open_task(ours, FROZEN_DTYPES[precision])
    _give(file, found, task.adapter)
    facts = {
        "precision": precision,
        "template": template_of(place.name, ours.prompt_template),
        "sizes": task.adapter.sizes.plain(),
        "bases": base_digests(ours),
    }
    task.adapter.described = adapter_files.description(Loaded(file.parent, file, config, facts, task.eval(), ""))
    return task.adapter


def _tensors(file: Path) -> dict[str, Tensor]:
    content = tensor_files.read(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no tensors by name, but a {type(content).__name__}")
    tensor_files.require_plain(file, content)
    found = {name.removeprefix(_WRAPPED): value for name, value in content.items()}
    if any(name.startswith(_TRANSFORMED) for name in found):
        raise CheckpointError(f"{file}: its prefix is made by a network ({_TRANSFORMED}), which is not built here")
    known = {_SOFT, _PREFIX, _WEIGHT, _BIAS}
    wrong = sorted((known - {_PREFIX}) - found.keys()) or sorted(found.keys() - known - {_COUNTER})
    if wrong:
        raise CheckpointError(
            f"{file}: is no published adapter, see {wrong[0]!r}; it must hold {', '.join(sorted(known))} alone"
        )
    return found


def _rows(file: Path, found: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in found:
        return 0
    if found[name].ndim <= axis:
        raise CheckpointError(f"{file}: {name} has the shape {tuple(found[name].shape)}")
    return found[name].shape[axis]


def _give(file: Path, found: Mapping[str, Tensor], adapter: PMGAdapter) -> None:
    sizes = adapter.sizes
    values = {"image_prompt_NH": found[_SOFT], "mapping.weight": found[_WEIGHT], "mapping.bias": found[_BIAS]}
    wanted = {
        "image_prompt_NH": (_SOFT, (1, sizes.soft, sizes.width)),
        "mapping.weight": (_WEIGHT, (sizes.told, sizes.width)),
        "mapping.bias": (_BIAS, (sizes.told,)),
    }
    if sizes.prefix:
        values["prefix_L2KPD"] = found[_PREFIX]
        wanted["prefix_L2KPD"] = _PREFIX, (sizes.prefix, sizes.layers * 2 * sizes.heads * sizes.head_size)
    for name, (theirs, shape) in wanted.items():
        if tuple(values[name].shape) != shape:
            raise CheckpointError(
                f"{file}: {theirs} has the shape {tuple(values[name].shape)}, these base models need {shape}; give "
                "those that it was trained with (model llm and stable_diffusion)"
            )
    values["image_prompt_NH"] = values["image_prompt_NH"][0]
    if sizes.prefix:
        values["prefix_L2KPD"] = _prefix(values["prefix_L2KPD"], sizes)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.copy_(values[name])


def _prefix(embedding: Tensor, sizes: Sizes) -> Tensor:
    """``[P, L * 2 * K * D]`` as ``[L, 2, K, P, D]``."""
    apart = embedding.view(sizes.prefix, sizes.layers, 2, sizes.heads, sizes.head_size)
    return apart.permute(1, 2, 3, 0, 4)
