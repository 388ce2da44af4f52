"""Videos made for tests. Every frame carries its number as eight bars, black or white, which survive lossy codecs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (64, 48)
BITS = 8


@dataclass(frozen=True)
class Make:
    """``times``: seconds of each frame; None: ``frames`` of them, 25 a second. ``sound``: seconds of a tone beside."""

    frames: int = 60
    times: Sequence[float] | None = None
    codec: str = "libx264"
    pixels: str = "yuv420p"
    group: int = 12
    b_frames: int | None = None
    turned: int | None = None
    size: tuple[int, int] = SIZE
    sound: float = 0.0
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)


def barcode(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """RGB: the bits of a number, the lowest on the left."""
    bits = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
    row = bits[np.arange(size[0]) * BITS // size[0]]
    return np.broadcast_to(row[None, :, None], (size[1], size[0], 3)).copy()


def number_of(image: Image.Image) -> int:
    grey = np.asarray(image.convert("L")).mean(axis=0)
    step = len(grey) / BITS
    return sum(int(grey[int((bit + 0.5) * step)] > 127) << bit for bit in range(BITS))


def make(path: Path, what: Make | None = None) -> Path:
    """Write a video; what it is packed in goes by its ending."""
    what = what or Make()
    times = what.times if what.times is not None else [n / 25 for n in range(what.frames)]
    base = Fraction(1, 1000) if what.times is not None else Fraction(1, 25)
    with av.open(str(path), "w", options=what.container) as container:
        stream = container.add_stream(what.codec, rate=25, options=what.options)
        stream.width, stream.height = what.size
        stream.pix_fmt = what.pixels
        stream.codec_context.gop_size = what.group
        stream.codec_context.time_base = base
        if what.b_frames is not None:
            stream.codec_context.max_b_frames = what.b_frames
        if what.turned is not None:
            stream.set_display_rotation(what.turned)
        tone = container.add_stream("aac", rate=16000) if what.sound else None
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(barcode(number, what.size), "rgb24").reformat(format=what.pixels)
            frame.pts, frame.time_base = round(seconds / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            wave = np.sin(np.arange(round(16000 * what.sound)) / 9).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            frame.rate = 16000
            container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def header_first(path: Path, target: Path) -> Path:
    """The same MP4 with its tables at the beginning, as for streaming."""
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as copy:
        stream = source.streams.video[0]
        out = copy.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = out
                copy.mux(packet)
    return target


def wrong_index(path: Path, by: int) -> Path:
    """Let the table of key frames of an MP4 name other frames, all but the first so many too late."""
    data = bytearray(path.read_bytes())
    place = data.index(b"stss") + 8
    (count,) = struct.unpack_from(">I", data, place)
    assert count > 2
    for entry in range(1, count):
        (key,) = struct.unpack_from(">I", data, place + 4 + 4 * entry)
        struct.pack_into(">I", data, place + 4 + 4 * entry, key + by)
    path.write_bytes(data)
    return path
