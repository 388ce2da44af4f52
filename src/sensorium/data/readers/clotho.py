"""Clotho 2.1 (Drossos 2020): sounds of 15 to 30 s from Freesound with five captions each.

The folder as the archives unpack it::

    development/ validation/ evaluation/                     the sounds, 44.1 kHz WAV: train, val and test
    clotho_captions_{development,validation,evaluation}.csv  file_name,caption_1,...,caption_5
    clotho_metadata_{the same}.csv                           optional: keywords, licence, where the sound is from

A folder more or less above each of them does not matter. The metadata are partly Latin-1, and ``;`` may stand for the
comma. Clotho 1 and 2.0 are refused: about 150 sounds of 2.0 are broken, and its names hold signs that most file
systems do not allow. One Item is one caption, its id ``SPLIT/FILE#K``; its group is the sound.

Trees that `sensorium data import --format clotho` wrote also hold ``clotho_items_{the same}.csv`` with the group of
each sound and the id of each caption, and sounds with fewer than five captions.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sensorium import reading
from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.files import read_text
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.errors import DataError

NAME = "clotho"
SUMMARY = "Clotho 2.1: sounds of 15 to 30 s with five captions each"
LICENCE = "sounds: Creative Commons, stated for each; captions: Tampere University, not commercial"
DEFAULT_ROOT = Path("data/clotho")
PARTS: dict[Split, str] = {"train": "development", "val": "validation", "test": "evaluation"}
FULL: dict[Split, int] = {"train": 3839, "val": 1045, "test": 1045}
CAPTIONS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
METADATA = ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")
ITEMS = ("file_name", "group", *(f"item_{number}" for number in range(1, 6)))
_OTHER_VERSIONS = {  # md5 of lists of captions
    "dd568352389f413d832add5cf604529f": "1",
    "800633304e73d3daed364a2ba6069827": "2.0",
    "3109c353138a089c7ba724f27d71595d": "2.0",
}
_NO_NAME = re.compile(r'[<>:"/\\|?*]')  # 2.1 replaced these; a list that has them is older
_KEPT = {"keywords": "keywords", "sound_id": "sound_id", "license": "licence"}  # of the metadata, and their names here


class Options(Section):
    """What is read."""

    metadata: bool = Field(True, description="Read keywords, Freesound number and licence of each sound.")


@dataclass(frozen=True)
class _Row:
    """A sound in the list of captions."""

    line: int
    name: str
    captions: tuple[str, ...]


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and line of what is missing, damaged or of another version."""
    root = root or DEFAULT_ROOT
    advice = "get it by `sensorium data download clotho --root {}`, or name its folder (data.root=FOLDER)"
    parsing.require_folder(root, advice.format(root))
    lists = [f"clotho_{what}_{part}.csv" for what in ("captions", "metadata", "items") for part in PARTS.values()]
    places = parsing.find_places(root, {*lists, *PARTS.values()}, closed=PARTS.values())
    items: list[Item] = []
    notes: list[str] = []
    owner: dict[str, Split] = {}
    for split, part in PARTS.items():
        rows = _captions(root, places, part)
        sounds = _sounds(root, places, part)
        about = _metadata(places, part, {row.name for row in rows}, notes) if options.metadata else {}
        given = _given(places, part)
        for row in rows:
            if owner.setdefault(row.name, split) != split:
                where = f"{places[f'clotho_captions_{part}.csv']}: line {row.line}"
                raise DataError(f"{where}: {row.name} stands in {PARTS[owner[row.name]]}, too")
            items += _items(row, split, sounds[row.name], about.get(row.name, {}), given.get(row.name))
    if not items:
        raise DataError(f"Clotho in {root}: the lists of captions are empty")
    return DataSet(NAME, root, LICENCE, tuple(items), (*_notes(owner, items), *notes))


def _captions(root: Path, places: Mapping[str, Path], part: str) -> list[_Row]:
    name = f"clotho_captions_{part}.csv"
    if name not in places:
        older = "; Clotho 1 had none, and 2.1 is needed" if part == "validation" else ""
        raise DataError(f"Clotho in {root}: {name} is missing{older}")
    path = places[name]
    _require_version(path)
    rows: list[_Row] = []
    seen: dict[str, int] = {}
    written = f"clotho_items_{part}.csv" in places
    for line, (file, *captions) in parsing.table(path, CAPTIONS):
        if odd := _NO_NAME.search(file):
            raise DataError(f"{path}: line {line}: {odd[0]!r} in the name {file!r}: this is Clotho 2.0; take 2.1")
        if file in seen:
            raise DataError(f"{path}: line {line}: {file} stands in line {seen[file]} already")
        seen[file] = line
        texts = [parsing.collapsed(caption) for caption in captions]
        if not texts[0] or not (written or all(texts)):
            raise DataError(f"{path}: line {line}: {file} has fewer than five captions")
        rows.append(_Row(line, file, tuple(texts)))
    return rows


def _require_version(path: Path) -> None:
    try:
        md5 = hashlib.md5(reading.read_bytes(path), usedforsecurity=False).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if md5 in _OTHER_VERSIONS:
        raise DataError(f"{path}: line 1: the list of Clotho {_OTHER_VERSIONS[md5]}; take 2.1, and its sounds")


def _sounds(root: Path, places: Mapping[str, Path], part: str) -> Mapping[str, Path]:
    """The sound of each row by its name, whichever of the two ways of writing accents the file system took."""
    path = places[f"clotho_captions_{part}.csv"]
    if part not in places:
        if next(parsing.table(path, CAPTIONS), None) is None:
            return {}
        raise DataError(f"Clotho in {root}: the folder {part} is missing, whose sounds {path} names")
    folder = places[part]
    there = {unicodedata.normalize("NFC", name): folder / name for name in parsing.names_in(folder)}
    found: dict[str, Path] = {}
    first, missing = "", 0
    for line, (name, *_) in parsing.table(path, CAPTIONS):
        sound = there.get(unicodedata.normalize("NFC", name))
        if sound is None:
            missing += 1
            first = first or f"{path}: line {line}: {name} is missing in {folder}"
        else:
            found[name] = sound
    if missing:
        more = f", and {missing - 1:,} more" if missing > 1 else ""
        raise DataError(f"{first}{more}; unpack clotho_audio_{part}.7z again")
    return found


def _metadata(places: Mapping[str, Path], part: str, known: set[str], notes: list[str]) -> dict[str, dict[str, str]]:
    """What is kept of the metadata, by file."""
    path = places.get(f"clotho_metadata_{part}.csv")
    if path is None:
        return {}
    text = _any_text(path)
    heading = text.split("\n", 1)[0]
    about: dict[str, dict[str, str]] = {}
    for _, row in parsing.table(path, METADATA, ";" if heading.count(";") > heading.count(",") else ",", text):
        values = dict(zip(METADATA, row, strict=True))
        about[values["file_name"]] = {kept: values[name] for name, kept in _KEPT.items() if values[name]}
    if strange := len(about.keys() - known):
        notes.append(f"Clotho: {strange:,} sounds of {path.name} are not in the captions of {part}")
    return about


def _any_text(path: Path) -> str:
    """UTF-8 where it is; else Latin-1, which can be anything, and which the published metadata partly are."""
    try:
        return read_text(path)
    except DataError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
    return reading.read_bytes(path).decode("latin-1")


def _given(places: Mapping[str, Path], part: str) -> dict[str, list[str]]:
    """Group and ids that an import wrote, by file."""
    path = places.get(f"clotho_items_{part}.csv")
    return {file: rest for _, (file, *rest) in parsing.table(path, ITEMS)} if path else {}


def _items(row: _Row, split: Split, sound: Path, about: Mapping[str, str], given: list[str] | None) -> Iterator[Item]:
    group, *ids = given or [f"{PARTS[split]}/{row.name}", *[""] * len(row.captions)]
    for k, (text, name) in enumerate(zip(row.captions, ids, strict=True)):
        if text:
            identity = name or f"{PARTS[split]}/{row.name}#{k}"
            yield Item(id=identity, group=group, split=split, text=text, audio=sound, meta=about)


def _notes(owner: Mapping[str, Split], items: list[Item]) -> Iterator[str]:
    sizes = Counter(owner.values())
    counts = " / ".join(f"{sizes[split]:,}" for split in SPLITS)
    yield f"Clotho: {counts} sounds in {' / '.join(SPLITS)}, {len(items):,} captions"
    if dict(sizes) != FULL:
        yield f"Clotho: version 2.1 has {' / '.join(f'{FULL[split]:,}' for split in SPLITS)}"
