"""Starting values of `video_retrieval` runs: the model of each preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PUBLISHED = {"loss": {"positives": "diagonal"}}

MODELS: Mapping[str, Mapping[str, Any]] = {
    # Both parts in one pass; the first is what ``sensorium train video_retrieval`` takes.
    "unified": {"kind": "unified"},
    # The training recipes of the papers; their losses take two captions of one video for negatives of each other.
    "tempme_paper": {"kind": "tempme", **_PUBLISHED},
    "stop_paper": {"kind": "stop", **_PUBLISHED},
    # Frames and words follow from the data set.
    "didemo": {"kind": "unified"},
    "activitynet": {"kind": "unified"},
    "vatex": {"kind": "unified"},
    # Full fine-tuning of both towers with a mean over frames (Luo et al. 2021, CLIP4Clip, arXiv 2104.08860).
    "clip4clip_full": {"kind": "clip_mean", "train_clip": True},
    # The values of the guide: both losses.
    "guide": {"kind": "unified", "loss": {"tempme_weight": 1.0, "stop_weight": 1.0}},
    # Seconds: what the tests of every family run.
    "tiny": {
        "kind": "unified",
        "clip": "random:tiny",
        "frames": 8,
        "words": 16,
        "groups": {"1": 2, "2": 2, "3": 2},
        "frame_merge": 1,
        "cut_cross_pct": 30,
        "cut_inside_pct": 10,
        "tome_r": 1,
        "train_clip": True,
    },
}
