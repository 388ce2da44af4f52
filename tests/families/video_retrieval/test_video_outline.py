"""What is said, and what is refused, before the first video is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sensorium.engine import settings
from sensorium.engine.contract import Host
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval import FAMILY
from sensorium.families.video_retrieval.outline import outline

BIG = {"model": {"clip": "random:b32"}}


def said(preset: str, changes: Mapping[str, Any]) -> list[str]:
    return outline(settings.resolve(FAMILY, preset, changes))


def test_tokens_and_cost_of_every_stage() -> None:
    tempme, unified = (
        "12 frames, clips x tokens 12x50→34, 6x48→44, 3x62→56, 1x118→107, 1x107→97; 34.7 GMACs a video",
        "12 frames, clips x tokens 12x50→34, 6x52→48, 3x66→60, 1x126→115, 1x115→105; 35.19 GMACs a video",
    )
    assert said("unified", BIG) == [f"Stage joint of unified: {unified}"]
    assert said("unified", {"model": {**BIG["model"], "mode": "sequential"}}) == [
        f"Stage tempme of unified: {tempme}",
        f"Stage stop of unified: {unified}",
    ]
    only = {"model": {**BIG["model"], "mode": "tempme_only"}}
    assert said("unified", only) == [f"Stage tempme_only of unified: {tempme}"]


@pytest.mark.parametrize(
    ("loss", "rows", "parts", "meeting"),
    [("effective", 128, 4, None), ("micro", 128, 4, 32), ("effective", 63, 3, 63), ("effective", 64, 1, None)],
)
def test_few_negatives_are_said(loss: str, rows: int, parts: int, meeting: int | None) -> None:
    train = {"batch_size": rows, "micro_batches": parts}
    lines = said("unified", {"model": {**BIG["model"], "loss": {"negatives": loss}}, "train": train})[1:]
    told = f"Few negatives: {meeting} videos meet in one loss of training; in published recipes 128 do"
    assert lines == ([] if meeting is None else [told])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"frames": 13}, "their product is 8, but a video has 13 frames"),
        ({"frame_merge": 9}, "block 0: 9 of 16 patches would be merged"),
        ({"kind": "tempme", "mode": "stop_only"}, "trains stop, which model.kind tempme lacks"),
        ({"kind": "clip_mean", "train_clip": False}, "has nothing to train"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_the_data_are_read(model: dict[str, Any], reason: str) -> None:
    """Frames of a large set take hours; here there is not even a folder."""
    data = {"format": "auto", "root": "nowhere"}
    with pytest.raises(ConfigError, match=reason):
        FAMILY.sources(settings.resolve(FAMILY, "tiny", {"model": model, "data": data}), Host())
    with pytest.raises(DataError, match="nowhere: no such folder"):
        FAMILY.sources(settings.resolve(FAMILY, "tiny", {"data": data}), Host())


def test_check_and_training_begin_with_it(tmp_path: Path) -> None:
    lines: list[str] = []
    data = {"format": "moving", "cache": str(tmp_path)}
    FAMILY.sources(settings.resolve(FAMILY, "tiny", {"data": data}), Host(say=lines.append))
    assert lines[:2] == [
        "Stage joint of unified: 8 frames, clips x tokens 8x17→16, 4x27→25, 2x34→31, 1x42→39; 0.02008 GMACs a video",
        "Few negatives: 8 videos meet in one loss of training; in published recipes 128 do",
    ]
