"""Starting values of `climate_text` runs. The first is what ``sensorium train climate_text`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEST = {"best_metric": "loss", "best_mode": "min"}
# Shut gates let no gradient through to what lies behind them, so they must open long before that is learned.
_GATES = {"gates_no_decay": {"lr_scale": 20.0}}

_GUIDE: Mapping[str, Any] = {
    "train": {"epochs": 10, "batch_size": 16, "micro_batches": 4, "precision": "bf16"},
    "optim": {"lr": 5e-5, "weight_decay": 0.01, "groups": _GATES},
    "schedule": {"name": "cosine", "warmup_steps": 100, "warmup_fraction": 0.1, "final_fraction": 0.1},
    "checkpoint": _BEST,
    "loader": {"workers": 2},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The guide's model and values: both frozen, four blocks between them.
    "llama3_8b": _GUIDE,
    # The same over maps of the whole globe, 360 x 576 points as MERRA-2 has them without one pole: a token for each of
    # the 216 units in which the encoder attends. A grid that these do not divide is refused.
    "llama3_8b_global": {
        **_GUIDE,
        "model": {"mask_unit": [30, 32], "token_window": [15, 16], "max_climate_tokens": 216},
    },
    # A small language model that is free, and an encoder that needs no weights: an hour on two CPU cores.
    "smollm2": {
        "model": {"llm": "HuggingFaceTB/SmolLM2-135M", "climate_encoder": "grid_vit", "gradient_checkpointing": False},
        "train": {"epochs": 10, "batch_size": 16},
        "optim": {"lr": 1e-3, "weight_decay": 0.05, "groups": _GATES},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5, "final_fraction": 0.1},
        "checkpoint": _BEST,
        "loader": {"workers": 1},
    },
    # Seconds: what the tests of every family run. A random language model that reads bytes, and is trained, too.
    "tiny": {
        "model": {
            "llm": "random:tiny",
            "freeze_llm": False,
            "climate_encoder": "grid_vit",
            "grid_vit": {"width": 32, "depth": 1, "heads": 2},
            "num_fusion_layers": 1,
            "fusion_width": 32,
            "fusion_heads": 2,
            "climate_dropout": 0.3,
            "gradient_checkpointing": False,
        },
        "data": {"demo": {"num_samples": 24, "shape": [2, 8, 24, 24], "val_fraction": 0.25}, "max_length": 256},
        "train": {"epochs": 4, "batch_size": 8},
        "optim": {"lr": 3e-3, "groups": _GATES},
        "checkpoint": _BEST,
    },
}
