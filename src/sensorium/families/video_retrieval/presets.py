"""Starting values of `video_retrieval` runs. The first is what ``sensorium train video_retrieval`` takes.

Rates: ``optim.lr`` is that of TempMe's parts, the group ``stop*`` that of STOP's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium import config as configuration

_BEST_BY_R_SUM = {"best_metric": "r_sum", "best_mode": "max"}
_MSRVTT = {"datatype": "msrvtt", "root": "data/msrvtt"}

# 128 videos meet in one loss, on one GPU or on several; GradCache holds 32 of them at a time.
_UNIFIED: Mapping[str, Any] = {
    "data": _MSRVTT,
    "train": {"epochs": 5, "batch_size": 128, "micro_batches": 4, "precision": "bf16"},
    "optim": {
        "lr": 6e-4,
        "groups": {"stop*": {"lr_scale": 1e-3 / 6e-4}},
        "betas": [0.9, 0.98],
        "eps": 1e-6,
        "weight_decay": 0.2,
    },
    "schedule": {"name": "cosine", "warmup_epochs": 0.5},
    "checkpoint": _BEST_BY_R_SUM,
    "loader": {"workers": 4},
}


def _like_unified(*changes: Mapping[str, Any]) -> dict[str, Any]:
    return configuration.merge(_UNIFIED, *changes)


_LONG = {"train": {"epochs": 10}, "schedule": {"warmup_epochs": 1.0}}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "unified": _UNIFIED,
    "didemo": _like_unified({"data": {"datatype": "didemo", "root": "data/didemo"}}),
    "activitynet": _like_unified(_LONG, {"data": {"datatype": "activitynet", "root": "data/activitynet"}}),
    "vatex": _like_unified(_LONG, {"data": {"datatype": "vatex", "root": "data/vatex"}}),
    # As published, as far as it is known.
    "tempme_paper": {
        "model": {"kind": "tempme", "loss": {"positives": "diagonal"}},
        "data": {**_MSRVTT, "sampling": "fps", "augment": "randaugment"},
        "train": {"epochs": 5, "batch_size": 128, "micro_batches": 4, "precision": "fp32"},
        "optim": {"lr": 6e-4, "groups": {"*": {"weight_decay": 0.2}}, "betas": [0.9, 0.999], "eps": 1e-6},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 4},
    },
    "stop_paper": {
        "model": {"kind": "stop", "loss": {"positives": "diagonal"}},
        "data": _MSRVTT,
        "train": {"epochs": 5, "batch_size": 128, "micro_batches": 4, "precision": "bf16"},
        "optim": {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.2},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 4},
    },
    # All of CLIP is trained, nothing is added to it (Luo et al. 2021, CLIP4Clip, arXiv 2104.08860: its mean pooling).
    "clip4clip_full": {
        "model": {"kind": "clip_mean", "train_clip": True, "loss": {"positives": "diagonal"}},
        "data": _MSRVTT,
        "train": {"epochs": 5, "batch_size": 128, "micro_batches": 4, "precision": "bf16"},
        "optim": {"name": "bertadam", "lr": 1e-7, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.2},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "checkpoint": _BEST_BY_R_SUM,
        "loader": {"workers": 4},
    },
    # The values of the guide: 8 videos in one loss, both losses, 20 epochs.
    "guide": {
        "model": {"loss": {"tempme_weight": 1.0, "stop_weight": 1.0}},
        "data": {"datatype": "msrvtt"},
        "train": {"epochs": 20, "batch_size": 8},
        "optim": {
            "lr": 1e-4,
            "groups": {"tempme*": {}, "stop*": {"lr_scale": 0.1}, "clip*": {"lr_scale": 1e-3}, "own*": {}},
            "eps": 1e-6,
        },
        "schedule": {"name": "cosine", "warmup_epochs": 2.0},
        "checkpoint": {**_BEST_BY_R_SUM, "milestone_epochs": 2},
        "loader": {"workers": 4},
    },
    # Seconds: what the tests of every family run. Shapes that move, a random CLIP that is trained, too.
    "tiny": {
        "model": {
            "clip": "random:tiny",
            "train_clip": True,
            "frames": 8,
            "words": 40,  # bytes
            "groups": {"1": 2, "2": 2, "3": 2},
            "frame_merge": 1,
            "cut_cross_pct": 30,
            "cut_inside_pct": 10,
            "tome_r": 1,
            "width": 16,
        },
        "data": {"format": "moving"},
        "train": {"epochs": 4, "batch_size": 8},
        "optim": {"lr": 3e-3, "groups": {"clip*": {"lr_scale": 1 / 3}}},
    },
}
