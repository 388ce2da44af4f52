"""Decoding of pictures and recordings; whatever is wrong with a file becomes one line that names it and the reason."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from PIL import Image, UnidentifiedImageError

from sensorium import reading
from sensorium.errors import DataError

Samples: TypeAlias = npt.NDArray[np.float32]

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WARNINGS = threading.Lock()  # warnings.catch_warnings changes the whole process
_WAV_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED_WAV = 0x7FFFF000  # sizes from here on are what writers to a pipe put in place of the unknown length
_PIECE = 1 << 20  # frames read at a time
_RATES = (1000, 768_000)  # Hz; resampling from one outside would make gigabytes of a small file, or nothing at all
_MOST_SAMPLES = 1 << 29  # 2 GiB; 9 hours at 16 kHz. Silence packs so well that a small file may hold years of it
_MP3_SLACK = 2 * 1152  # encoder delay and padding: MP3 headers may promise up to two frames more than there are


def load_image(path: Path) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says, transparency composited on white.

    Of an animation the first frame. Sixteen-bit grey is scaled to eight bits. Raises DataError naming file and
    reason: missing, empty, truncated, not a picture, of a format not in ``reading.PICTURE_FORMATS``, more pixels than
    ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    require_file(path)
    try:
        with reading.open_plain(path) as file:
            image, orientation = _open_image(file)
            image.load()
            rgb = to_rgb(image)
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a picture in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make the picture smaller") from None
    except reading.PICTURE_ERRORS as error:
        raise DataError(f"{path}: the picture cannot be decoded ({_reason(error)})") from error
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb


def _open_image(file: BinaryIO) -> tuple[Image.Image, int]:
    """Header and EXIF orientation. Only this part of Pillow warns, so only it holds the lock."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(file, formats=reading.PICTURE_FORMATS)
        return image, image.getexif().get(_ORIENTATION_TAG, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """As ``load_image``, but not turned. Raises ValueError for pixels of 32 bits."""
    if image.mode.startswith("I;16"):  # convert() would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of kind {image.mode!r}; expected 8 or 16 bits a channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def load_audio(path: Path, rate: int = 16000, max_seconds: float | None = None) -> Samples:
    """The recording as mono float32 ``[samples]`` at ``rate`` Hz; channels are averaged.

    ``max_seconds`` cuts it, and no more than that is read. Raises DataError naming file and reason: missing, empty,
    of zero length, truncated, not a sound, of an absurd rate or length, NaN or infinite samples. An Ogg stream cut
    between two of its pages cannot be told from a shorter one.
    """
    require_file(path)
    try:
        with soundfile.SoundFile(path) as sound:
            _require_whole_wav(path, sound.extra_info)
            source_rate = sound.samplerate
            if not _RATES[0] <= source_rate <= _RATES[1]:
                raise DataError(f"{path}: {source_rate:,} Hz; allowed are {_RATES[0]:,} to {_RATES[1]:,} Hz")
            limit = sound.frames if max_seconds is None else round(max_seconds * source_rate)
            expected = min(sound.frames, limit)
            mono = _read_mono(path, sound, expected)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a file called .raw has no header to look at
        reason = _reason(error).removeprefix(f"Error opening {str(path)!r}: ")
        raise DataError(f"{path}: the sound cannot be decoded ({reason})") from error
    if len(mono) + _MP3_SLACK < expected:
        raise DataError(f"{path}: truncated; {len(mono)} of {expected} samples are there")
    if len(mono) and source_rate != rate:
        mono = soxr.resample(mono, source_rate, rate).astype(np.float32, copy=False)
    if len(mono) == 0:
        raise DataError(f"{path}: the sound has zero length")
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: the sound holds NaN or infinite samples, or overflows")
    return mono


def _read_mono(path: Path, sound: soundfile.SoundFile, count: int) -> Samples:
    """Up to ``count`` samples, the mean of the channels, in pieces: a damaged header may promise terabytes."""
    pieces = [np.zeros(0, np.float32)]
    done = 0
    while done < count:
        if done > _MOST_SAMPLES:
            raise DataError(f"{path}: longer than {_MOST_SAMPLES:,} samples; cut it into pieces")
        piece = sound.read(min(count - done, _PIECE), dtype="float32", always_2d=True)
        if len(piece) == 0:
            break
        with np.errstate(over="ignore"):  # found and said by the caller
            pieces.append(piece.mean(axis=1, dtype=np.float32))
        done += len(piece)
    return np.concatenate(pieces)


def require_file(path: Path) -> None:
    """Raise DataError when this is no plain file, or an empty one: a pipe would be waited for."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not path.is_file():
        raise DataError(f"{path}: not a file")
    if size == 0:
        raise DataError(f"{path}: empty file")


def _require_whole_wav(path: Path, info: str) -> None:
    """libsndfile shortens a cut WAV silently and says so only in its log."""
    if found := _WAV_DATA.search(info):
        promised, there = int(found[1]), int(found[2])
        if there < promised < _STREAMED_WAV:
            raise DataError(f"{path}: truncated; {there} of {promised} bytes of sound are there")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
