"""Running the scripts of ``examples/interaction`` in tests, with a model of a hundred thousand parameters."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from script_runs import exit_code

FOLDER = Path(__file__).parents[2] / "examples" / "interaction"
BLOCKS = "vision_blocks: 1, text_blocks: 1, audio_blocks: 1, fusion_layers: 1"
SHAPE = f"{{width: 16, heads: 2, {BLOCKS}, word_width: 16, latents: 2}}"
SIZES = (
    "model.size=custom",
    f"model.shape={SHAPE}",
    "model.image_size=16",
    "model.patch=8",
    "model.max_tokens=16",
    "model.vocab=64",
    "model.mel_bands=16",
    "model.embedding=16",
    "model.num_classes=20",
    "model.text={word_vectors: none, tokenizer: learn}",
    "data.audio_crop_frames=32",
    "train.device=cpu",
    "loader.workers=0",
)
SMALL = [word for one in SIZES for word in ("--set", one)]


def module() -> ModuleType:
    """``run_training.py``, without its folder among those where modules are looked for."""
    spec = importlib.util.spec_from_file_location("interaction_run_training", FOLDER / "run_training.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run(patch: pytest.MonkeyPatch, *words: str) -> int:
    """``run_training.py`` in this process, as a command line runs it; its exit code."""
    patch.setattr(sys, "argv", ["run_training.py", *words])
    return exit_code(module().main)
