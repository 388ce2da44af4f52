"""VoxCeleb 1 and 2 (Nagrani 2017, Chung 2018): speech of well-known people, with their faces where they are there.

The folder as the archives unpack it, one edition or both, a folder more or less (``dev``, ``test``) above each part::

    vox1_meta.csv        TAB: VoxCeleb1 ID, VGGFace1 ID, Gender, Nationality, Set
    vox2_meta.csv        TAB or comma: VoxCeleb2 ID, VGGFace2 ID, Gender, Set
    wav/ID/VIDEO/N.wav   utterances; or aac/ID/VIDEO/N.m4a as VoxCeleb 2 has them, to which WAV is preferred
    faces/ID/**/*.jpg    optional; ID or the VGGFace ID, also in unzippedFaces/
    iden_split.txt       optional: 1|2|3 ID/VIDEO/N.wav
    veri_test.txt        optional: 0|1 and two utterances

These are biometric data of people: use them for what they were published for, and never publish them again. Splits are
by speaker, so that nobody is heard in two: ``test`` is the Set of the table, ``val`` is drawn from the others. One Item
is one utterance, with a face of its speaker where there is one; its group is the speaker.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.grouping import draw
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.errors import DataError

NAME = "voxceleb"
SUMMARY = "VoxCeleb 1 and 2: utterances of well-known people by speaker, with faces where they are there"
LICENCE = "CC BY 4.0; biometric data of people, never to be published again"
DEFAULT_ROOT = Path("data/voxceleb")
FULL = {1: (1251, 153_516), 2: (6112, 1_128_246)}  # speakers and utterances by edition
_COLUMNS = {
    1: ("VoxCeleb1 ID", "VGGFace1 ID", "Gender", "Nationality", "Set"),
    2: ("VoxCeleb2 ID", "VGGFace2 ID", "Gender", "Set"),
}
_TREES, _FACES = ("wav", "aac"), ("faces", "unzippedFaces")
_SPEAKER = re.compile(r"id[0-9]{5}")
_UTTERANCE = re.compile(r"(id[0-9]{5})/([^/\s]+)/([0-9]{5})\.(?:wav|m4a)")
_ENDINGS = (".wav", ".m4a")  # the first is preferred
_DEPTH = 3


class Options(Section):
    """What is read."""

    faces: bool = Field(True, description="Give each utterance a face of its speaker where there is one.")
    val_share: float = Field(0.05, ge=0, lt=1, description="Share of the speakers outside of test that are val.")
    seed: int = Field(0, ge=0, description="Of the speakers that are val.")


@dataclass(frozen=True, slots=True)
class Speaker:
    """A row of a table. ``face``: their name in VGGFace. ``tested``: whether their Set is test."""

    edition: int
    face: str
    gender: str
    tested: bool


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and line, or folder, of what is damaged or unknown."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "VoxCeleb has to be asked for; `sensorium data list` says where")
    speakers = _speakers(root)
    found: dict[str, Path] = {}
    notes: list[str] = []
    for tree in _folders(root, _TREES):
        _collect(tree, speakers, found, notes)
    if not found:
        raise DataError(f"VoxCeleb in {root}: the tables are there, but no utterances (wav/ID/VIDEO/N.wav)")
    faces = _faces(root, speakers) if options.faces else {}
    items = tuple(_items(found, speakers, faces, options))
    notes = [*_notes(items, speakers), *notes, *_lists(root, speakers, found)]
    return DataSet(NAME, root, LICENCE, items, tuple(notes))


def identification(path: Path) -> list[tuple[int, str]]:
    """``iden_split.txt``: part (1 train, 2 val, 3 test) and utterance ``ID/VIDEO/N`` of each line. Raises DataError."""
    return [(int(part), _utterance(path, line, name)) for line, part, (name,) in _fields(path, "123", 1)]


def verification(path: Path) -> list[tuple[bool, str, str]]:
    """``veri_test.txt``: whether two utterances ``ID/VIDEO/N`` are of one speaker. Raises DataError."""
    found = []
    for line, mark, names in _fields(path, "01", 2):
        first, second = (_utterance(path, line, name) for name in names)
        if (first.partition("/")[0] == second.partition("/")[0]) != (mark == "1"):
            raise DataError(f"{path}: line {line}: {mark} does not fit the speakers of {first} and {second}")
        found.append((mark == "1", first, second))
    return found


def _fields(path: Path, marks: str, count: int) -> Iterator[tuple[int, str, list[str]]]:
    for line, text in parsing.lines(path):
        mark, *names = text.split()
        if mark not in marks or len(mark) != 1 or len(names) != count:
            raise DataError(f"{path}: line {line}: expected {'|'.join(marks)} and {count} names (found {text[:60]!r})")
        yield line, mark, names


def _utterance(path: Path, line: int, name: str) -> str:
    if _UTTERANCE.fullmatch(name) is None:
        raise DataError(f"{path}: line {line}: expected ID/VIDEO/N.wav (found {name[:60]!r})")
    return name.rpartition(".")[0]


def _speakers(root: Path) -> dict[str, Speaker]:
    places = parsing.find_places(root, {f"vox{edition}_meta.csv" for edition in _COLUMNS}, _DEPTH, _TREES + _FACES)
    if not places:
        raise DataError(f"VoxCeleb in {root}: vox1_meta.csv (or vox2_meta.csv) is missing")
    speakers: dict[str, Speaker] = {}
    for edition, columns in _COLUMNS.items():
        path = places.get(f"vox{edition}_meta.csv")
        if path is None:
            continue
        heading = next((text for _, text in parsing.lines(path)), "")
        for line, row in parsing.table(path, columns, "\t" if "\t" in heading else ","):
            name, face, gender, part = (row[n].strip() for n in (0, 1, 2, len(columns) - 1))
            if not (_SPEAKER.fullmatch(name) and face and gender in ("m", "f") and part in ("dev", "test")):
                found = ", ".join(cell.strip() for cell in row)[:80]
                raise DataError(f"{path}: line {line}: expected id00000, a name, m or f, dev or test (found {found!r})")
            if name in speakers:
                raise DataError(f"{path}: line {line}: {name} stands there already")
            speakers[name] = Speaker(edition, face, gender, part == "test")
    return speakers


def _folders(root: Path, names: Collection[str]) -> list[Path]:
    """Every folder of one of these names; those inside of it are not looked for."""
    found: list[Path] = []
    for top, folders, _ in os.walk(root, followlinks=True):
        here = Path(top)
        found += [here / name for name in folders if name in names]
        level = len(here.relative_to(root).parts)
        inner = sorted(f for f in folders if f not in (*_TREES, *_FACES) and f[0] != ".")
        folders[:] = inner if level < _DEPTH else []
    return sorted(found)


def _collect(tree: Path, speakers: Mapping[str, Speaker], found: dict[str, Path], notes: list[str]) -> None:
    """Add the utterances of a tree, by ID/VIDEO/N."""
    others = 0
    for speaker in parsing.names_in(tree):
        if speaker not in speakers:
            raise DataError(f"{tree / speaker}: no such speaker in vox1_meta.csv or vox2_meta.csv")
        for video in parsing.names_in(tree / speaker):
            folder = tree / speaker / video
            for file in parsing.names_in(folder):
                stem, dot, ending = file.rpartition(".")
                if dot + ending not in _ENDINGS:
                    others += 1
                    continue
                if len(stem) != 5 or not stem.isascii() or not stem.isdecimal():
                    raise DataError(f"{folder / file}: expected the number of an utterance, like 00001{dot}{ending}")
                name = f"{speaker}/{video}/{stem}"
                if name not in found or ending == "wav":
                    found[name] = folder / file
    if others:
        notes.append(f"VoxCeleb: {others:,} files in {tree} are neither WAV nor M4A, left out")


def _faces(root: Path, speakers: Mapping[str, Speaker]) -> dict[str, list[Path]]:
    """The pictures of each speaker, under either of their names."""
    owner = {speaker.face: name for name, speaker in speakers.items()} | {name: name for name in speakers}
    faces: dict[str, list[Path]] = {}
    for tree in _folders(root, _FACES):
        for person in parsing.names_in(tree):
            if person not in owner:
                raise DataError(f"{tree / person}: no such speaker in vox1_meta.csv or vox2_meta.csv")
            pictures = faces.setdefault(owner[person], [])
            for top, folders, files in os.walk(tree / person):
                folders.sort()
                pictures += [Path(top, file) for file in sorted(files) if file.endswith(".jpg") and file[0] != "."]
    return faces


def _items(
    found: Mapping[str, Path], speakers: Mapping[str, Speaker], faces: Mapping[str, list[Path]], options: Options
) -> Iterator[Item]:
    turns = Counter[str]()  # the faces of a speaker serve one utterance after the other
    last, about = "", {"": ""}
    for name, path in sorted(found.items()):
        video_of, _, _ = name.rpartition("/")
        speaker, _, video = video_of.partition("/")
        if video_of != last:  # utterances of one video share what is said of them
            last, about = video_of, {"speaker": speaker, "gender": speakers[speaker].gender, "video": video}
        pictures = faces.get(speaker)
        picture = pictures[turns[speaker] % len(pictures)] if pictures else None
        turns[speaker] += 1
        split = _split(speaker, speakers[speaker], options)
        yield Item(id=name, group=speaker, split=split, image=picture, audio=path, meta=about)


def _split(name: str, speaker: Speaker, options: Options) -> Split:
    if speaker.tested:
        return "test"
    return "val" if draw(options.seed, "voxceleb", name) < options.val_share else "train"


def _notes(items: tuple[Item, ...], speakers: Mapping[str, Speaker]) -> Iterator[str]:
    split_of = {item.group: item.split for item in items}
    heard, sizes = Counter(split_of.values()), Counter(item.split for item in items)
    counts = " / ".join(f"{heard[split]:,} ({sizes[split]:,})" for split in SPLITS)
    yield f"VoxCeleb: {counts} speakers (utterances) in {' / '.join(SPLITS)}"
    for edition, full in FULL.items():
        people = sum(speakers[name].edition == edition for name in split_of)
        utterances = sum(speakers[item.group].edition == edition for item in items)
        if people and (people, utterances) != full:
            yield (
                f"VoxCeleb {edition}: {people:,} speakers and {utterances:,} utterances are there; the whole set has "
                f"{full[0]:,} and {full[1]:,}"
            )
    if seen := sum(item.image is not None for item in items):
        yield f"VoxCeleb: {seen:,} of {len(items):,} utterances have a face of their speaker"
    if packed := sum(item.audio is not None and item.audio.suffix == ".m4a" for item in items):
        yield f"VoxCeleb: {packed:,} utterances are M4A, which is not decoded; make WAV beside them (ffmpeg)"


def _lists(root: Path, speakers: Mapping[str, Speaker], found: Mapping[str, Path]) -> Iterator[str]:
    """What the published lists name, and how much of it is there."""
    places = parsing.find_places(root, {"iden_split.txt", "veri_test.txt"}, _DEPTH, _TREES + _FACES)
    if path := places.get("iden_split.txt"):
        named = [name for _, name in identification(path)]
        yield f"VoxCeleb: {path.name}: {sum(name in found for name in named):,} of {len(named):,} utterances are there"
    if path := places.get("veri_test.txt"):
        pairs = verification(path)
        whole = sum(a in found and b in found for _, a, b in pairs)
        yield f"VoxCeleb: {path.name}: both utterances of {whole:,} of {len(pairs):,} pairs are there"
        strange = {name.partition("/")[0] for _, *names in pairs for name in names} - speakers.keys()
        if strange:
            raise DataError(f"{path}: {min(strange)} is no speaker of the tables")
