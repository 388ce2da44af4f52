"""Twelve frames of a video: decoding what is needed, against decoding all, seeking to each, and the frame cache.

    OMP_NUM_THREADS=1 python benchmarks/video_decode.py

Clips of 6 s and 120 s, 320x240, 25 frames a second, in H.264 (a key frame every 250 frames) and MPEG-4 (every 12). All
ways open the file, give the pictures shown at the centres of twelve equal parts, and are checked to give the same ones;
they are run in turn, so that a busy moment hits all. "Needed" is ``sensorium.data.video``; "on" and "always" are it,
too, made never to jump to a key frame, and always. "All" decodes everything and turns only the twelve into pictures;
"each" seeks to the key frame before each of the twelve and decodes on from there, "each, late" takes the first frame
that comes, which is fast and wrong. "Cache" reads JPEGs of short side 224 that were kept once, "direct" decodes and
resizes to that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from common import machine, table
from PIL import Image, ImageFilter

from sensorium.data import video
from sensorium.data.feature_fill import FillOptions
from sensorium.data.frame_cache import keep
from sensorium.data.frames import DirectFrames, Look, Stretch
from sensorium.data.sampling import segments
from sensorium.data.video_write import Codec, write_video

RATE, SIZE, WANTED = 25, (320, 240), 12
CLIPS = {
    "H.264, 6 s": (6, Codec(group=250)),
    "H.264, 120 s": (120, Codec(group=250)),
    "MPEG-4, 6 s": (6, Codec("mpeg4", group=12, options={"b": "800k"})),
    "MPEG-4, 120 s": (120, Codec("mpeg4", group=12, options={"b": "800k"})),
}
LOOK = Look(224, 3.0, 192)
Way = Callable[[Path, Sequence[float]], list[Image.Image]]


def make(path: Path, seconds: int, codec: Codec) -> None:
    """A soft pattern that drifts, with a square that runs across it."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1] * 2, SIZE[0] * 2, 3), np.uint8)
    ground = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6)).point(lambda v: min(255, max(0, 6 * v - 640)))

    def frames() -> object:
        for number in range(seconds * RATE):
            left, top = number % SIZE[0], number // 2 % SIZE[1]
            image = ground.crop((left, top, left + SIZE[0], top + SIZE[1]))
            image.paste((250, 240, 60), (number * 3 % 280, 100, number * 3 % 280 + 40, 140))
            yield number / RATE, image

    write_video(path, frames(), Fraction(RATE), codec)  # type: ignore[arg-type]


def needed(path: Path, seconds: Sequence[float]) -> list[Image.Image]:
    with video.opened(path) as opened:
        return opened.frames(seconds)


def jumping(least: int) -> Way:
    """``needed`` with another rule for when a jump pays."""

    def way(path: Path, seconds: Sequence[float]) -> list[Image.Image]:
        usual, video._JUMP = video._JUMP, least
        try:
            return needed(path, seconds)
        finally:
            video._JUMP = usual

    return way


def everything(path: Path, seconds: Sequence[float]) -> list[Image.Image]:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [(frame.time or 0.0, frame) for frame in container.decode(video=0)]
    return [_picture([f for time, f in frames if time <= second + 1e-6][-1]) for second in seconds]


def each(path: Path, seconds: Sequence[float], *, late: bool = False) -> list[Image.Image]:
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base = stream.time_base
        assert base is not None
        for second in seconds:
            container.seek(int(second / base), stream=stream)
            shown = None
            for frame in container.decode(stream):
                if shown is not None and (frame.time or 0.0) > second + 1e-6:
                    break
                shown = frame
                if late:
                    break
            assert shown is not None
            found.append(_picture(shown))
    return found


def _picture(frame: av.VideoFrame) -> Image.Image:
    return Image.fromarray(frame.to_ndarray(format="rgb24"))


def same(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> int:
    return sum(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def run(folder: Path, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by clip and way."""
    times: dict[str, dict[str, list[float]]] = {}
    stretches = {name: Stretch(folder / f"{number}.mp4") for number, name in enumerate(CLIPS)}
    for name, (seconds, codec) in CLIPS.items():
        make(stretches[name].path, seconds, codec)
    begun = time.perf_counter()
    cached, _ = keep(LOOK, "jpeg", list(stretches.values()), folder / "cache", FillOptions(say=print))
    print(f"writing the frame cache of the four clips: {time.perf_counter() - begun:.1f} s")
    direct = DirectFrames(LOOK)
    ways: dict[str, Way] = {
        "needed": needed,
        "on": jumping(10**9),
        "always": jumping(0),
        "all": everything,
        "each": each,
        "each, late": lambda path, seconds: each(path, seconds, late=True),
        "cache": lambda path, seconds: cached.read(Stretch(path), lambda length: np.array(seconds)),
        "direct": lambda path, seconds: direct.read(Stretch(path), lambda length: np.array(seconds)),
    }
    for number in range(repeats + 1):  # the first round warms up
        for name, stretch in stretches.items():
            seconds = segments(CLIPS[name][0], WANTED, None).tolist()
            right = needed(stretch.path, seconds)
            for way, call in ways.items():
                begun = time.perf_counter()
                found = call(stretch.path, seconds)
                taken = 1000 * (time.perf_counter() - begun)
                if number:
                    times.setdefault(name, {}).setdefault(way, []).append(taken)
                elif way not in ("cache", "direct"):
                    equal = same(found, right)
                    print(f"{name}: {way}: {equal} of {WANTED} frames are right")
                    if equal < WANTED and way != "each, late":
                        raise SystemExit(f"{name}: {way} gives other frames")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="Write the times as JSON, too.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = run(Path(folder), arguments.repeats)
    ways = list(next(iter(times.values())))
    rows = [
        [name, *(f"{statistics.median(found[way]):.1f} ({min(found[way]):.1f})" for way in ways)]
        for name, found in times.items()
    ]
    print(f"\n{machine()}; milliseconds for {WANTED} frames, median (best) of {arguments.repeats}\n")
    print(table(["clip", *ways], rows))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(times, indent=1) + "\n")


if __name__ == "__main__":
    main()
