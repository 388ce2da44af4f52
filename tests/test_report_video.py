"""Videos of the report: small, inside the page, the same bytes for the same file; a line where one cannot be read."""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import asdict
from pathlib import Path

import av
import pytest
from hostile import soon
from made_videos import Make, header_first, make, only_sound
from run_folder import judged, make_run

from sensorium.engine.contract import Card, Gallery, Hit, Shown
from sensorium.engine.report import write_report
from sensorium.engine.report_video import RATE, SECONDS, SIDE, read_video
from sensorium.engine.results import Result, evaluation_from_json, evaluation_to_json, write_result


@pytest.mark.parametrize(
    ("name", "what", "size", "seconds"),
    [
        ("a.mp4", Make(frames=300, size=(320, 240), codec="mpeg4"), (160, 120), 10.0),
        ("b.webm", Make(frames=50, codec="libvpx-vp9", options={"cpu-used": "8"}), (160, 120), 2.0),
        ("c.mp4", Make(frames=50, turned=90), (120, 160), 2.0),
        ("d.mp4", Make(frames=1), (160, 120), 1 / RATE),
        ("e.mp4", Make(times=[0, 0.1, 3.0]), (160, 120), 3 + 1 / RATE),
    ],
)
def test_an_excerpt_is_small_and_plays(
    tmp_path: Path, name: str, what: Make, size: tuple[int, int], seconds: float
) -> None:
    found = read_video(make(tmp_path / name, what))
    assert found is not None
    data, width, height, length = found
    assert (width, height) == size
    assert max(size) == SIDE
    assert length == pytest.approx(seconds, abs=1 / RATE)
    assert len(data) < 40_000
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].width, frames[0].height, frames[0].format.name) == (*size, "yuv420p")
        assert len(frames) == round(length * RATE) <= SECONDS * RATE
        assert not container.streams.audio
    again = read_video(tmp_path / name)
    assert again is not None
    assert again[0] == data


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 99)
    (tmp_path / "playlist.mp4").write_text("ffconcat version 1.0\nfile 'good.mp4'\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    whole = header_first(make(tmp_path / "good.mp4", Make(frames=100)), tmp_path / "whole.mp4").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 300] = b"\x5a" * 300
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    only_sound(tmp_path / "sound.mp4")
    with soon():
        for name in ("text", "playlist", "pipe", "damaged", "sound", "missing"):
            assert read_video(tmp_path / f"{name}.mp4") is None, name
    assert read_video(tmp_path / "whole.mp4") is not None


def test_the_page_plays_what_was_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for number in range(3):
        make(run / "gallery" / f"{number}.mp4", Make(frames=20 + number))
    (run / "gallery" / "2.mp4").write_bytes(b"broken")
    found = tuple(Shown(f'clip <{n}> & "', video=f"gallery/{n}.mp4", right=n == 0, score=0.5) for n in range(3))
    gallery = Gallery("text to video", (Card(Shown("a moving bar"), found),))
    evaluation = judged(0.5, (gallery,))
    assert evaluation_from_json(evaluation_to_json(evaluation)) == evaluation
    write_result(run, Result("test", evaluation, "test", 560, "step_00000560"))
    write_report(run)
    page = (run / "report.html").read_text()
    videos = re.findall(r"<video [^>]*></video>", page)
    assert len(videos) == 2
    for tag in videos:
        assert 'aria-label="play video: clip &lt;' in tag
        (data,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', tag)
        with av.open(io.BytesIO(base64.b64decode(data))) as container:
            assert len(list(container.decode(video=0))) > 3
    assert "video cannot be read: 2.mp4" in page
    assert "gallery: gallery/2.mp4 cannot be read" in page
    write_report(run)
    assert (run / "report.html").read_text() == page


def test_a_hit_may_be_a_stretch_of_a_video() -> None:
    hit = Hit(0.5, "a", video="a.mp4", segment=(1.0, 2.5))
    assert asdict(hit) == {
        **{"score": 0.5, "id": "a", "text": None, "image": None, "audio": None},
        **{"video": "a.mp4", "segment": (1.0, 2.5)},
    }
