"""Starting values of `interaction` runs. The first is what ``sensorium train interaction`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BEST_BY_R_SUM = {"best_metric": "r_sum", "best_mode": "max"}
_WITHOUT_HUB = {"word_vectors": "none", "tokenizer": "learn"}
_GUIDE_SETS = {
    "coco": {"reader": "coco", "root": "data/coco"},
    "clotho": {"reader": "clotho", "root": "data/clotho"},
    "audiocaps": {"reader": "audiocaps", "root": "data/audiocaps"},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # COCO to be trained well; first guesses, not tuned.
    "coco_base": {
        "model": {"size": "base", "use_checkpoint": False},
        "data": {"sets": {"coco": _GUIDE_SETS["coco"]}},
        "train": {"epochs": 60, "batch_size": 1024, "micro_batches": 16, "precision": "bf16"},
        "optim": {"lr": 5e-4, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": 1000, "warmup_fraction": 0.05, "final_fraction": 0.01},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 4},
    },
    # COCO with frozen teachers, whose vectors the towers learn to predict; first guesses, not tuned.
    "distil_base": {
        "model": {"size": "base"},
        "data": {
            "sets": {"coco": _GUIDE_SETS["coco"]},
            "teachers": {"text": "intfloat/e5-small-v2", "image": "openai/clip-vit-base-patch32"},
        },
        "train": {"epochs": 60, "batch_size": 1024, "micro_batches": 16, "precision": "bf16"},
        "optim": {"lr": 5e-4, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": 1000, "warmup_fraction": 0.05, "final_fraction": 0.01},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 4},
    },
    # The values of the guide: 8 rows times 4 chunks meet in one loss. Its data sets are those that are there.
    "guide": {
        "model": {"size": "base", "embed_dim": 512, "use_checkpoint": True},
        "train": {"epochs": 100, "batch_size": 32, "micro_batches": 4, "precision": "fp16"},
        "optim": {"lr": 1e-4},
        "schedule": {"name": "cosine", "warmup_steps": 1000, "warmup_fraction": 0.05, "final_fraction": 0.01},
        "checkpoint": {"milestone_epochs": 10},
        "loader": {"workers": 2},
    },
    # The largest size on a GPU of 20 GB; unmeasured.
    "large_20gb": {
        "model": {"size": "large", "use_checkpoint": True},
        "data": {"sets": _GUIDE_SETS},
        "train": {"epochs": 60, "batch_size": 1024, "micro_batches": 64, "precision": "bf16"},
        "optim": {"name": "adamw8bit", "lr": 3e-4, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": 1000, "warmup_fraction": 0.05, "final_fraction": 0.01},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 4},
    },
    # Minutes on two CPU cores, on a few thousand pictures that come as packages.
    "small": {
        "model": {
            "size": "custom",
            "shape": {
                "width": 128,
                "heads": 4,
                "vision_blocks": 3,
                "text_blocks": 2,
                "audio_blocks": 2,
                "fusion_layers": 1,
                "word_width": 128,
                "latents": 8,
            },
            "image_size": 64,
            "patch": 8,
            "max_tokens": 32,
            "mel_bands": 40,
            "embedding": 128,
            "text": {"word_vectors": "package:minilm"},
        },
        "data": {"sets": {"emoji": {"reader": "emoji"}}, "audio_max_seconds": 4.0, "audio_crop_frames": 200},
        "train": {"epochs": 12, "batch_size": 64},
        "optim": {"lr": 1e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": 100, "warmup_fraction": 0.05, "final_fraction": 0.01},
        "checkpoint": _BEST_BY_R_SUM,
    },
    # Seconds: what the tests of every family run.
    "tiny": {
        "model": {
            "size": "custom",
            "shape": {
                "width": 32,
                "heads": 2,
                "vision_blocks": 1,
                "text_blocks": 1,
                "audio_blocks": 1,
                "fusion_layers": 1,
                "word_width": 32,
                "latents": 4,
            },
            "image_size": 32,
            "patch": 8,
            "max_tokens": 16,
            "vocab": 64,
            "mel_bands": 16,
            "embedding": 32,
            "num_classes": 20,
            "dropout": 0.0,
            "text": _WITHOUT_HUB,
        },
        "data": {"sets": {"shapes": {"reader": "synthetic"}}, "audio_crop_frames": 64},
        "train": {"steps": 12, "batch_size": 8},
        "optim": {"lr": 1e-3},
    },
}
