"""Flickr8k: 8,000 photographs with five captions each (Hodosh 2013), and their captions read aloud (Harwath 2015).

The folder as the archives unpack it, or as others pass it on::

    Flicker8k_Dataset/ (sic), or Images/     photographs
    Flickr8k.token.txt                       NAME.jpg#K<TAB>caption; or captions.txt (Kaggle): image,caption
    Flickr_8k.{train,dev,test}Images.txt     splits; or dataset_flickr8k.json (Karpathy), which also holds captions
    flickr_audio/                            optional: wavs/, wav2capt.txt (FILE.wav NAME.jpg #K), wav2spk.txt

A folder more or less above each of them does not matter; ``__MACOSX`` is not looked into. One Item is one caption.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from sensorium.config import Section
from sensorium.data.files import read_text
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.data.parsing import find_places, lines, listed
from sensorium.errors import DataError

NAME = "flickr8k"
SUMMARY = "Flickr8k photographs with five captions each; read aloud where the Flickr Audio Caption Corpus is there"
LICENCE = "photographs and captions: research, not commercial; recordings: CC BY-SA"
DEFAULT_ROOT = Path("data/flickr8k")
IMAGES, CAPTIONS, SOUND = "Flicker8k_Dataset", "Flickr8k.token.txt", "flickr_audio"
FULL: dict[Split, int] = {"train": 6000, "val": 1000, "test": 1000}
FULL_IMAGES, FULL_CAPTIONS, FULL_RECORDINGS = 8091, 40455, 40000
_IMAGE_FOLDERS = (IMAGES, "Flickr8k_Dataset", "Images", "images")
_LISTS: dict[Split, str] = {
    split: f"Flickr_8k.{word}Images.txt" for split, word in zip(SPLITS, ("train", "dev", "test"), strict=True)
}
_KAGGLE, _KARPATHY = "captions.txt", "dataset_flickr8k.json"
_KAGGLE_LINE = re.compile(r"(.+?\.jpg(?:\.\d+)?),(.*)")  # commas may stand in a caption: cut at the first ``.jpg,``
_NUMBER = re.compile(r"[0-9]{1,4}")  # of a caption

Captions = dict[tuple[str, int], str]
"""Text by name of the picture and number of the caption."""


class Options(Section):
    """What is read."""

    audio: bool = Field(True, description="Read the recordings in flickr_audio/ where they are there.")


@dataclass(frozen=True)
class _Recording:
    path: Path
    speaker: str | None


@dataclass(frozen=True)
class Found:
    """Everything below a root, before it is joined."""

    root: Path
    images: Mapping[str, Path]
    captions: Captions
    splits: Mapping[str, Split]
    sounds: Mapping[tuple[str, int], _Recording]
    recordings: int  # lines of wav2capt.txt


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming the part that is missing, empty, damaged or does not fit the rest."""
    found = find(root or DEFAULT_ROOT, options.audio)
    _require_parts_fit(found)
    items = tuple(
        Item(
            id=f"{name}#{number}",
            group=name,
            split=found.splits[name],
            text=text,
            image=found.images[name],
            audio=sound.path if (sound := found.sounds.get((name, number))) else None,
            meta={"speaker": sound.speaker} if sound and sound.speaker else {},
        )
        for (name, number), text in found.captions.items()
        if name in found.splits
    )
    return DataSet(NAME, found.root, LICENCE, items, tuple(_notes(found, items)))


def find(root: Path, audio: bool = True) -> Found:
    """Locate and parse every part. Raises DataError."""
    if not root.is_dir():
        raise DataError(
            f"Flickr8k directory not found: {root}; get it by `sensorium data download flickr8k facc --root {root}`, "
            "or name its folder (--root_dir FOLDER, data.root=FOLDER)"
        )
    places = _places(root)
    images = _images(root, places)
    karpathy = _karpathy(places[_KARPATHY]) if _KARPATHY in places else {}
    captions = _captions(root, places, karpathy)
    splits = _splits(root, places, karpathy)
    sounds, recordings = _sounds(places) if audio else ({}, 0)
    return Found(root, images, captions, splits, sounds, recordings)


def _places(root: Path) -> dict[str, Path]:
    """Where the parts are, by name: the upper one of two; of a folder that holds itself once more, the inner one."""
    wanted = {
        *_IMAGE_FOLDERS,
        *_LISTS.values(),
        CAPTIONS,
        _KAGGLE,
        _KARPATHY,
        SOUND,
        "wavs",
        "wav2capt.txt",
        "wav2spk.txt",
    }
    return find_places(root, wanted)


def _images(root: Path, places: Mapping[str, Path]) -> dict[str, Path]:
    folder = next((places[name] for name in _IMAGE_FOLDERS if name in places and places[name].is_dir()), None)
    if folder is None:
        raise DataError(f"Flickr8k in {root}: the folder of photographs is missing ({IMAGES} or Images)")
    images = {path.name: path for path in listed(folder) if path.suffix.lower() == ".jpg" and path.name[0] != "."}
    if not images:
        raise DataError(f"Flickr8k in {root}: {folder.relative_to(root)} holds no photographs (.jpg)")
    return images


def _captions(root: Path, places: Mapping[str, Path], karpathy: Mapping[str, Any]) -> Captions:
    if CAPTIONS in places:
        captions = _token_captions(places[CAPTIONS])
    elif _KAGGLE in places:
        captions = _kaggle_captions(places[_KAGGLE])
    elif karpathy:
        captions = {(name, k): text for name, (_, texts) in karpathy.items() for k, text in enumerate(texts)}
    else:
        raise DataError(f"Flickr8k in {root}: the captions are missing ({CAPTIONS}, {_KAGGLE} or {_KARPATHY})")
    captions = {key: text for key, raw in captions.items() if (text := _clean(raw))}
    if not captions:
        raise DataError(f"Flickr8k in {root}: the file of the captions is empty")
    return captions


def _clean(caption: str) -> str:
    """White space collapsed, without the final `` .`` of the tokenised captions."""
    return f" {' '.join(caption.split())}".removesuffix(" .").lstrip()


def _token_captions(path: Path) -> Captions:
    captions: Captions = {}
    for number, line in lines(path):
        key, tab, text = line.partition("\t")
        name, mark, k = key.rpartition("#")
        if not (tab and mark and _NUMBER.fullmatch(k)):
            raise DataError(f"{path}: line {number}: expected NAME.jpg#K, a tab and the caption (found {line[:60]!r})")
        if (name, int(k)) in captions:
            raise DataError(f"{path}: line {number}: {key} stands there already")
        captions[name, int(k)] = text
    return captions


def _kaggle_captions(path: Path) -> Captions:
    captions: Captions = {}
    counts = Counter[str]()
    for number, line in lines(path):
        found = _KAGGLE_LINE.fullmatch(line)
        if found is None:
            if number == 1:  # the heading
                continue
            raise DataError(f"{path}: line {number}: expected NAME.jpg,caption (found {line[:60]!r})")
        name, text = found.groups()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1].replace('""', '"')
        captions[name, counts[name]] = text
        counts[name] += 1
    return captions


class _Sentence(BaseModel):
    raw: str


class _Image(BaseModel):
    filename: str
    split: Literal["train", "restval", "val", "test"]
    sentences: list[_Sentence]


class _Karpathy(BaseModel):
    """What is taken of ``dataset_flickr8k.json``; it holds more."""

    images: list[_Image]


def _karpathy(path: Path) -> dict[str, tuple[Split, list[str]]]:
    """Split and captions by name of the picture."""
    try:
        found = _Karpathy.model_validate_json(read_text(path), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
        raise DataError(f"{path}: not the file of splits that Karpathy published ({reason})") from None
    return {
        image.filename: ("train" if image.split == "restval" else image.split, [one.raw for one in image.sentences])
        for image in found.images
    }


def _splits(root: Path, places: Mapping[str, Path], karpathy: Mapping[str, tuple[Split, Any]]) -> dict[str, Split]:
    there = [name for name in _LISTS.values() if name in places]
    if not there and karpathy:
        return {name: split for name, (split, _) in karpathy.items()}
    if len(there) < len(_LISTS):
        missing = ", ".join(name for name in _LISTS.values() if name not in places)
        raise DataError(f"Flickr8k in {root}: the splits are missing ({missing}; or {_KARPATHY}); none is made up")
    splits: dict[str, Split] = {}
    for split, file in _LISTS.items():
        names = [line for _, line in lines(places[file])]
        if not names:
            raise DataError(f"Flickr8k in {root}: {file} is empty")
        for name in names:
            if splits.setdefault(name, split) != split:
                raise DataError(f"Flickr8k in {root}: {name} stands in the lists of {splits[name]} and {split}")
    return splits


def _sounds(places: Mapping[str, Path]) -> tuple[dict[tuple[str, int], _Recording], int]:
    """Recordings by picture and caption, and the number of lines of ``wav2capt.txt``."""
    if SOUND not in places:
        return {}, 0
    folder = places[SOUND]
    for name in ("wav2capt.txt", "wavs"):
        if name not in places or folder not in places[name].parents:
            raise DataError(f"{folder}: {name} is missing")
    wavs = {path.name: path for path in listed(places["wavs"])}
    if not wavs:
        raise DataError(f"{places['wavs']}: holds no recordings")
    speakers = dict(_fields(places["wav2spk.txt"], 2)) if "wav2spk.txt" in places else {}
    sounds: dict[tuple[str, int], _Recording] = {}
    lines = missing = 0
    for wav, image, mark in _fields(places["wav2capt.txt"], 3):
        lines += 1
        missing += wav not in wavs
        k = mark.removeprefix("#")
        if wav in wavs and _NUMBER.fullmatch(k):
            sounds[image, int(k)] = _Recording(wavs[wav], speakers.get(wav))
    if missing:
        raise DataError(f"{places['wavs']}: {missing} of {lines} recordings that wav2capt.txt names are missing")
    return sounds, lines


def _fields(path: Path, count: int) -> Iterator[list[str]]:
    for number, line in lines(path):
        fields = line.split()
        if len(fields) != count:
            raise DataError(f"{path}: line {number}: expected {count} words (found {line[:60]!r})")
        yield fields


def _require_parts_fit(found: Found) -> None:
    captioned = {name for name, _ in found.captions}
    for what, there in (("photographs", found.images.keys()), ("captions", captioned)):
        missing = sorted(found.splits.keys() - there)
        if missing:
            raise DataError(
                f"Flickr8k in {found.root}: {len(missing)} of {len(found.splits)} pictures of the splits have no "
                f"{what} (first: {missing[0]}); unpack the archives again"
            )


def _notes(found: Found, items: tuple[Item, ...]) -> Iterator[str]:
    usable = {key for key in found.captions if key[0] in found.images}
    yield f"Flickr8k: {len(found.images):,} photographs, {len(usable):,} usable captions"
    sizes = Counter(found.splits.values())
    yield f"Flickr8k: {' / '.join(f'{sizes[split]:,}' for split in SPLITS)} photographs in {' / '.join(SPLITS)}"
    if ghosts := {name for name, _ in found.captions} - found.images.keys():
        yield f"Flickr8k: {len(found.captions) - len(usable)} captions of {len(ghosts)} missing photographs dropped"
    if spare := len(found.images.keys() - found.splits.keys()):
        yield f"Flickr8k: {spare} photographs are in no split"
    if found.recordings:
        joined = sum(item.audio is not None for item in items)
        yield f"Flickr8k: {found.recordings:,} recordings, {joined:,} of them joined to a caption of a split"


def shortfall(root: Path) -> list[str]:
    """What is missing of the published set; empty if nothing is, or if the splits are not the published ones."""
    found = find(root)
    sizes = Counter(found.splits.values())
    if dict(sizes) != FULL:
        return []
    captions = sum(name in found.images for name, _ in found.captions)
    counted = [(len(found.images), FULL_IMAGES, "photographs"), (captions, FULL_CAPTIONS, "captions")]
    if found.recordings:
        counted.append((found.recordings, FULL_RECORDINGS, "recordings"))
    return [f"{there:,} {what}; the whole set has {full:,}" for there, full, what in counted if there != full]
