"""Weights from the files that DeepSpeed divides them into (ZeRO 3)."""

from __future__ import annotations

import importlib
import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from sensorium.engine import zero_start
from sensorium.errors import CheckpointError, ConfigError


def whole(folder: Path) -> dict[str, Tensor]:
    """fp32 weights by name, put together by DeepSpeed's own conversion, which reads pickles: of a folder that one's own
    training wrote. Raises CheckpointError, also where DeepSpeed is not installed."""
    try:
        module = zero_start.load(not torch.cuda.is_available())
    except ConfigError:
        raise CheckpointError(
            f"{folder}: weights that ZeRO 3 divided are put together by DeepSpeed: pip install 'sensorium[deepspeed]'"
        ) from None
    tool = importlib.import_module(f"{module.__name__}.utils.zero_to_fp32")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints, and shows bars
        found = tool.get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), tag=folder.name, exclude_frozen_parameters=True
        )
    return {name: tensor.clone() for name, tensor in found.items()}
