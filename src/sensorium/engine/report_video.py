"""Videos of the report, small enough to stand in the page: MP4 without sound, the same bytes for the same file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium import reading

SIDE = 160  # pixels of the longer side
SECONDS = 10
RATE = 8  # frames a second
# Looking ahead, this encoder gives other bytes from time to time.
_QUALITY = {"crf": "30", "preset": "veryfast", "x264-params": "mbtree=0:rc-lookahead=0"}
_FORMATS = {"format_whitelist": "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,gif", "protocol_whitelist": "file"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def read_video(path: Path) -> tuple[bytes, int, int, float] | None:
    """The first ``SECONDS`` as MP4 (H.264), its width and height, and how many seconds it plays; None when the file
    cannot be read to there."""
    import av  # takes tens of milliseconds, and most reports show no videos
    import av.error
    from av.video.reformatter import VideoReformatter

    try:
        reading.open_plain(path).close()  # a pipe would never answer
        frames = list(_frames(path))
    except (OSError, ValueError, av.error.FFmpegError):
        return None
    if not frames:
        return None
    size = frames[0].size
    packed, converter = io.BytesIO(), VideoReformatter()
    with av.open(packed, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options=_QUALITY)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = 1 / Fraction(RATE)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(image.resize(size)), format="rgb24")
            # Given RGB, the encoder converts by itself, and not always to the same bytes.
            frame = converter.reformat(frame, format="yuv420p")
            frame.pts, frame.time_base = number, 1 / Fraction(RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return packed.getvalue(), *size, len(frames) / RATE


def _frames(path: Path) -> Iterator[Image.Image]:
    """What is on the screen at every ``1 / RATE`` s, small, of even sides. Raises OSError, ValueError, FFmpegError."""
    import av

    with av.open(str(path.absolute()), options=_FORMATS, metadata_errors="replace") as container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise ValueError("no video")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        shape = float(stream.sample_aspect_ratio or 1)
        number, last, zero = 0, None, None
        for frame in container.decode(stream):
            zero = frame.time if zero is None else zero
            due = number if frame.time is None or zero is None else (frame.time - zero) * RATE
            while last is not None and number < min(due, SECONDS * RATE) - 1e-6:
                yield last
                number += 1
            if number >= SECONDS * RATE:
                return
            last = _small(
                Image.fromarray(frame.to_ndarray(format="rgb24")),
                shape if 0.1 < shape < 10 else 1.0,
                round(frame.rotation / 90) * 90 % 360,
            )
        if last is not None:
            yield last


def _small(image: Image.Image, shape: float, turn: int) -> Image.Image:
    scale = SIDE / max(image.width * shape, image.height)
    width, height = (max(2, round(side * scale / 2) * 2) for side in (image.width * shape, image.height))
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return small.transpose(_TURNS[turn]) if turn in _TURNS else small
