"""Small videos made here: moving shapes to try things out with, and animations turned into what every player plays."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from sensorium.files import new_file, open_file

_TICKS = 1000  # of a frame's usual time: frames may have times of their own

# Looking ahead, this encoder gives other bytes from time to time.
_GOOD = {"crf": "18", "preset": "medium", "x264-params": "mbtree=0:rc-lookahead=0"}


@dataclass(frozen=True)
class Codec:
    """How frames are packed. ``group``: frames between two key frames. ``options``: the codec's own."""

    name: str = "libx264"
    pixels: str = "yuv420p"
    group: int = 250
    options: Mapping[str, str] = field(default_factory=lambda: dict(_GOOD))


APART = Codec(group=1, options={"qp": "12", "aq-mode": "0", "preset": "veryfast"})
"""Each frame by itself, always packed alike: equal frames are equal bytes, wherever they stand."""


def write_video(path: Path, frames: Iterable[tuple[float, Image.Image]], rate: Fraction, codec: Codec) -> None:
    """Write a new file, whole or not at all; its ending says which kind. ``frames``: seconds, ascending, and RGB
    pictures of one even size. ``rate``: frames a second, nominally. Raises DiskError."""
    with new_file(path) as temporary, open_file(temporary, "wb") as file:
        file.write(packed({".mkv": "matroska"}.get(path.suffix, path.suffix[1:]), frames, rate, codec))


def packed(kind: str, frames: Iterable[tuple[float, Image.Image]], rate: Fraction, codec: Codec) -> bytes:
    """The bytes of such a file; ``kind``: FFmpeg's name of it."""
    base = 1 / (rate * _TICKS)
    memory, converter = io.BytesIO(), VideoReformatter()
    with av.open(memory, mode="w", format=kind) as container:
        stream: VideoStream | None = None
        for seconds, image in frames:
            stream = stream or _stream(container, image.size, rate, base, codec)
            # Given RGB, the encoder converts by itself, and not always to the same bytes.
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            frame = converter.reformat(frame, format=codec.pixels)
            frame.pts, frame.time_base = round(seconds / base), base
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))
    return memory.getvalue()


def _stream(
    container: OutputContainer, size: tuple[int, int], rate: Fraction, base: Fraction, codec: Codec
) -> VideoStream:
    stream = container.add_stream(codec.name, rate=rate, options=dict(codec.options))
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = size
    stream.pix_fmt = codec.pixels
    stream.codec_context.gop_size = codec.group
    stream.codec_context.time_base = base
    stream.codec_context.thread_count = 1
    return stream
