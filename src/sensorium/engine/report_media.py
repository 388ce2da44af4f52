"""Pictures, sounds and videos of the report as small ``data:`` addresses, the same bytes for the same file."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sensorium import reading
from sensorium.engine.report_video import read_video

SMALL, LARGE = (160, 160), (1280, 2560)  # width and height at most, in pixels
SOUND_RATE = 16_000
SOUND_SECONDS = 10
WAVE_BARS = 48


@dataclass(frozen=True)
class Sound:
    """``peaks`` ``[WAVE_BARS]`` in 0..1: the loudness over time, for the drawing. ``seconds`` of the whole file."""

    uri: str
    seconds: float
    peaks: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Film:
    """``seconds``: that the excerpt plays."""

    uri: str
    width: int
    height: int
    seconds: float


class Media:
    """The pictures, sounds and videos of one run. Each file is read once; ``unreadable`` collects those that could not
    be."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.unreadable: dict[str, None] = {}
        self._pictures: dict[tuple[str, tuple[int, int]], Picture | None] = {}
        self._sounds: dict[str, Sound | None] = {}
        self._films: dict[str, Film | None] = {}

    def picture(self, path: str, limits: tuple[int, int] = SMALL) -> Picture | None:
        """The picture at ``path`` (absolute, or relative to the run folder); None when it cannot be read."""
        if (path, limits) not in self._pictures:
            self._pictures[path, limits] = read_picture(self.run / path, limits)
            self._note(path, self._pictures[path, limits] is None)
        return self._pictures[path, limits]

    def sound(self, path: str) -> Sound | None:
        """The recording at ``path`` (absolute, or relative to the run folder); None when it cannot be read."""
        if path not in self._sounds:
            self._sounds[path] = read_sound(self.run / path)
            self._note(path, self._sounds[path] is None)
        return self._sounds[path]

    def film(self, path: str) -> Film | None:
        """The video at ``path`` (absolute, or relative to the run folder); None when it cannot be read."""
        if path not in self._films:
            found = read_video(self.run / path)
            self._films[path] = None if found is None else Film(_address("video/mp4", found[0]), *found[1:])
            self._note(path, found is None)
        return self._films[path]

    def _note(self, path: str, bad: bool) -> None:
        if bad:
            self.unreadable[path] = None


def read_picture(path: Path, limits: tuple[int, int] = SMALL) -> Picture | None:
    """A picture on white, within ``limits`` of width and height; None when it cannot be read."""
    try:
        with reading.open_plain(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=reading.PICTURE_FORMATS)
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *reading.PICTURE_ERRORS):
        return None
    image.thumbnail(limits, Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", image.size, "white")
    data = io.BytesIO()
    Image.alpha_composite(ground, image).convert("RGB").save(data, "WEBP", quality=82, method=4)
    return Picture(_address("image/webp", data.getvalue()), image.width, image.height)


def read_sound(path: Path) -> Sound | None:
    """The first ``SOUND_SECONDS`` as mono MP3 at 16 kHz; None when it cannot be read, or holds what is no sound.

    MP3 and not Ogg: every browser plays it, and Ogg streams carry a random serial number.
    """
    try:
        reading.open_plain(path).close()  # a pipe would never answer
        with soundfile.SoundFile(path) as file:
            seconds, rate = file.frames / file.samplerate, file.samplerate
            if not 1000 <= rate <= 768_000:
                return None
            samples = file.read(SOUND_SECONDS * rate, dtype="float32", always_2d=True).clip(-1, 1).mean(axis=1)
    except (OSError, TypeError, soundfile.LibsndfileError):  # TypeError: a file called .raw
        return None
    if rate != SOUND_RATE and samples.size:
        samples = soxr.resample(samples, rate, SOUND_RATE)
    if samples.size == 0 or not np.isfinite(samples).all():  # the encoder ends the process over NaN
        return None
    data = io.BytesIO()
    soundfile.write(data, samples, SOUND_RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.7)
    return Sound(_address("audio/mpeg", data.getvalue()), seconds, _peaks(samples))


def _peaks(samples: NDArray[np.float32]) -> tuple[float, ...]:
    """Root mean square of ``WAVE_BARS`` equal stretches, relative to the loudest."""
    loud = [
        float(np.sqrt(np.mean(np.square(part)))) if part.size else 0.0 for part in np.array_split(samples, WAVE_BARS)
    ]
    top = max(loud)
    return tuple(value / top if top > 0 else 0.0 for value in loud)


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
