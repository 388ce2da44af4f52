"""Pictures and sounds made to do harm: one line, no code run, no memory filled, no process ended."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hostile import NO_FILES, png, soon, wav
from PIL import Image, features

from sensorium.data import manage, media, readers
from sensorium.data.media import load_audio, load_image
from sensorium.engine.report_media import read_picture, read_sound
from sensorium.errors import DataError

PIXELS = b"\0\1\2\3\4\5\6" * 2  # 2 x 2
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
TURNED = struct.pack("<HHIHHII", 0x4949, 42, 8, 1, 0x0112, 4, 0x7FFFFFFF)  # an EXIF field of eight gigabytes


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (5, 7)) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def refused(load: Callable[[Path], object], path: Path, reason: str) -> None:
    with soon(), pytest.raises(DataError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(100_000, 100_000, b""), "more than 89,478,485 pixels"),
        (png(13_000, 13_000, b""), "more than 89,478,485 pixels"),  # Pillow only warns of it
        (png(2**31 - 1, 1, b""), "more than 89,478,485 pixels"),
        (b"P6 100000 100000 255\n", "more than 89,478,485 pixels"),
        (png(9_000, 9_000, b""), "cannot be decoded"),
        (png(0, 5, b""), "not a picture"),
        (b"P6 0 0 255\n", "not a picture"),
        (b"GIF89a\5\0\5\0\0\0\0;", "not a picture"),  # an animation without a frame
        (b"GIF89a\5\0\5\0\0\0\0" + b"noise" * 20, "cannot be decoded|not a picture"),
        (png(2, 2, PIXELS, (b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000)))), "cannot be decoded"),
        (encoded("JPEG", size=(300, 300))[:500], "cannot be decoded"),
        (encoded("WEBP")[:30], "cannot be decoded"),
        (EPS, "not a picture"),
        (b"%PDF-1.4\n%text", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (encoded("TIFF", "F"), "expected 8 or 16 bits"),
        (b"\0" * 5000, "not a picture|cannot be decoded"),
    ],
)
def test_a_hostile_picture_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    refused(load_image, path, reason)
    with soon():
        picture = read_picture(path)
    assert picture is None or content == encoded("TIFF", "F")


@pytest.mark.parametrize(
    "content",
    [
        encoded("JPEG"),  # under the name of a PNG
        encoded("JPEG", "CMYK"),
        encoded("TIFF", "CMYK"),
        encoded("TIFF", "LAB"),
        encoded("PNG", "P"),
        encoded("PNG", "LA"),
        encoded("PNG", "I;16"),
        encoded("GIF", "P"),
        encoded("BMP"),
        encoded("PPM"),
        png(5, 7, bytes(16 * 7), (b"acTL", bytes(8))),  # animated, with zero frames
        png(5, 7, bytes(16 * 7), (b"acTL", b"\x7f\xff\xff\xff" + bytes(4))),
        png(5, 7, bytes(16 * 7), (b"eXIf", TURNED)),
        png(5, 7, bytes(200_000_000)),  # pixels for two million such pictures
    ],
)
def test_an_odd_picture_is_read_without_a_warning(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).size == (5, 7)
        picture = read_picture(path)
    assert picture is not None
    assert (picture.width, picture.height) == (5, 7)


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For EPS, Pillow calls Ghostscript, which is a language with files; the twin shows that it would."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\nmkdir -p {tmp_path}/marker\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    path = tmp_path / "a.png"
    path.write_bytes(EPS)
    refused(load_image, path, "not a picture")
    assert read_picture(path) is None
    assert not (tmp_path / "marker").exists()
    with pytest.raises((OSError, ValueError)), Image.open(path) as opened:
        opened.load()
    assert (tmp_path / "marker").exists()


def test_every_format_is_there() -> None:
    assert features.check("avif"), "Pillow without AVIF"
    Image.init()
    assert set(media.reading.PICTURE_FORMATS) <= Image.OPEN.keys()


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def squeezed(millions: int) -> bytes:
    """Millions of samples of silence in a small file."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 16000, 1, format="FLAC") as sound:
        for _ in range(millions):
            sound.write(np.zeros(1_000_000, np.int16))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav(bytes(3200), says=10**6), "truncated; 3200 of 1000000 bytes"),
        (wav(bytes(3200), channels=0), "cannot be decoded"),
        (wav(bytes(3200), channels=65535, bits=8), "cannot be decoded"),
        (wav(bytes(3200), rate=0), "cannot be decoded"),
        (wav(bytes(3200), rate=1), "1 Hz; allowed are 1,000 to 768,000 Hz"),
        (wav(bytes(3200), rate=7), "7 Hz; allowed"),
        (wav(bytes(3200), rate=2**31 - 1), "2,147,483,647 Hz; allowed"),
        (wav(bytes(3200), rate=2**32 - 1), "cannot be decoded"),
        (wav(bytes(20), rate=768_000), "zero length"),  # less than one sample at 16 kHz
        (wav(bytes(3200), bits=0), "cannot be decoded"),
        (wav(bytes(3200), kind=99), "cannot be decoded"),
        (wav(b""), "zero length"),
        (wav(floats(*[float("nan")] * 100), kind=3, bits=32), "NaN or infinite"),
        (wav(floats(*[float("inf")] * 100), kind=3, bits=32), "NaN or infinite"),
        (wav(floats(*[3e38] * 200), kind=3, bits=32, channels=2), "or overflows"),
        (wav(struct.pack("<100d", *[1e300] * 100), kind=3, bits=64), "NaN or infinite"),
        (b"OggS" + b"noise" * 200, "cannot be decoded"),
        (b"\xff\xfb\x90\0" * 2000, "cannot be decoded"),
        (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100), "cannot be decoded"),
        (b"FORM\x7f\xff\xff\xffAIFFCOMM" + bytes(200), "cannot be decoded"),
    ],
)
def test_a_hostile_sound_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    refused(load_audio, path, reason)
    with soon():
        read_sound(path)  # NaN used to end the whole process, in the encoder of MP3


@pytest.mark.parametrize("says", [2**32 - 1, 0xFFFFF000, 2**31 - 1])
def test_a_length_that_nobody_knew_is_not_believed(tmp_path: Path, says: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(bytes(3200), says=says))
    assert len(load_audio(path)) == 1600


def test_a_sound_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(squeezed(5))
    assert path.stat().st_size < 100_000
    assert len(load_audio(path)) == 5_000_000
    assert len(load_audio(path, max_seconds=1)) == 16_000
    monkeypatch.setattr(media, "_MOST_SAMPLES", 3_000_000)
    refused(load_audio, path, "longer than 3,000,000 samples")
    assert len(load_audio(path, max_seconds=1)) == 16_000


def test_a_file_that_claims_to_be_raw_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(wav(bytes(3200)))
    refused(load_audio, path, "cannot be decoded")
    assert read_sound(path) is None


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    (tmp_path / "i").mkdir()
    path = tmp_path / "i" / "a.png"
    NO_FILES[kind](path)
    refused(load_image, path, r"not a file|cannot be read|empty file")
    refused(load_audio, path, r"not a file|cannot be read|empty file")
    (tmp_path / "manifest.jsonl").write_text('{"id": "1", "split": "train", "image": "i/a.png", "audio": "i/a.png"}\n')
    dataset = readers.read("native", tmp_path)
    with soon():
        assert read_picture(path) is None
        assert read_sound(path) is None
        [problem] = manage.verify_dataset(dataset).problems
    assert str(path) in problem


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    refused(load_image, tmp_path / name, "cannot be read")
    refused(load_audio, tmp_path / name, "cannot be read")
    assert read_picture(tmp_path / name) is None
    assert read_sound(tmp_path / name) is None
