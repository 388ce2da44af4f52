"""Frames of videos: those that are shown at given seconds, whatever the file is like, or one line that names it."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hostile import soon
from made_videos import Make, header_first, make, number_of, only_sound, wrong_index
from PIL import Image

from sensorium.data import readers
from sensorium.data.items import DataSet, Item
from sensorium.data.manage import import_dataset, verify_dataset
from sensorium.data.video import Video, load_video, opened
from sensorium.errors import DataError

UNEVEN = [0, 0.04, 0.08, 0.5, 0.54, 0.6, 1.7, 1.74, 1.78, 2.9, 2.94, 4.0, 4.04, 4.1, 5.5]  # seconds

CLIPS: dict[str, tuple[str, Make]] = {
    "h264": ("a.mp4", Make(frames=120, group=250, options={"sc_threshold": "0"})),
    "many groups": ("b.mp4", Make(frames=200, group=15, options={"sc_threshold": "0"})),
    "open groups": ("c.mp4", Make(frames=120, group=20, b_frames=3, options={"x264-params": "open-gop=1"})),
    "intra refresh": ("i.mp4", Make(frames=120, group=20, options={"x264-params": "intra-refresh=1"})),
    "mpeg4": ("d.mp4", Make(frames=120, codec="mpeg4", b_frames=2)),
    "uneven": ("e.mp4", Make(times=UNEVEN, group=4)),
    "uneven webm": ("f.webm", Make(times=UNEVEN, codec="libvpx-vp9", group=4, options={"cpu-used": "8"})),
    "vp8": ("g.webm", Make(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "10"})),
    "mkv": ("h.mkv", Make(frames=90)),
    "avi": ("j.avi", Make(codec="mpeg4")),
    "avi, b-frames": ("k.avi", Make(b_frames=2)),  # its time stamps are those of decoding
    "mpeg-ps": ("l.mpg", Make(codec="mpeg2video", b_frames=2)),
    "mpeg-ts": ("m.ts", Make(frames=60)),
    "one frame": ("n.mp4", Make(frames=1)),
    "3gp": ("o.3gp", Make(codec="mpeg4", b_frames=0)),
    "10 bit": ("p.mkv", Make(frames=20, pixels="yuv420p10le")),
    "grey": ("q.mkv", Make(frames=20, codec="ffv1", pixels="gray")),
    "4:1:1": ("r.mkv", Make(frames=20, codec="ffv1", pixels="yuv411p")),
    "planar rgb": ("s.mkv", Make(frames=20, codec="libx264rgb", pixels="rgb24", options={"crf": "10"})),
    "with sound": ("t.mp4", Make(frames=30, sound=3.0)),
    "length 0 in the header": ("u.mp4", Make(container={"movflags": "frag_keyframe+empty_moov"})),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: make(folder / file, what) for name, (file, what) in CLIPS.items()}


def at(what: Make, second: float) -> int:
    """The frame that is on the screen."""
    times = what.times if what.times is not None else [n / 25 for n in range(what.frames)]
    return max(0, bisect_right(times, second + 1e-6) - 1)


def instants(length: float, count: int) -> list[float]:
    return [length * (n + 0.37) / count for n in range(count)]


@pytest.mark.parametrize("name", CLIPS)
def test_what_is_on_the_screen_is_found(clips: dict[str, Path], name: str) -> None:
    what = CLIPS[name][1]
    with opened(clips[name]) as video:
        wanted = [0.0, *instants(video.seconds, 12), video.seconds, video.seconds + 9]
        found = [number_of(frame) for frame in video.frames(wanted)]
        backwards = [number_of(frame) for frame in video.frames(wanted[::-1])]
    assert found == [at(what, second) for second in wanted]
    assert backwards == found[::-1]


@pytest.mark.parametrize("name", ["many groups", "open groups", "mpeg4", "uneven", "vp8"])
def test_needed_frames_equal_those_of_decoding_all(clips: dict[str, Path], name: str) -> None:
    """Bit for bit, and one at a time, so that every one is jumped to."""
    with av.open(str(clips[name])) as container:
        frames = list(container.decode(video=0))
        zero = frames[0].time
        assert zero is not None
        whole = [(frame.time - zero, frame.to_ndarray(format="rgb24")) for frame in frames if frame.time is not None]
    for second in instants(whole[-1][0], 7):
        with opened(clips[name]) as video:
            (found,) = video.frames([second])
        right = next(pixels for time, pixels in reversed(whole) if time <= second + 1e-6)
        assert np.array_equal(np.asarray(found), right)


def test_picking_by_number_is_wrong_where_the_rate_varies(clips: dict[str, Path]) -> None:
    """The negative twin: the n-th of evenly counted frames is not what is on the screen."""
    with opened(clips["uneven"]) as video:
        wanted = instants(video.seconds, 12)
        right = [number_of(frame) for frame in video.frames(wanted)]
    with av.open(str(clips["uneven"])) as container:
        frames = [number_of(Image.fromarray(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]
    by_number = [frames[int(second / 5.54 * len(frames))] for second in wanted]
    assert right == [at(CLIPS["uneven"][1], second) for second in wanted]
    assert by_number != right


def jumps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The key frames that are jumped to from now on."""
    seen: list[float] = []
    original = Video._landed

    def landed(self: Video, key: float) -> Any:
        seen.append(key)
        return original(self, key)

    monkeypatch.setattr(Video, "_landed", landed)
    return seen


def test_within_a_group_nothing_is_jumped_to(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = jumps(monkeypatch)
    with opened(clips["h264"]) as video:
        video.frames(instants(video.seconds, 12))
    assert seen == [0.0]
    with opened(clips["many groups"]) as video:
        video.frames([0.1, 0.3, 7.9])
    assert seen == [0.0, 0.0, pytest.approx(7.8)]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_wrong_index_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    path = wrong_index(make(tmp_path / "a.mp4", Make(codec=codec, group=15)), by=5)
    seen = jumps(monkeypatch)
    wanted = [0.1, 1.5, 2.3]
    with opened(path) as video:
        assert [number_of(frame) for frame in video.frames(wanted)] == [2, 37, 57]
    assert len(seen) > 1  # it was tried


def test_equal_instants_share_a_picture(clips: dict[str, Path]) -> None:
    with opened(clips["uneven"]) as video:
        frames = video.frames([0.6, 1.0, 1.5, 1.7])
    assert frames[0] is frames[1] is frames[2]
    assert frames[3] is not frames[2]


@pytest.mark.parametrize(("turned", "corner"), [(0, (0, 0)), (90, (0, 1)), (180, (1, 1)), (-90, (1, 0))])
def test_frames_stand_upright(tmp_path: Path, turned: int, corner: tuple[int, int]) -> None:
    """Turned counter-clockwise; the lowest bit of frame 1 is the white bar on the left."""
    with opened(make(tmp_path / "a.mp4", Make(frames=30, turned=turned))) as video:
        first, later = video.frames([0.04, 1.0])
    assert first.size == later.size == ((48, 64) if turned in (90, -90) else (64, 48))
    grey = np.asarray(first.convert("L"), float)
    middle = grey.shape[0] // 2, grey.shape[1] // 2
    bright = {
        (0, 0): grey[middle[0], 3],
        (0, 1): grey[-4, middle[1]],
        (1, 1): grey[middle[0], -4],
        (1, 0): grey[3, middle[1]],
    }
    assert bright.pop(corner) > 200
    assert max(bright.values()) < 60


def test_the_transparent_is_white(tmp_path: Path) -> None:
    for file, codec, options in (("a.webm", "libvpx-vp9", {}), ("b.mkv", "ffv1", {}), ("c.mov", "png", {})):
        path, pixels = tmp_path / file, "yuva420p" if codec == "libvpx-vp9" else "bgra" if codec == "ffv1" else "rgba"
        layer = np.zeros((48, 64, 4), np.uint8)
        layer[..., 0], layer[:, 32:, 3] = 255, 255
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            for number in range(4):
                frame = av.VideoFrame.from_ndarray(layer, "rgba").reformat(format=pixels)
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with opened(path) as video:
            (image,) = video.frames([0.2])
        assert image.mode == "RGB"
        assert min(image.getpixel((8, 24))) > 250, file  # type: ignore[type-var, arg-type]
        red = image.getpixel((56, 24))
        assert isinstance(red, tuple)
        assert red[0] > 240
        assert max(red[1:]) < 12


def test_pixels_that_are_no_squares(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    with opened(path) as video:
        assert video.frames([0])[0].size == (128, 48)


def test_length_is_that_of_the_pictures(clips: dict[str, Path]) -> None:
    lengths = {name: opened_length(path) for name, path in clips.items()}
    assert lengths["h264"] == pytest.approx(4.8)
    assert lengths["uneven"] == pytest.approx(5.54, abs=0.05)
    assert lengths["with sound"] == pytest.approx(1.2)
    assert lengths["length 0 in the header"] == pytest.approx(2.4, abs=0.05)
    assert 0 < lengths["one frame"] <= 0.04


def opened_length(path: Path) -> float:
    with opened(path) as video:
        return video.seconds


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _damaged(path: Path) -> Path:
    """Noise in the middle of what is packed."""
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + 400] = bytes(byte ^ 0x5A for byte in data[start : start + 400])
    path.write_bytes(data)
    return path


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _long(folder: Path) -> Path:
    return header_first(make(folder / "long.mp4", Make(frames=200, size=(160, 120), group=50)), folder / "a.mp4")


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "a.mp4", r"cannot be read \(No such file or directory\)"),
    "folder": (lambda f: f, "not a file"),
    "empty": (lambda f: _text(f / "a.mp4", ""), "empty file"),
    "pipe": (lambda f: _pipe(f / "a.mp4"), "not a file"),
    "text": (lambda f: _text(f / "a.mp4", "no video " * 50), r"the video cannot be decoded \(Invalid data"),
    "only sound": (lambda f: only_sound(f / "a.mp4"), "holds only sound, no video"),
    "no frames": (lambda f: _no_frames(f / "a.mkv"), r"cannot be decoded \(End of file\)|holds no frames"),
    "cut, tables last": (lambda f: _cut(make(f / "a.mp4"), 0.5), r"the video cannot be decoded \(Invalid data"),
    "cut, tables first": (lambda f: _cut(_long(f), 0.5), r"cut off; [0-9.]+ of 8\.0 s are there"),
    "cut webm": (lambda f: _cut(make(f / "a.webm", Make(frames=75, codec="libvpx-vp9")), 0.5), "cut off; .* of 3.0 s"),
    "damaged": (lambda f: _damaged(_long(f)), r"the video cannot be decoded \(Invalid data|is damaged"),
    "playlist": (lambda f: _text(f / "a.mp4", "#EXTM3U\n#EXTINF:10,\nb.mp4\n#EXT-X-ENDLIST\n"), "cannot be decoded"),
    "list of files": (lambda f: _text(f / "a.mp4", "ffconcat version 1.0\nfile 'b.mp4'\n"), "cannot be decoded"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    build, reason = BAD[case]
    make(tmp_path / "b.mp4")
    path = build(tmp_path)
    with soon(), pytest.raises(DataError, match=reason) as caught, opened(path) as video:
        video.frames(instants(video.seconds, 12))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the library prints nothing by itself


def test_damage_behind_what_is_needed_does_no_harm(tmp_path: Path) -> None:
    path = _damaged(_long(tmp_path))
    with opened(path) as video:
        assert [number_of(frame) for frame in video.frames([0.0, 1.0])] == [0, 25]


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.mp4")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(DataError, match="more than 3,000 pixels a frame"):
        load_video(path)


def test_frames_do_not_depend_on_who_asks(clips: dict[str, Path]) -> None:
    """The same twice, alone and among others."""
    with opened(clips["many groups"]) as video:
        alone = [np.asarray(video.frames([second])[0]) for second in (0.5, 3.3, 6.1)]
        together = [np.asarray(frame) for frame in video.frames([0.5, 3.3, 6.1])]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_videos_are_verified_and_imported(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "clips").mkdir(parents=True)
    paths = [make(root / "clips" / f"{n}.mp4", Make(frames=10 + n)) for n in range(3)]
    items = tuple(
        Item(f"v{n}", f"v{n}", split, f"clip {n}", video=path, span=(0.0, 0.2) if n else None)  # type: ignore[arg-type]
        for n, (path, split) in enumerate(zip(paths, ("train", "val", "test"), strict=True))
    )
    dataset = DataSet("mine", root, "CC0", items)
    report = verify_dataset(dataset)
    assert report.problems == ()
    assert [counts["videos"] for counts in report.counts.values()] == [1, 1, 1]
    again = readers.read("native", import_dataset(dataset, tmp_path / "native"))
    assert [(i.id, i.span, i.text) for i in again.items] == [(i.id, i.span, i.text) for i in items]
    assert [i.video.read_bytes() for i in again.items if i.video] == [path.read_bytes() for path in paths]
    _cut(paths[1], 0.3)
    paths[2].write_bytes(paths[0].read_bytes())
    problems = verify_dataset(dataset).problems
    assert len(problems) == 2
    assert "1.mp4: the video cannot be decoded" in problems[0]
    assert "the same file stands in train and test" in problems[1]
    assert not math.isnan(opened_length(paths[0]))
