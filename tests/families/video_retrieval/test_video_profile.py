"""The comparison of the six models: what it counts, and that it measures what it says."""

from __future__ import annotations

import time

import pytest
import torch
from video_rows import build, config

from sensorium.engine.meter import Stopwatch
from sensorium.errors import ConfigError
from sensorium.families.video_retrieval.clip import random_clip
from sensorium.families.video_retrieval.config import KINDS
from sensorium.families.video_retrieval.profile import COLUMNS, encoding, name_of, profile_models, profiles, variants
from sensorium.families.video_retrieval.shape import clip_shape


def test_the_six_models_stand_side_by_side() -> None:
    table = profile_models(config("unified"), "msrvtt", Stopwatch("cpu", rows=2, warmups=1, repeats=2))
    assert table.columns == COLUMNS
    assert [row[0] for row in table.rows] == list(KINDS)
    by_name = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table.rows}
    for kind in KINDS:
        model = build(kind, begun=True)
        found = by_name[kind]
        assert found["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert found["parameters"] == sum(p.numel() for p in model.parameters())
        assert found["ms"] > 0
        assert found["videos/s"] == pytest.approx(2000 / found["ms"])
        assert found["peak GB"] is None or 0 <= float(found["peak GB"]) < 1
    assert by_name["unified"]["tokens"] == "8x17→15, 4x25→23, 2x31→29, 1x39→36"
    assert by_name["clip_mean"]["tokens"] == "8x17"
    assert by_name["tome"]["tokens"] == "8x17→9"
    assert float(by_name["stop"]["of matching"]) == 0


def test_a_variant_gets_a_row_of_its_own() -> None:
    changed = config("tempme", {"switches": {"merge": False, "protect": False}})
    assert [name_of(one) for one in variants(changed)] == [*KINDS, "tempme -merge -protect"]
    assert [name_of(one) for one in variants(config("tempme"))] == list(KINDS)


def test_models_share_the_towers_and_leave_them_alone() -> None:
    clip = random_clip(clip_shape(config("unified")))
    before = [p.clone() for p in clip.parameters()]
    found = list(profiles(config("unified"), "msrvtt", Stopwatch("cpu", warmups=0, repeats=1)))
    assert len(found) == 6
    again = random_clip(clip_shape(config("unified")))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), before, strict=True))


def test_a_stopwatch_measures_time_and_memory() -> None:
    watch = Stopwatch("cpu", warmups=0, repeats=3)
    naps = iter((0.05, 0.0, 0.03))
    assert 0.03 <= watch.seconds(lambda: time.sleep(next(naps))) < 0.05
    working = Stopwatch("cpu", warmups=0, repeats=1, clock=time.process_time)
    assert working.seconds(lambda: time.sleep(0.05)) < 0.03
    held: list[torch.Tensor] = []
    peaks = [watch.peak(lambda count=count: torch.ones(count)) for count in (1, 50_000_000)]
    if None not in peaks:
        assert peaks[1] - peaks[0] > 150e6  # 200 MB of numbers, freed again
        assert watch.peak(held.clear) < peaks[1] - 150e6
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU is visible"):
            Stopwatch("cuda")


def test_what_is_timed_is_a_pass_without_gradient() -> None:
    found = encoding(build("unified"), 2, torch.device("cpu"))()
    assert found.video.shape == (2, 64)
    assert found.video.is_inference()
