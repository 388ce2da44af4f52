"""Speech from text through espeak-ng (package espeakng-loader): synthetic, and to be called so.

The library keeps one voice for a whole process, so it runs in processes of its own: ``python -m`` this module reads
jobs as JSON from standard input. API: espeak-ng ``src/include/espeak-ng/speak_lib.h``.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from sensorium.data.files import package_folder, package_version
from sensorium.data.grouping import draw
from sensorium.errors import DataError, DiskError
from sensorium.files import make_folder, new_file, remove_leftovers

RATE = 16000
_PACKAGE, _DISTRIBUTION = "espeakng_loader", "espeakng-loader"
_HEADER_BYTES = 44  # of a WAV file; one that is not longer holds no sound
_TEXTS_PER_PROCESS = 300  # below this, starting one more process costs more than it saves
# From speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakINITIALIZE_DONT_EXIT, espeakCHARS_UTF8, espeakRATE.
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _WORDS_PER_MINUTE = 2, 0x8000, 1, 1


@dataclass(frozen=True)
class Voice:
    """``name``: a language of espeak-ng, with a variant if wanted (``en-us+f3``). ``speed``: words a minute."""

    name: str
    speed: int = 160


@dataclass(frozen=True)
class Utterance:
    """A text and the voice that says it."""

    text: str
    voice: Voice


class _VoiceRecord(ctypes.Structure):
    """``espeak_VOICE``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


def pick(text: str, voices: Sequence[Voice], seed: int) -> Utterance:
    """One of the voices, drawn by a hash of the text."""
    return Utterance(text, voices[int(draw(seed, "voice", text) * len(voices))])


def speak(utterances: Sequence[Utterance], folder: Path, workers: int | None = None) -> list[Path]:
    """A recording of each utterance: WAV, mono, 16 kHz, 16 bit, in ``folder``; what is there already is taken.

    The name of a file is the digest of text, voice and version; each appears by one rename. ``workers`` processes
    share the work (None: as many as pay). Raises DataError: package missing, unknown voice, a text without sound.
    """
    version = package_version(_DISTRIBUTION)
    paths = [folder.absolute() / _file_name(one, version) for one in utterances]
    wanted = {path: one for path, one in zip(paths, utterances, strict=True) if not _is_there(path)}
    if wanted:
        make_folder(folder)
        remove_leftovers(folder)
        jobs = [{"path": str(path), **asdict(one)} for path, one in wanted.items()]
        count = workers or min(os.cpu_count() or 1, 1 + len(jobs) // _TEXTS_PER_PROCESS)
        package = package_folder(_PACKAGE)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda share: _run_process(package, share), [jobs[n::count] for n in range(count)]))
    return paths


def _file_name(one: Utterance, version: str) -> str:
    text = "\x1f".join([version, str(RATE), one.voice.name, str(one.voice.speed), one.text])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.wav"


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > _HEADER_BYTES


def _run_process(package: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Run one process over its share. Raises DataError with the line it left, or its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=json.dumps({"package": str(package), "jobs": jobs}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DataError(f"espeak-ng: {lines[-1]}")


class _Library:
    """One copy of the library, unloaded at the end of the block.

    It carries the phase of its waves from one text to the next, even across ``espeak_Terminate``; only a fresh copy
    makes a recording a function of its text alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)  # kept here: the library holds only its address

    def __enter__(self) -> _Library:
        self._library = ctypes.CDLL(str(self._path))
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, b".", _DONT_EXIT)
        if self._rate <= 0:
            raise DataError(f"the voices in {self._path.parent} cannot be opened")
        self._library.espeak_ng_SetRandSeed(1)  # of the breath in some voices
        self._library.espeak_SetSynthCallback(self._callback)
        return self

    def __exit__(self, *_: object) -> None:
        self._library.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(self._library._handle)
        else:
            _ctypes.dlclose(self._library._handle)

    def voices(self) -> dict[str, bytes]:
        """Identifier of a voice by language code."""
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceRecord))
        found = self._library.espeak_ListVoices(None)
        voices: dict[str, bytes] = {}
        number = 0
        while found[number]:
            record = found[number].contents
            language = record.languages[1:].decode()  # one byte of priority stands before it
            voices.setdefault(language, record.identifier)
            number += 1
        return voices

    def _take(self, samples: Any, count: int, events: int | None) -> int:
        del events
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: bytes, speed: int) -> np.ndarray:
        """float32 ``[samples]`` at 16 kHz; empty if there is nothing to be heard."""
        if self._library.espeak_SetVoiceByName(voice) != 0:
            raise DataError(f"the voice {voice.decode()!r} cannot be used")
        self._library.espeak_SetParameter(_WORDS_PER_MINUTE, speed, 0)
        self._library.espeak_Synth(text.encode(), 0, 0, 0, 0, _UTF8, None, None)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        sound: np.ndarray = soxr.resample(samples.astype(np.float32) / 2**15, self._rate, RATE)
        return sound.clip(-1, 1)


def _voice_name(voice: str, languages: Mapping[str, bytes], variants: Collection[str]) -> bytes:
    """The library's own name of a voice; it would ignore a variant that it does not know."""
    language, _, variant = voice.partition("+")
    if language not in languages:
        raise DataError(f"no voice {language!r}; there are {', '.join(sorted(languages))}")
    if variant and variant not in variants:
        raise DataError(f"no variant {variant!r} of a voice; there are {', '.join(sorted(variants))}")
    return languages[language] + (b"+" + variant.encode() if variant else b"")


def _say_all(package: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
    os.chdir(package)  # espeak-ng cuts the path of its data at 160 bytes; "." always fits
    libraries = [path for path in sorted(package.iterdir()) if path.suffix in (".so", ".dylib", ".dll")]
    if not libraries:
        raise DataError(f"no library in {package}")
    with _Library(libraries[0]) as library:
        languages = library.voices()
    variants = {path.name for path in (package / "espeak-ng-data" / "voices" / "!v").iterdir()}
    for job in jobs:
        voice = _voice_name(job["voice"]["name"], languages, variants)
        with _Library(libraries[0]) as library:
            sound = library.say(job["text"], voice, job["voice"]["speed"])
        if not sound.any():
            raise DataError(f"made no sound of {job['text']!r} with the voice {job['voice']['name']!r}")
        with new_file(Path(job["path"])) as path:
            soundfile.write(path, sound, RATE, subtype="PCM_16", format="WAV")


def _main() -> int:
    order = json.load(sys.stdin)
    try:
        _say_all(Path(order["package"]), order["jobs"])
    except (DataError, DiskError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
