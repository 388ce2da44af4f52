"""Under DeepSpeed, which divides what learns and, in stage 3, the frozen models besides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_group import Nursery
from test_deepspeed import QUIET, assert_divided_is_one, nursery, pytestmark

__all__ = ["nursery", "pytestmark"]  # a fixture and the marks of this module

RUN: Mapping[str, Any] = {
    **QUIET,
    "train": {"steps": 8, "batch_size": 4, "micro_batches": 2, "grad_clip": 1.0},
    "checkpoint": {"every_steps": 4, "every_epochs": None},
    "evaluate": {"every_steps": 4, "every_epochs": None},
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("model", [{}, {"gradient_checkpointing": True}, {"num_prefix_prompt": 0}], ids=str)
def test_a_prefix_before_a_frozen_model(tmp_path: Path, nursery: Nursery, model: Mapping[str, Any], stage: int) -> None:
    """Weights that no module of their own is called with, validation between the steps: two processes are one, and go
    on bit for bit."""
    assert_divided_is_one(nursery, tmp_path, {**RUN, "model": model}, stage, "pmg", 8)
