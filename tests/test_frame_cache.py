"""Kept frames: the same as decoded ones, keyed by content and rule, written by all processes; no room is said first."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
from made_videos import Make, make
from PIL import Image

from sensorium.data import frame_cache
from sensorium.data.feature_fill import FillOptions
from sensorium.data.frame_cache import CachedFrames, Form, keep
from sensorium.data.frames import DirectFrames, Look, Stretch, stacked
from sensorium.data.sampling import Seconds, segments
from sensorium.errors import DataError, DiskError

LOOK = Look(side=40, fps=3.0, most=20)


def choose(length: float) -> Seconds:
    return segments(length, 7, 3)


@pytest.fixture(scope="module")
def stretches(tmp_path_factory: pytest.TempPathFactory) -> list[Stretch]:
    folder = tmp_path_factory.mktemp("clips")
    made = [
        make(folder / "a.mp4", Make(frames=100, size=(96, 64))),
        make(folder / "b.webm", Make(times=[0, 0.1, 1.5, 1.6, 3.0], codec="libvpx-vp9", options={"cpu-used": "8"})),
        make(folder / "c.mp4", Make(frames=300, codec="mpeg4", size=(48, 160))),
        make(folder / "d.mp4", Make(frames=1, turned=90)),
    ]
    return [*map(Stretch, made), Stretch(made[0], (1.0, 2.5)), Stretch(made[2], (11.0, 40.0))]


def kept(root: Path, stretches: Sequence[Stretch], form: Form = "raw", look: Look = LOOK) -> CachedFrames:
    return keep(look, form, stretches, root, FillOptions(say=lambda line: None))[0]


def test_raw_frames_equal_decoded_ones(stretches: list[Stretch], tmp_path: Path) -> None:
    cached, direct = kept(tmp_path, stretches), DirectFrames(LOOK)
    for stretch in stretches:
        assert stretch in cached.keys
        frames = cached.read(stretch, choose)
        assert min(frames[0].size) == LOOK.side
        assert np.array_equal(stacked(frames, 40), stacked(direct.read(stretch, choose), 40))


def test_jpeg_loses_little(stretches: list[Stretch], tmp_path: Path) -> None:
    """Pictures of black and white bars: JPEG of quality 95 errs by some grey levels at their edges."""
    cached, direct = kept(tmp_path, stretches, "jpeg"), DirectFrames(LOOK)
    worst = 0.0
    for stretch in stretches:
        found, right = (stacked(reader.read(stretch, choose), 40).astype(float) for reader in (cached, direct))
        worst = max(worst, float(np.abs(found - right).max()))
    assert 0 < worst <= 16
    other = stacked(cached.read(stretches[0], lambda length: segments(length, 7, 4)), 40)  # twin: other instants
    assert np.abs(other - stacked(direct.read(stretches[0], choose), 40).astype(float)).max() > 100


def test_a_span_begins_where_it_says(stretches: list[Stretch], tmp_path: Path) -> None:
    whole, part = stretches[0], stretches[4]
    cached = kept(tmp_path, [whole, part])
    first = cached.read(part, lambda length: np.zeros(1))
    assert np.array_equal(stacked(first, 40), stacked(cached.read(whole, lambda length: np.ones(1)), 40))
    assert not np.array_equal(stacked(first, 40), stacked(cached.read(whole, lambda length: np.zeros(1)), 40))


def test_a_span_behind_the_end_is_an_error(stretches: list[Stretch], tmp_path: Path) -> None:
    late = replace(stretches[0], span=(50.0, 60.0))
    with pytest.raises(DataError, match=r"a\.mp4: 50 s is wanted, the video ends at 4\.00 s"):
        DirectFrames(LOOK).read(late, choose)
    with pytest.raises(DataError, match="50 s is wanted"):
        kept(tmp_path, [late])


def test_what_is_there_is_not_decoded_again(
    stretches: list[Stretch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, stretches)
    decoded: list[Stretch] = []
    original = frame_cache.FrameEncoder.prepare

    def prepare(self: frame_cache.FrameEncoder, stretch: Stretch) -> np.ndarray:
        decoded.append(stretch)
        return original(self, stretch)

    monkeypatch.setattr(frame_cache.FrameEncoder, "prepare", prepare)
    kept(tmp_path, stretches)
    assert decoded == []
    for look, form in ((replace(LOOK, side=24), "raw"), (replace(LOOK, fps=2.0), "raw"), (LOOK, "jpeg")):
        kept(tmp_path, stretches[:1], form, look)  # type: ignore[arg-type]
        assert decoded == stretches[:1]
        decoded.clear()
    copy = Stretch(Path(shutil.copy(stretches[0].path, tmp_path / "copy.mp4")))
    kept(tmp_path, [copy])
    assert decoded == []  # the same bytes
    make(copy.path, Make(frames=30))
    cached = kept(tmp_path, [copy])
    assert decoded == [copy]
    assert np.array_equal(stacked(cached.read(copy, choose), 40), stacked(DirectFrames(LOOK).read(copy, choose), 40))


def test_broken_videos_stop_or_are_left_out(stretches: list[Stretch], tmp_path: Path) -> None:
    broken, gone = Stretch(tmp_path / "broken.mp4"), Stretch(tmp_path / "gone.mp4")
    broken.path.write_bytes(stretches[0].path.read_bytes()[:500])
    for bad, reason in ((broken, "the video cannot be decoded"), (gone, "no such file")):
        with pytest.raises(DataError, match=f"{bad.path.name}: {reason}"):
            kept(tmp_path, [stretches[0], bad])
    options = FillOptions(policy="skip", say=lambda line: None)
    cached, problems = keep(LOOK, "raw", [broken, stretches[0], gone], tmp_path, options)
    assert list(cached.keys) == [stretches[0]]
    assert problems.keys() == {broken, gone}
    assert str(broken.path) in problems[broken]


def test_all_processes_write_a_share(stretches: list[Stretch], tmp_path: Path) -> None:
    barrier = Barrier(2)
    found: dict[int, CachedFrames] = {}
    shares: dict[int, list[tuple[int, int]]] = {0: [], 1: []}

    def meet() -> None:
        barrier.wait()

    def fill(rank: int) -> None:
        options = FillOptions(
            rank=rank,
            world_size=2,
            barrier=meet,
            say=lambda line: None,
            progress=lambda done, total: shares[rank].append((done, total)),
        )
        found[rank] = keep(LOOK, "raw", stretches, tmp_path, options)[0]

    threads = [Thread(target=fill, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [shares[rank][-1] for rank in (0, 1)] == [(3, 3), (3, 3)]
    for stretch in stretches:
        right = stacked(DirectFrames(LOOK).read(stretch, choose), 40)
        assert all(np.array_equal(stacked(found[rank].read(stretch, choose), 40), right) for rank in (0, 1))


def test_the_size_is_said_and_must_fit(
    stretches: list[Stretch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    keep(LOOK, "jpeg", stretches, tmp_path / "a", FillOptions(say=said.append))
    assert len(said) == 1
    assert said[0].startswith("the frame cache of 6 videos (about 0.00 GB) is written to ")
    written = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*.shard"))
    assert written > 0
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"the frame cache of 6 videos .* needs [0-9,]+ bytes .*, 1,000 are free"):
        keep(LOOK, "raw", stretches, tmp_path / "b", FillOptions(say=said.append))
    assert not list((tmp_path / "b").rglob("*.shard"))


def test_the_estimate_is_about_right(stretches: list[Stretch], tmp_path: Path) -> None:
    encoder = frame_cache.FrameEncoder(LOOK, "raw")
    for stretch in stretches:
        estimate = frame_cache._estimate(stretch, encoder)
        assert estimate == pytest.approx(encoder.prepare(stretch).nbytes, rel=0.1)


def test_a_damaged_shard_is_written_anew(stretches: list[Stretch], tmp_path: Path) -> None:
    kept(tmp_path, stretches[:2])
    (shard,) = tmp_path.rglob("*.shard")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 0xFF
    shard.write_bytes(data)
    said: list[str] = []
    cached, _ = keep(LOOK, "raw", stretches[:2], tmp_path, FillOptions(say=said.append))
    assert any("damaged" in line for line in said)
    for stretch in stretches[:2]:
        right = stacked(DirectFrames(LOOK).read(stretch, choose), 40)
        assert np.array_equal(stacked(cached.read(stretch, choose), 40), right)


def test_pictures_are_videos_that_stand_still(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (9, 200, 30)).save(tmp_path / "a.png")
    frames = DirectFrames(LOOK).read(Stretch(tmp_path / "a.png", still=True), choose)
    assert len(frames) == 7
    assert all(frame is frames[0] for frame in frames)
    assert stacked(frames, 40).shape == (7, 3, 40, 40)


def test_extreme_shapes_are_cut_to_their_middle() -> None:
    strip = Image.new("RGB", (4, 4000))
    strip.paste((255, 255, 255), (0, 1990, 4, 2010))
    fitted = LOOK.fit(strip)
    assert fitted.size == (40, 160)
    assert np.asarray(fitted)[70:90].min() == 255
