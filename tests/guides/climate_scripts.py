"""Running the scripts of ``examples/climate_text`` in tests, with small made-up weather and a random language model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import pytest
from script_runs import exit_code, modules_of

FOLDER = Path(__file__).parents[2] / "examples" / "climate_text"
MODULES = ("train_multimodal", "training", "epochs", "prepare_data", "multimodal", "multimodal.core")
MODULES = (*MODULES, "multimodal.core.climate_text_fusion")
OUT = Path("checkpoints/multimodal")
DATA = ("--output_dir", "data/training", "--num_samples", "10", "--shape", "2,8,24,24", "--val_fraction", "0.2")
EDITS = (
    ('prithvi_encoder_path: "path/to/prithvi.wxc.2300m.v1.pt"', "climate_encoder: grid_vit"),
    ("freeze_prithvi: true", "freeze_prithvi: true\n  grid_vit: {width: 16, depth: 1, heads: 2}\n  fusion_width: 16"),
    ('llama_model_name: "meta-llama/Meta-Llama-3-8B"', "llama_model_name: random:tiny\n  fusion_heads: 2"),
    ("num_fusion_layers: 4", "num_fusion_layers: 1"),
    ("num_workers: 2", "num_workers: 0\n  max_length: 256\n  evaluation: {answers: 1, max_new_tokens: 4, maps: 0}"),
    ("epochs: 10", "epochs: 2"),
    ("batch_size: 4 ", "batch_size: 2 "),
    ("gradient_accumulation_steps: 4", "gradient_accumulation_steps: 2"),
    ("learning_rate: 5e-5", "learning_rate: 3e-3"),
    ("fp16: true", "fp16: false"),
    ("gradient_checkpointing: true", "gradient_checkpointing: false"),
)
HERE = ("train.device=cpu", "track.tensorboard=false")
MINE = ("--config", "config.yaml", *HERE)


def my_config(shipped: str) -> str:
    """The guide's configuration file, edited as a user would: small parts, short, without a GPU."""
    for found, wanted in EDITS:
        assert shipped.count(found) == 1, found
        shipped = shipped.replace(found, wanted)
    return shipped


def modules(folder: Path) -> AbstractContextManager[Callable[[str], ModuleType]]:
    """The guide's modules, by their names."""
    return modules_of(folder, MODULES)


def run(*words: str, name: str = "train_multimodal", folder: Path | None = None) -> int:
    """A script of the current folder in this process, as a command line runs it; its exit code."""
    with modules(folder or Path.cwd()) as load, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *words])
        patch.setattr(sys, "path", list(sys.path))
        return exit_code(load(name).main)
