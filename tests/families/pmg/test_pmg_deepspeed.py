"""Under DeepSpeed, which divides what learns and, in stage 3, the frozen models besides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_group import Nursery
from test_deepspeed import QUIET, assert_close, finish, nursery, pytestmark, start, zero
from test_resume import assert_equal_runs, cut

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
    config = {**RUN, "model": model}
    divided = {**config, **zero(stage)}
    one = start(nursery, tmp_path / "one", config, "pmg", world=1)
    finish(one, start(nursery, tmp_path / "two", divided, "pmg"))
    assert_close(tmp_path / "two", tmp_path / "one", 8)
    cut(tmp_path / "two", tmp_path / "part", 4)
    finish(start(nursery, tmp_path / "part", divided, "pmg"))
    assert_equal_runs(tmp_path / "two", tmp_path / "part")
