"""Frames of videos: those that are shown at given seconds, and no others are turned into pictures.

What is shown when is told by time stamps, never by the number of a frame: the rate of a video may vary. Key frames are
jumped to only where whole groups of pictures lie between two wanted frames; within a group, decoding on is faster than
any jump. A jump that lands wrong, as damaged indexes make it, is taken back: then all is decoded from the beginning.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import av.error
from av.codec.context import CodecContext
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from sensorium.data.media import require_file
from sensorium.errors import DataError

ENDINGS = (".mp4", ".webm", ".mkv", ".avi", ".3gp", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv")
_FORMATS = "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,gif"  # no playlists: those name other files
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own pass over the transparency
_JUMP = 8  # frames that a jump must save; emptying and filling the decoder costs about as many
_SAME = 1e-6  # seconds; time stamps are fractions, wanted seconds are not
_LACKING, _LACKING_SHARE = 0.5, 0.05  # seconds, and share of the length, that may be missing at the end
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, -90: Image.Transpose.ROTATE_270}
_TURNS |= {-180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270, -270: Image.Transpose.ROTATE_90}


@dataclass(frozen=True)
class _Timeline:
    """What the packets say, without decoding. ``times``: in seconds from the first frame, in the order in which frames
    are shown; ``keys``: those of the key frames; ``zero``: the time stamp of the first. ``counted``: the file has no
    time stamps that hold (AVI cannot write any), so that frames are counted, and nothing is jumped to."""

    times: tuple[float, ...]
    keys: tuple[float, ...]
    zero: int
    length: float
    counted: bool


class _LandedLateError(Exception):
    """A jump did not lead to a sound frame at or before the one that was sought."""


class Video:
    """An opened video. ``seconds``: from its first frame to the end of its last; 0 or more. ``size``: width and height
    of its frames as they are stored."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path, self._stack = path, stack
        self._converter = VideoReformatter()  # one for all frames: each would need a millisecond to begin
        self._open()
        self._line = _timeline(path, self._container, self._stream)
        self.seconds = self._line.length
        self.size = self._stream.codec_context.width, self._stream.codec_context.height

    def _open(self) -> None:
        """Stand before the first packet, whatever the index of the file says."""
        name = str(self.path.absolute())
        self._container = self._stack.enter_context(av.open(name, options=_OPTIONS, metadata_errors="replace"))
        self._stream = _picture_stream(self.path, self._container)
        self._decoder = _decoder(self._stream)

    def frames(self, seconds: Sequence[float]) -> list[Image.Image]:
        """RGB, upright, as wide as it is shown: what is on the screen at each of these ``seconds``, in any order;
        before the first frame that one, after the last the last. Instants that show the same frame share one picture.

        Raises DataError naming file and reason: damaged, cut off, or no frames at all.
        """
        wanted = sorted(set(seconds))
        try:
            found = self._found(wanted, jump=not self._line.counted)
        except _LandedLateError:
            found = self._found(wanted, jump=False)
        return [found[one] for one in seconds]

    def _found(self, wanted: Sequence[float], *, jump: bool) -> dict[float, Image.Image]:
        found: dict[float, Image.Image] = {}
        last: tuple[float, Image.Image] | None = None
        for second, time, frame in self._walk(wanted, jump):
            if last is None or last[0] != time:
                last = time, self._picture(frame)
            found[second] = last[1]
        return found

    def _walk(self, wanted: Sequence[float], jump: bool) -> Iterator[tuple[float, float, VideoFrame]]:
        """``(wanted second, time of the frame, frame)``. Raises ``_LandedLateError`` only where it jumps."""
        if not jump:
            self._open()
        frames = self._landed(0.0) if jump else self._shown()
        shown, ahead = next(frames, None), next(frames, None)
        for second in wanted:
            if jump and shown is not None and (key := self._key_before(second, shown[0])) is not None:
                frames = self._landed(key)
                shown, ahead = next(frames, None), next(frames, None)
            while ahead is not None and ahead[0] <= second + _SAME:
                shown, ahead = ahead, next(frames, None)
            if shown is None:
                raise DataError(f"{self.path}: holds no frame that can be decoded")
            if shown[1].is_corrupt:
                if jump:
                    raise _LandedLateError
                raise DataError(f"{self.path}: the frame at {shown[0]:.2f} s is damaged")
            yield second, *shown

    def _key_before(self, second: float, here: float) -> float | None:
        """The key frame to jump to on the way from ``here`` to ``second``; None where decoding on is faster."""
        times, keys = self._line.times, self._line.keys
        place = bisect_right(keys, second + _SAME) - 1
        if place < 0:
            return None
        saved = bisect_right(times, keys[place]) - bisect_right(times, here)
        return keys[place] if saved >= _JUMP else None

    def _landed(self, key: float) -> Iterator[tuple[float, VideoFrame]]:
        """The frames from a key frame on. Raises ``_LandedLateError`` when the first one is no such, or comes later."""
        base = self._stream.time_base
        assert base is not None
        self._container.seek(self._line.zero + round(key / base), stream=self._stream)
        self._decoder.flush_buffers()
        frames = self._shown()
        first = next(frames, None)
        if first is None or first[0] > key + _SAME or first[1].pict_type != PictureType.I:
            raise _LandedLateError
        yield first
        yield from frames

    def _shown(self) -> Iterator[tuple[float, VideoFrame]]:
        """The frames from here on, each with its time."""
        stream, line = self._stream, self._line
        base = stream.time_base
        assert base is not None
        latest = -1.0
        number = 0
        for packet in self._container.demux(stream):
            for frame in self._decoder.decode(packet):
                if not isinstance(frame, VideoFrame):
                    continue
                if line.counted:
                    time = line.times[min(number, len(line.times) - 1)]
                elif frame.pts is None:
                    continue
                else:
                    time = float((frame.pts - line.zero) * base)
                number += 1
                if time > latest:  # one that steps back in time is never on the screen
                    latest = time
                    yield time, frame

    def _picture(self, frame: VideoFrame) -> Image.Image:
        if any(part.is_alpha for part in frame.format.components):
            layer = Image.fromarray(self._converter.reformat(frame, format="rgba").to_ndarray())
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        else:
            image = Image.fromarray(self._converter.reformat(frame, format="rgb24").to_ndarray())
        shape = float(self._stream.sample_aspect_ratio or 1)
        if 0.1 < shape < 10 and abs(shape - 1) > 0.01:  # its pixels are no squares
            image = image.resize((max(1, round(image.width * shape)), image.height), Image.Resampling.BICUBIC)
        turn = round(frame.rotation / 90) * 90
        return image.transpose(_TURNS[turn]) if turn in _TURNS else image


@contextmanager
def opened(path: Path) -> Iterator[Video]:
    """An opened video. Raises DataError naming file and reason, also for what goes wrong inside the block: missing,
    empty, no video, only sound, damaged, cut off, more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``."""
    require_file(path)
    try:
        with ExitStack() as stack:
            yield Video(path, stack)
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: the video cannot be decoded ({error.strerror})") from error


def load_video(path: Path) -> list[Image.Image]:
    """The first, the middle and the last frame, which proves that the video can be used. Raises DataError."""
    with opened(path) as video:
        return video.frames((0.0, video.seconds / 2, video.seconds))


def _picture_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first stream of pictures that is no cover of a recording."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kind = "only sound, no video" if container.streams.audio else "no video"
        raise DataError(f"{path}: holds {kind}")
    context = streams[0].codec_context
    if context is None:  # what the types of the library do not say
        raise DataError(f"{path}: the codec of the video is unknown")
    pixels = context.width * context.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels a frame; make the video smaller")
    return streams[0]


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """One thread: the same frames everywhere, and loaders run several videos side by side anyway."""
    context = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and context.name in _ALPHA_DECODERS:
        found = CodecContext.create(_ALPHA_DECODERS[context.name], "r")
        assert isinstance(found, VideoCodecContext)
        context = found
    context.thread_count = 1
    return context


def _timeline(path: Path, container: InputContainer, stream: VideoStream) -> _Timeline:
    """Read all packets of the stream. Raises DataError when the file ends before its header says."""
    base = stream.time_base
    found = [(p.pts, p.dts, p.is_keyframe, p.duration) for p in container.demux(stream) if p.size and not p.is_discard]
    if not found or base is None:
        raise DataError(f"{path}: holds no frames")
    tick, ticks = base.numerator, base.denominator  # fractions themselves are slow
    usual = float(1 / (stream.average_rate or 25))
    stamps = [pts for pts, _, _, _ in found if pts is not None]
    whole = len(set(stamps)) == len(found)
    counted = not whole or "avi" in container.format.name.split(",")
    if not counted:
        zero = min(stamps)
        times = [(pts - zero) * tick / ticks for pts in sorted(stamps)]
    else:
        decoded = [dts for _, dts, _, _ in found if dts is not None]
        zero = decoded[0] if decoded else 0
        steady = len(decoded) == len(found) and all(a < b for a, b in pairwise(decoded))
        times = [(dts - zero) * tick / ticks for dts in decoded] if steady else [n * usual for n in range(len(found))]
    keys = [] if counted else [(pts - zero) * tick / ticks for pts, _, is_key, _ in found if is_key and pts is not None]
    lasting = max(found, key=lambda one: -math.inf if one[0] is None else one[0])[3]
    length = times[-1] + (lasting * tick / ticks if lasting else usual * (len(times) > 1))
    _require_whole(path, container, length)
    return _Timeline(tuple(times), tuple(sorted(keys)), zero, length, counted)


def _require_whole(path: Path, container: InputContainer, length: float) -> None:
    """Where the pictures end long before the header says, something else must reach that far: sound, or subtitles."""
    promised = (container.duration or 0) / av.time_base
    allowed = max(_LACKING, _LACKING_SHARE * promised)
    if promised - length <= allowed:
        return
    container.seek(0)
    ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux() if p.pts is not None]
    there = max(ends, default=0.0) - (container.start_time or 0) / av.time_base
    if promised - there > allowed:
        raise DataError(f"{path}: cut off; {there:.1f} of {promised:.1f} s are there")
