"""Starting values of `pmg` runs. The first is what ``sensorium train pmg`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {  # the guide's, in TensorBoard
    "train/loss": "train_loss",
    "lr/soft": "learning_rate",
    "val/loss": "val_loss",
    "val/caption-only/error": "val_loss_caption_only",
    "val/other-user/error": "val_loss_other_user",
}
_BEST = {"best_metric": "loss", "best_mode": "min"}
_COMMON = {"checkpoint": _BEST, "track": {"tensorboard_names": _NAMES}}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Starts from the language model's own activations, learns from states of mean 0 and spread 1, weights timesteps;
    # its rate reaches somewhere.
    "recommended": {
        **_COMMON,
        "model": {"snr_gamma": 5.0, "standardise": 64},
        "train": {"epochs": 3, "batch_size": 24, "micro_batches": 4, "precision": "bf16"},
        "optim": {"lr": 1e-3, "eps": 1e-6, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 100, "warmup_fraction": 0.1},
        "evaluate": {"batch_size": 4, "pictures_every_steps": 500},
        "loader": {"workers": 2},
    },
    # The guide's values.
    "guide": {
        **_COMMON,
        "train": {"epochs": 3, "batch_size": 24, "micro_batches": 4, "precision": "bf16"},
        "optim": {"lr": 5e-6, "eps": 1e-6, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 100, "warmup_fraction": 0.1},
        "checkpoint": {**_BEST, "every_steps": 1000},
        "evaluate": {"batch_size": 1, "every_steps": 100, "pictures_every_steps": 500},
        "loader": {"workers": 4},
    },
    # Seconds: what the tests of every family run. Random models and a made-up world.
    "tiny": {
        **_COMMON,
        "model": {"llm": "random:tiny", "stable_diffusion": "random:tiny", "clip": "random:tiny"},
        "data": {"toy": {}, "image_size": 64, "grid_users": 2, "grid_steps": 2},
        "train": {"epochs": 2, "batch_size": 8},
        "optim": {"lr": 2e-2},
    },
}
