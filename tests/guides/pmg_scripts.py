"""Running the scripts of ``examples/pmg`` in tests, with small random models and a made-up world."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import exit_code, modules_of

from sensorium.families.pmg.config import ToyConfig
from sensorium.families.pmg.model import PMGAdapter
from sensorium.families.pmg.tiny import CLIP, DIFFUSION, LLM, tiny_folder
from sensorium.families.pmg.toy import write_toy
from sensorium.files import make_folder

FOLDER = Path(__file__).parents[2] / "examples" / "pmg"
MODULES = ("train", "pmg_training", "adapter_folders", "guide_keys")
WORLD = ToyConfig(train_users=4, held_users=2, samples=2)  # 8 samples to train on, 4 to validate, 4 to test
EDITS = (
    ("learning_rate: 5.0e-6", "learning_rate: 1.0e-2"),
    ("train_batch_size: 6 ", "train_batch_size: 2 "),
    ("gradient_accumulation_steps: 4", "gradient_accumulation_steps: 2"),  # 2 steps an epoch
    ("save_steps: 1000", "save_steps: 1\n  ema_decay: 0.5"),
    ("validation_image_steps: 500", "validation_image_steps: 4\n  validation_image_users: 1"),
    ("logging_steps: 10", "logging_steps: 1\n  validation_image_denoising_steps: 2"),
    ("dataloader_num_workers: 4", "dataloader_num_workers: 0"),
    ("mixed_precision: bf16", "mixed_precision: fp32"),
    ("image_size: 512", "image_size: 64\n  negative: {weight: 0.5, kind: user}"),
)
HERE = ("--device", "cpu")
MINE = ("--config", "configs/my_experiment.yaml", *HERE)


def make(folder: Path) -> None:
    """A copy of the guide's folder with prepared data, small models, and ``my_experiment.yaml`` for these."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    processed = folder / "datasets" / "FLICKR" / "processed_dataset"
    make_folder(processed)
    write_toy(processed, WORLD)
    models = (("meta-llama/Llama-2-7b-chat-hf", LLM), ("runwayml/stable-diffusion-v1-5", DIFFUSION))
    for _, kind in models:
        shutil.copytree(tiny_folder(kind), folder / "models" / kind)
    edits = (*EDITS, *((name, f"./models/{kind}") for name, kind in models))
    text = (folder / "configs" / "flickr_train.yaml").read_text()
    for found, wanted in edits:
        assert text.count(found) == 1, found
        text = text.replace(found, wanted)
    (folder / "configs" / "my_experiment.yaml").write_text(text)


def make_trained(folder: Path, samples: slice) -> None:
    """The same with an adapter where training leaves it, the guide's own configuration for these models with a CLIP,
    and some samples of the test file."""
    make(folder)
    text = (folder / "configs" / "my_experiment.yaml").read_text()
    text = text.replace("./checkpoints/clip-vit-base-patch32", str(tiny_folder(CLIP)))
    (folder / "configs" / "flickr_train.yaml").write_text(text)
    test = folder / "datasets" / "FLICKR" / "processed_dataset" / "test.json"
    test.write_text(json.dumps(json.loads(test.read_text())[samples]))
    drawn = torch.Generator().manual_seed(0)
    published = {
        "trainable_prompt": torch.randn(1, 2, 32, generator=drawn),
        "prefix_encoder.embedding.weight": torch.randn(2, 64, generator=drawn),
        "mapping_layer.weight": torch.randn(32, 32, generator=drawn),
        "mapping_layer.bias": torch.zeros(32),
    }
    torch.save(published, folder.parent / "soft.pth")
    bases = {name: str(folder / "models" / name) for name in ("llm", "stable_diffusion")} | {"clip": "random:tiny"}
    adapter = PMGAdapter.from_upstream(folder.parent / "soft.pth", bases, {"image_size": 64}, "fp32")
    adapter.save_pretrained(folder / "outputs" / "flickr" / "final_model")


def modules(folder: Path = FOLDER) -> AbstractContextManager[Callable[[str], ModuleType]]:
    """The scripts' modules, by their names."""
    return modules_of(folder / "scripts", MODULES)


def run(*words: str, folder: Path = FOLDER) -> int:
    """``scripts/train.py`` in this process, as a command line in the current folder runs it; its exit code."""
    with modules(folder) as load, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scripts/train.py", *words])
        patch.setattr(sys, "path", list(sys.path))
        return exit_code(load("train").main)
