"""Clips from YouTube, with programs in place of yt-dlp and ffmpeg that do what is asked of them, or anything else."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import published_trees as trees
import pytest
import soundfile

from sensorium.data import clips, readers
from sensorium.data.clips import Wishes
from sensorium.data.transfer import Watch
from sensorium.errors import DataError

YT_DLP = """#!{python}
import json, os, subprocess, sys, time, wave
words = sys.argv[1:]
id = words[-1].removeprefix("https://www.youtube.com/watch?v=")
plan = json.load(open({plan!r})).get(id, {{}})
with open({log!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if "hang" in plan:
    child = subprocess.Popen(["sleep", "60"])
    open(plan["hang"], "w").write(str(child.pid))
    time.sleep(60)
if "say" in plan:
    print("WARNING: something", plan["say"], sep="\\n", file=sys.stderr)
    sys.exit(1)
if plan.get("silent"):
    sys.exit(0)
name = words[words.index("--output") + 1] % {{"ext": "wav"}}
with wave.open(name, "wb") as sound:
    sound.setnchannels(1)
    sound.setsampwidth(2)
    sound.setframerate(32000)
    sound.writeframes(b"\\1\\0" * int(32000 * plan.get("seconds", 10)))
"""


@dataclass
class Youtube:
    """``plan``: what happens to a video. ``asked``: the words of each call of yt-dlp."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def plan(self, videos: dict[str, dict[str, Any]]) -> None:
        (self.folder / "plan.json").write_text(json.dumps(videos))

    @property
    def asked(self) -> list[list[str]]:
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def watch(self) -> Watch:
        return Watch(self.said.append, lambda what, done, total: None)


@pytest.fixture
def youtube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Youtube:
    folder = tmp_path / "bin"
    folder.mkdir()
    text = YT_DLP.format(python=sys.executable, plan=str(folder / "plan.json"), log=str(folder / "log"))
    for name, content in (("yt-dlp", text), ("ffmpeg", "#!/bin/sh\n")):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (folder / "plan.json").write_text("{}")
    return Youtube(folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.audiocaps(tmp_path / "100 %(ext)s")  # a name that yt-dlp would take for a template


def test_clips_come_once_and_are_read(root: Path, youtube: Youtube) -> None:
    trees.sound(root / "mine" / "6abcdefghij.wav", 1)  # one that is there already, under another name
    tally = clips.fetch(root, Wishes(), youtube.watch)
    assert (tally.asked, tally.there, tally.fetched, tally.gone, tally.failed) == (9, 1, 8, 0, 0)
    assert youtube.said == [tally.line]
    assert tally.line.startswith("audiocaps clips: of 9 1 were there, 8 came, 0 are gone for ever")
    assert soundfile.info(root / "clips" / "-1abcdefghi_30.wav").duration == 10
    assert sorted(path.name for path in root.iterdir()) == ["clips", "mine", "test.csv", "train.csv", "val.csv"]
    assert len(readers.read("audiocaps", root).items) == 25
    words = next(words for words in youtube.asked if words[-1].endswith("-1abcdefghi"))
    assert words[words.index("--download-sections") + 1] == "*30-40"
    assert "--cookies" not in words
    again = clips.fetch(root, Wishes(), youtube.watch)
    assert (again.there, again.fetched) == (9, 0)
    assert len(youtube.asked) == 8


def test_what_is_gone_is_remembered_with_its_reason(root: Path, youtube: Youtube) -> None:
    dead = "ERROR: [youtube] x: Video unavailable. This video has been removed by the uploader"
    later = "ERROR: [youtube] x: Video unavailable. This content isn't available, try again later."
    age = "ERROR: [youtube] x: Sign in to confirm your age"
    youtube.plan({"_2abcdefghi": {"say": dead}, "3abcdefghij": {"say": later}, "8abcdefghij": {"say": age}})
    tally = clips.fetch(root, Wishes(), youtube.watch)
    assert (tally.fetched, tally.gone, tally.failed) == (6, 1, 2)
    assert (root / "clips-gone.tsv").read_text() == f"_2abcdefghi_0\t{dead}\n"
    youtube.plan({})
    before = len(youtube.asked)
    tally = clips.fetch(root, Wishes(), youtube.watch)
    assert (tally.there, tally.fetched, tally.gone, tally.failed) == (6, 2, 1, 0)
    assert len(youtube.asked) == before + 2
    with (root / "clips-gone.tsv").open("a") as file:
        file.write("3abcdefghij_110\ttorn by a ki")  # a line without its end does not count
    for name in ("3abcdefghij_110", "4abcdefghij_20"):
        (root / "clips" / f"{name}.wav").unlink()
    youtube.plan({"4abcdefghij": {"say": dead}})
    tally = clips.fetch(root, Wishes(), youtube.watch)
    assert (tally.fetched, tally.gone) == (1, 2)
    assert (root / "clips-gone.tsv").read_text() == f"_2abcdefghi_0\t{dead}\n4abcdefghij_20\t{dead}\n"


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"silent": True}, "yt-dlp left no sound"),
        ({"seconds": 0.5}, "only 0.5 s came"),
        ({"say": "bad \x1b[2J luck"}, r"bad \u001b[2J luck"),
    ],
)
def test_what_is_no_clip_is_not_kept(root: Path, youtube: Youtube, plan: dict[str, Any], reason: str) -> None:
    youtube.plan({"8abcdefghij": plan})
    tally = clips.fetch(root, Wishes(), youtube.watch)
    assert (tally.fetched, tally.failed, tally.reason) == (8, 1, reason)
    assert not (root / "clips" / "8abcdefghij_250.wav").exists()
    assert not (root / "clips-gone.tsv").exists()


def ended(pid: int) -> bool:
    """Nobody of this number runs any more; one that nobody has asked after is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_clip_has_its_time_and_no_more(root: Path, youtube: Youtube) -> None:
    """yt-dlp and what it started are ended."""
    pid = youtube.folder / "pid"
    youtube.plan({"8abcdefghij": {"hang": str(pid)}})
    began = time.monotonic()
    tally = clips.fetch(root, Wishes(seconds=2), youtube.watch)
    assert time.monotonic() - began < 20
    assert (tally.fetched, tally.failed, tally.reason) == (8, 1, "took more than 2 s")
    deadline = time.monotonic() + 5
    while not ended(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended(int(pid.read_text()))


def test_a_limit_takes_the_first_of_each_list(root: Path, youtube: Youtube, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    tally = clips.fetch(root, Wishes(limit=1, cookies=cookies), youtube.watch)
    assert (tally.asked, tally.fetched) == (3, 3)
    names = sorted(path.name for path in (root / "clips").iterdir())
    assert names == ["-1abcdefghi_30.wav", "6abcdefghij_30.wav", "8abcdefghij_250.wav"]
    assert all(words[words.index("--cookies") + 1] == str(cookies) for words in youtube.asked)


def test_refusals_in_a_row_end_it(root: Path, youtube: Youtube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "_GIVEN_UP", 3)
    ids = [youtube_id for part in trees.CLIPS.values() for youtube_id, _ in part]
    youtube.plan({name: {"say": "ERROR: Sign in to confirm you're not a bot"} for name in ids})
    with pytest.raises(DataError, match=r"3 failed; last: .*not a bot; given up after 3 in a row.*--cookies FILE"):
        clips.fetch(root, Wishes(), youtube.watch)
    assert not (root / ".clips").exists()


def damage_lists(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "val.csv").unlink()


def no_tools(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_tools, "--audio needs yt-dlp and ffmpeg, not found; run: pip install yt-dlp"),
        (damage_lists, r"val\.csv missing"),
    ],
)
def test_what_is_needed_is_checked_first(
    root: Path,
    youtube: Youtube,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    damage(root, monkeypatch)
    with pytest.raises(DataError, match=reason):
        clips.fetch(root, Wishes(), youtube.watch)
    assert not (root / "clips").exists()
    assert youtube.asked == []
