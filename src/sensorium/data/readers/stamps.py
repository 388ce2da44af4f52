"""Tux Paint stamps: pictures, captions in 77 languages, captions read aloud by people, sound effects.

The files of one stamp lie side by side (Debian package tuxpaint-stamps-default 2022.06.04)::

    NAME.png                 the picture; NAME.svg beside it, or instead of it (165 stamps)
    NAME.txt                 first line: the English caption; then LANGUAGE.utf8=CAPTION
    NAME_desc_LANGUAGE.ogg   the caption read aloud; NAME_desc.ogg: in English
    NAME.ogg                 what the thing sounds like
    NAME_mirror.png          a drawn mirror picture; it has no caption of its own

One Item is one picture with one recording; the caption may be in another language than the speech, so that an
English text encoder meets French speech. Stamps that share a caption, a picture or a recording are one group.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium import reading
from sensorium.config import Section
from sensorium.data.files import cache_folder, read_text
from sensorium.data.grouping import merge, split_of
from sensorium.data.items import DataSet, Item
from sensorium.errors import DataError
from sensorium.files import new_folder

NAME = "stamps"
SUMMARY = "Tux Paint stamps: pictures, captions in 77 languages, speech of people in 14, sound effects"
LICENCE = "GPL-2"
PACKAGE = "tuxpaint-stamps-default"
_INSIDE = Path("usr/share/tuxpaint/stamps")
_SYSTEM = Path("/") / _INSIDE
_SOUNDS = (".ogg", ".wav")


class Options(Section):
    """Which captions and recordings are taken."""

    speech: tuple[str, ...] = Field(("fr",), description="Languages of the speech (en, fr, es, ca, ro, ru, bg, ...).")
    text: str = Field("en", min_length=1, description="Language of the captions; `same`: that of the speech.")
    sounds: Literal["speech", "effects", "both"] = Field(
        "speech", description="Recordings of words, of things, or both."
    )
    seed: int = Field(0, ge=0, description="Of the split.")


@dataclass
class _Stamp:
    """One picture and what belongs to it."""

    name: str  # path below the root without the ending
    image: Path
    captions: dict[str, str] = field(default_factory=dict)  # by language
    speech: dict[str, Path] = field(default_factory=dict)  # by language
    effect: Path | None = None


def read(root: Path | None, options: Options) -> DataSet:
    """Read the stamps below ``root``; None: the installed package, else a copy in the cache, fetched on first use.

    Raises DataError: no stamps there, a language that none of them has, nothing to fetch them with.
    """
    folder = _locate(root)
    stamps, left_out = _stamps(folder)
    if not stamps:
        raise DataError(f"{folder}: no stamps (PNG pictures with captions) in it")
    _require_languages(stamps, options, folder)
    groups = _groups(stamps)
    items = tuple(item for stamp in stamps for item in _items(stamp, groups[stamp.name], options))
    return DataSet(NAME, folder, LICENCE, items, (*left_out, _summary(stamps, items, options)))


def _locate(root: Path | None) -> Path:
    if root is None:
        return _SYSTEM if _SYSTEM.is_dir() else fetch_stamps(cache_folder(PACKAGE))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should hold the stamps of Tux Paint (package {PACKAGE})")
    return root / _INSIDE if (root / _INSIDE).is_dir() else root


def fetch_stamps(folder: Path) -> Path:
    """The stamps below ``folder``, downloaded (161 MB) and unpacked on first use, without root, by Debian's tools.

    Raises DataError that says what to install where those tools are missing or fail.
    """
    stamps = folder / _INSIDE
    if stamps.is_dir():
        return stamps
    advice = f"install the package {PACKAGE} (Debian, Ubuntu: sudo apt install {PACKAGE}) or give its folder as root"
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise DataError(f"the stamps of Tux Paint are not here, and there is no apt to fetch them: {advice}")
    try:
        with new_folder(folder) as unpacked, tempfile.TemporaryDirectory() as name:
            # apt drops to the user _apt, who may not write here, and would warn about it
            _call(["apt-get", "-o", "APT::Sandbox::User=root", "download", PACKAGE], Path(name), advice)
            for archive in Path(name).glob("*.deb"):
                _call(["dpkg-deb", "-x", str(archive), str(unpacked)], Path(name), advice)
    except DataError:  # another process may have fetched them at the same time
        if not stamps.is_dir():
            raise
    return stamps


def _call(command: Sequence[str], folder: Path, advice: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DataError(f"{command[0]} cannot fetch the stamps ({lines[-1]}): {advice}")


def _stamps(root: Path) -> tuple[list[_Stamp], list[str]]:
    """Every picture with a caption, and a line about what was left out."""
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    captions = {name.removesuffix(".txt"): _captions(path) for name, path in files.items() if name.endswith(".txt")}
    stamps: dict[str, _Stamp] = {}
    for name, path in files.items():
        stem = name.removesuffix(".png")
        base = stem.removesuffix("_mirror")
        if path.suffix == ".png" and base in captions:
            stamps[stem] = _Stamp(stem, path, captions[base])
    drawn = {name.removesuffix(".svg") for name in files if name.endswith(".svg")} - stamps.keys()
    of_drawn = orphans = 0
    for name, path in files.items():
        if path.suffix in _SOUNDS:
            stem = name.removesuffix(path.suffix).removesuffix(path.suffix)  # one is named NAME_desc_da.ogg.ogg
            subject, mark, language = stem.rpartition("_desc")
            if not _attach(stamps, subject or stem, path, (language.lstrip("_") or "en") if mark else None):
                of_drawn += (subject or stem) in drawn
                orphans += (subject or stem) not in drawn
    notes = []
    if drawn:
        notes.append(
            f"stamps: {len(drawn)} pictures left out that are there as SVG only, and their {of_drawn} recordings"
        )
    if orphans:
        notes.append(f"stamps: {orphans} recordings left out that belong to no picture")
    return list(stamps.values()), notes


def _captions(path: Path) -> dict[str, str]:
    """Captions by language: ``en`` is the first line, the others are ``LANGUAGE.utf8=CAPTION``."""
    first, *lines = read_text(path).splitlines() or [""]
    found = {"en": " ".join(first.split())}
    for line in lines:
        language, mark, caption = line.partition(".utf8=")
        if mark:
            found[language.strip()] = " ".join(caption.split())
    return {language: caption for language, caption in found.items() if caption}


def _attach(stamps: dict[str, _Stamp], subject: str, path: Path, language: str | None) -> bool:
    """Give a recording to its stamp and to the mirror picture; ``language`` None: an effect. False: no such stamp."""
    owners = [stamps[owner] for owner in (subject, f"{subject}_mirror") if owner in stamps]
    for stamp in owners:
        if language is None:
            stamp.effect = path
        else:
            stamp.speech[language] = path
    return bool(owners)


def _groups(stamps: Sequence[_Stamp]) -> dict[str, str]:
    """Group by name of stamp, the same whatever the options ask for."""
    files = {path for stamp in stamps for path in (stamp.image, stamp.effect, *stamp.speech.values()) if path}
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(files, pool.map(_digest, files), strict=True))
    keys = []
    for stamp in stamps:
        sounds = [*stamp.speech.values(), *([stamp.effect] if stamp.effect else [])]
        caption = ("caption", stamp.captions["en"].casefold()) if "en" in stamp.captions else stamp.name
        subject = stamp.name.removesuffix("_mirror")
        keys.append({subject, caption, digests[stamp.image], *(digests[sound] for sound in sounds)})
    return {stamp.name: stamps[first].name for stamp, first in zip(stamps, merge(keys), strict=True)}


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(reading.read_bytes(path)).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _require_languages(stamps: Sequence[_Stamp], options: Options, folder: Path) -> None:
    spoken = defaultdict[str, int](int)
    for language in (language for stamp in stamps for language in stamp.speech):
        spoken[language] += 1
    written = {language for stamp in stamps for language in stamp.captions}
    missing = [language for language in options.speech if language not in spoken]
    if missing and options.sounds != "effects":
        there = ", ".join(f"{name} {count}" for name, count in sorted(spoken.items(), key=lambda pair: -pair[1]))
        raise DataError(f"{folder}: no speech in {', '.join(missing)}; there is {there or 'none at all'}")
    if options.text != "same" and options.text not in written:
        raise DataError(f"{folder}: no captions in {options.text!r}; there are {', '.join(sorted(written))}")


def _items(stamp: _Stamp, group: str, options: Options) -> Iterator[Item]:
    """An Item for each recording asked for; a picture without one gives an Item without sound."""
    found: list[tuple[str, str, Path | None]] = []  # ending of the id, language, recording
    if options.sounds != "effects":
        found += [
            (f"#{language}", language, stamp.speech[language])
            for language in options.speech
            if language in stamp.speech
        ]
    if options.sounds != "speech" and stamp.effect is not None:
        found.append(("#effect", "", stamp.effect))
    for ending, language, sound in found or [("", "", None)]:
        wanted = (language or "en") if options.text == "same" else options.text
        kind = {"sound": "speech" if language else "effect"} if sound else {}
        yield Item(
            id=stamp.name + ending,
            group=group,
            split=split_of(group, options.seed),
            text=stamp.captions.get(wanted),
            image=stamp.image,
            audio=sound,
            labels=tuple(Path(stamp.name).parts[:-1]),
            meta={"language": wanted, **kind, **({"speech": language} if language else {})},
        )


def _summary(stamps: Sequence[_Stamp], items: Sequence[Item], options: Options) -> str:
    sounds = sum(item.audio is not None for item in items)
    silent = sum(item.text is None for item in items)
    without = f", {silent} without a caption in {options.text!r}" if silent else ""
    groups = len({item.group for item in items})
    return f"stamps: {len(stamps)} pictures of {groups} subjects, {len(items)} items, {sounds} with sound{without}"
