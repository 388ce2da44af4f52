"""The clips of AudioCaps, cut from YouTube by yt-dlp and ffmpeg, which have to be installed; one after the other can
fail, and many are gone for ever.

::

    ROOT/
        clips/YOUTUBE_START.wav     32 kHz, mono, ten seconds
        clips-gone.tsv              YOUTUBE_START, a tab, why; these are not asked for again. Delete it to try once more
        .clips/                     what is being fetched; thrown away by whoever comes next
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import soundfile

from sensorium.data.files import read_text
from sensorium.data.items import SPLITS, Split
from sensorium.data.readers.audiocaps import Caption, read_lists, sound_of, sounds_below
from sensorium.data.transfer import Tally, Watch
from sensorium.errors import DataError, printable
from sensorium.files import make_folder, open_file, remove, rename, require_space, sync, told, write_file

FOLDER, GONE = "clips", "clips-gone.tsv"
SECONDS, RATE = 10, 32_000
_PASSING = ".clips"
_BYTES = SECONDS * RATE * 2 + 44
_SHORTEST = 1.0  # seconds; a video may end within the clip
_AT_ONCE = 4
_GIVEN_UP = 20  # failures in a row that are not the clips' own: YouTube refuses this machine
# What YouTube says of a video that will not come back. Everything else may work tomorrow.
_FOR_EVER = re.compile(
    r"video (is )?(unavailable|private|not available|no longer available)|private video|has been removed|"
    r"has been terminated|copyright|removed by the uploader|members-only|does not exist",
    re.IGNORECASE,
)
_TRY_AGAIN = re.compile(r"try again later|rate.limit|not a bot|HTTP Error (429|5\d\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Wishes:
    """``limit``: clips of each list, from its top. ``cookies``: a file for yt-dlp. ``seconds``: for one clip."""

    limit: int | None = None
    cookies: Path | None = None
    seconds: float = 180.0


def wanted(root: Path, limit: int | None) -> list[Caption]:
    """The clips of the lists in ``root``, each once. Raises DataError."""
    lists: Mapping[Split, Sequence[Caption]] = read_lists(root)
    found: list[Caption] = []
    for split in SPLITS:
        clips = {row.clip: row for row in reversed(lists[split])}
        found += islice((clips[name] for name in dict.fromkeys(row.clip for row in lists[split])), limit)
    return found


def count(root: Path, limit: int | None) -> tuple[int, int]:
    """How many clips are asked for, and how many of them are there. Raises DataError when the lists are not."""
    rows, sounds = wanted(root, limit), sounds_below(root)
    return len(rows), sum(sound_of(row, sounds) is not None for row in rows)


def require_tools() -> None:
    """Raise DataError when yt-dlp or ffmpeg is not installed."""
    missing = [name for name in ("yt-dlp", "ffmpeg") if shutil.which(name) is None]
    if missing:
        raise DataError(
            f"--audio needs {' and '.join(missing)}, not found; run: pip install yt-dlp, and install ffmpeg "
            "(Debian, Ubuntu: sudo apt install ffmpeg)"
        )


def fetch(root: Path, wishes: Wishes, watch: Watch) -> Tally:
    """Fetch what is missing, several clips at once, and say one line at the end.

    A killed call goes on where it was. Raises DataError: tools are missing, the lists are not there, or YouTube answers
    nothing but refusals; DiskError.
    """
    require_tools()
    rows = wanted(root, wishes.limit)
    gone = _gone(root / GONE)
    make_folder(root / FOLDER)
    sounds = sounds_below(root)
    missing = [row for row in rows if sound_of(row, sounds) is None]
    tally = Tally("audiocaps clips", GONE, asked=len(rows), there=len(rows) - len(missing))
    todo = [row for row in missing if row.clip not in gone]
    tally.gone = len(rows) - tally.there - len(todo)
    require_space(root, len(todo) * _BYTES, f"the sound of {len(todo):,} clips")
    remove(root / _PASSING)
    make_folder(root / _PASSING)
    try:
        with closing(_fetched(todo, root, wishes)) as fetched:
            _count(fetched, root, tally, watch)
    finally:
        remove(root / _PASSING)
    watch.say(tally.line)
    return tally


def _count(fetched: Iterator[tuple[Caption, str]], root: Path, tally: Tally, watch: Watch) -> None:
    """Keep the tally. Raises DataError when one after the other fails for a reason that is not the clip's own."""
    in_a_row = 0
    for done, (row, problem) in enumerate(fetched, start=1):
        gone = bool(_FOR_EVER.search(problem)) and not _TRY_AGAIN.search(problem)
        failed = bool(problem) and not gone
        if gone:
            _remember(root / GONE, row.clip, problem)
        tally.fetched += not problem
        tally.gone += gone
        tally.failed += failed
        tally.reason = problem if failed else tally.reason
        in_a_row = in_a_row + 1 if failed else 0
        watch.move("clips of AudioCaps", done * _BYTES, None)
        if in_a_row >= _GIVEN_UP:
            raise DataError(
                f"{tally.line}; given up after {_GIVEN_UP} in a row. YouTube refuses this machine: wait, or give "
                "cookies of a browser that is logged in (--cookies FILE)"
            )


def _fetched(todo: Sequence[Caption], root: Path, wishes: Wishes) -> Generator[tuple[Caption, str], None, None]:
    """Each clip with what was wrong, empty if nothing was. Clips that were not begun are not, when nobody asks on."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield from zip(todo, pool.map(lambda row: _one(row, root, wishes, stop), todo), strict=True)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _one(row: Caption, root: Path, wishes: Wishes, stop: threading.Event) -> str:
    if stop.is_set():
        return "stopped"
    part = root / _PASSING / f"{row.clip}.wav"
    problem = _call(row, part, wishes, stop)
    if not problem:
        problem = _unsound(part)
    if not problem:
        sync(part)
        rename(part, root / FOLDER / part.name)
    return problem


def _call(row: Caption, part: Path, wishes: Wishes, stop: threading.Event) -> str:
    """Run yt-dlp, which runs ffmpeg; what it complained of. Both are ended when the time is over, or nobody waits."""
    start = int(row.start)
    name = str(part.with_suffix("")).replace("%", "%%")
    command = [
        *("yt-dlp", "--ignore-config", "--no-playlist", "--no-progress", "--no-part", "--no-mtime", "--quiet"),
        *("--format", "bestaudio/best", "--download-sections", f"*{start}-{start + SECONDS}"),
        *("--force-keyframes-at-cuts", "--extract-audio", "--audio-format", "wav"),
        *("--postprocessor-args", f"ExtractAudio:-ac 1 -ar {RATE} -t {SECONDS}"),
        *("--output", f"{name}.%(ext)s"),
        *(("--cookies", str(wishes.cookies)) if wishes.cookies else ()),
        f"https://www.youtube.com/watch?v={row.youtube}",  # an id alone may begin with a dash
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            said = _waited(process, wishes.seconds, stop)
        finally:
            _end(process)
    if said is None:
        return f"took more than {wishes.seconds:g} s"
    if process.returncode == 0:
        return ""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return printable(next(iter(reversed(errors or lines)), f"yt-dlp ended with {process.returncode}"))[:300].strip()


def _waited(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> bytes | None:
    """What the process complained of, when it has ended; None when it was not waited for any longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.is_set():
        try:
            return process.communicate(timeout=min(0.5, seconds))[1]
        except subprocess.TimeoutExpired:
            continue
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End yt-dlp and the ffmpeg that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _unsound(part: Path) -> str:
    """What is wrong with what came."""
    try:
        found = soundfile.info(part)
    except (soundfile.SoundFileError, OSError):
        return "yt-dlp left no sound"
    return "" if found.duration >= _SHORTEST else f"only {found.duration:.1f} s came"


def _gone(path: Path) -> dict[str, str]:
    """Clips that are gone for ever, and why."""
    if not path.exists():
        return {}
    whole, end, torn = read_text(path).rpartition("\n")
    if torn:  # by a kill; what comes next would become a part of it
        write_file(path, (whole + end).encode())
    lines = (line.partition("\t") for line in whole.split("\n"))
    return {clip: why for clip, tab, why in lines if tab}


def _remember(path: Path, clip: str, why: str) -> None:
    with told(path), open_file(path, "a") as file:
        file.write(f"{clip}\t{' '.join(why.split())}\n")
