"""Decoding of pictures and sounds: right values, and one clear line for whatever is wrong with a file."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from sensorium.data.media import load_audio, load_image
from sensorium.errors import DataError

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def test_a_picture_comes_back_pixel_by_pixel(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), rgb)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path: Path, rgb: np.ndarray, orientation: int, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), np.rot90(rgb, turned))


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 1), (*RED, 0))
    clear.putpixel((1, 0), (*RED, 255))
    clear.save(tmp_path / "a.png")
    assert [load_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]
    assert clear.convert("RGB").getpixel((0, 0)) == RED  # what the plain conversion would show


def test_a_palette_with_transparency_does_not_warn(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert [load_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 255)]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0x40, 0xFF]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), RED).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (2, 2))])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == RED


def test_odd_metadata_does_not_warn_and_filters_stay(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x09\x00")
    before = list(warnings.filters)
    load_image(tmp_path / "a.jpg")  # warnings are errors here
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "empty file"), (b"no picture" * 9, "not a picture"), ("cut", "cannot be decoded")],
)
def test_a_broken_picture_is_one_line(
    tmp_path: Path, rgb: np.ndarray, content: bytes | str | None, reason: str
) -> None:
    path = tmp_path / "a.png"
    if content == "cut":
        Image.fromarray(rgb.repeat(20, 0).repeat(20, 1)).save(path, compress_level=0)
        path.write_bytes(path.read_bytes()[:3000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [30, 10])  # Pillow warns of the one and refuses the other
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    load_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=f"more than {limit} pixels"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_sounds_are_resampled_to_mono(tmp_path: Path, ending: str) -> None:
    stereo = np.stack([tone(44100), np.zeros(44100, np.float32)], axis=1)
    soundfile.write(tmp_path / f"a.{ending}", stereo, 44100)
    sound = load_audio(tmp_path / f"a.{ending}")
    assert sound.dtype == np.float32
    assert sound.shape == (16000,)
    spectrum = np.abs(np.fft.rfft(sound))
    assert spectrum.argmax() == 440  # 1 Hz a bin, for it is one second
    assert abs(sound[4000:12000]).max() == pytest.approx(0.25, abs=0.01)  # the mean of 0.5 and 0; codecs lose some


def test_max_seconds_cuts(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, 2), 16000, subtype="FLOAT")
    whole, part = load_audio(tmp_path / "a.wav"), load_audio(tmp_path / "a.wav", max_seconds=0.5)
    assert len(whole) == 32000
    assert np.array_equal(part, whole[:8000])
    assert len(load_audio(tmp_path / "a.wav", rate=8000, max_seconds=0.5)) == 4000


def test_a_sound_of_zero_length_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(DataError, match=r"a\.wav: the sound has zero length"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    sound = tone(16000)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    load_audio(tmp_path / "a.wav")
    sound[5] = value
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match="NaN or infinite"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_a_cut_sound_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(16000, 3), 16000)
    load_audio(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"truncated|cannot be decoded"):
        load_audio(path)


def test_a_wav_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    """Its header promises the largest size, as nobody knew the length yet."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16000), 16000)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(bytes(data))
    assert len(load_audio(path)) == 16000


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"", "empty"), (b"text" * 50, "decoded")])
def test_a_broken_sound_is_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
