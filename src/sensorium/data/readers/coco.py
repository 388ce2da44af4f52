"""MS-COCO captions (Lin 2014, Chen 2015): 123,287 photographs with five to seven captions each.

The folder as the archives unpack it, of 2017 or of 2014::

    train2017/ val2017/      %012d.jpg; or train2014/ val2014/: COCO_{train,val}2014_%012d.jpg, the same photographs
    annotations/             captions_{train,val}2017.json, and instances_{train,val}2017.json for the labels
    dataset_coco.json        Karpathy's split with captions; or coco_karpathy_{train,val,test}.json, the lists of LAVIS

A folder more or less above each of them does not matter. Karpathy's split is taken where its file is there: its test
photographs lie inside ``train2017``, so whoever wants to be measured on them must train on its split alone. Captions
are then those of its file. One Item is one caption, its id ``PHOTOGRAPH#K``; its group is the photograph.

Trees that `sensorium data import --format coco` wrote hold two keys more: ``group`` of a photograph and ``item``, the
id of a caption.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.errors import DataError

NAME = "coco"
SUMMARY = "COCO 2014 or 2017: photographs with five captions and more each, and the names of the things on them"
LICENCE = "annotations: CC BY 4.0; images: Flickr terms of use"
DEFAULT_ROOT = Path("data/coco")
YEARS = (2017, 2014)
KARPATHY = "dataset_coco.json"
LAVIS: dict[Split, str] = {split: f"coco_karpathy_{split}.json" for split in SPLITS}
FULL: dict[Split, int] = {"train": 113_287, "val": 5_000, "test": 5_000}  # Karpathy's split
_KARPATHY_SPLITS: dict[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_NUMBER = re.compile(r"0*([0-9]{1,12})\.jpg")  # at the end of the name of a photograph
_ADVICE = "get it by `sensorium data download coco coco-karpathy --root {root}`, or name its folder (data.root=FOLDER)"


class Options(Section):
    """What is read."""

    year: Literal[2014, 2017] | None = Field(None, description="Edition; null: the one that is there.")
    split: Literal["karpathy", "official"] | None = Field(
        None, description="Whose split; null: Karpathy's where its file is there. The official one has no test."
    )
    labels: bool = Field(True, description="Read the names of the things on the photographs (instances_*.json).")


@dataclass(slots=True)
class _Photograph:
    """One photograph. ``captions``: id (or None: it gets one from its place) and text."""

    path: Path
    split: Split
    group: str
    captions: list[tuple[str | None, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Tree:
    """Where the parts are. ``names``: what lies in each folder of photographs."""

    root: Path
    year: int
    places: Mapping[str, Path]
    names: Mapping[str, frozenset[str]]

    def find(self, *candidates: tuple[str, str]) -> Path | None:
        """The first photograph that is there, of (folder, name)."""
        for folder, name in candidates:
            if name in self.names.get(folder, ()):
                return self.places[folder] / name
        return None


class _Missing:
    """Counts photographs that are not there, and names the first."""

    def __init__(self) -> None:
        self.first, self.count, self.asked = "", 0, 0

    def note(self, path: Path | None, place: str, name: str) -> Path:
        self.asked += 1
        if path is None:
            self.count += 1
            self.first = self.first or f"{place}: {name} is missing"
        return path or Path(name)

    def tell(self) -> None:
        if self.count:
            more = f", and {self.count - 1:,} more of {self.asked:,}" if self.count > 1 else ""
            raise DataError(f"{self.first}{more}; unpack the archives again, or take the other edition (year=)")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and entry of what is missing, damaged or of another edition."""
    tree = _tree(root or DEFAULT_ROOT, options.year)
    whose = options.split or ("karpathy" if _karpathy_files(tree) else "official")
    photographs = _karpathy(tree) if whose == "karpathy" else _official(tree)
    labels, names = _labels(tree) if options.labels else ({}, ())
    items: list[Item] = []
    nothing: Mapping[str, str] = {}
    for number, photograph in photographs.items():
        named = labels.get(number, ())
        items += [
            Item(
                id=given or f"{number}#{k}",
                group=photograph.group,
                split=photograph.split,
                text=text,
                image=photograph.path,
                labels=named,
                meta=nothing,
            )
            for k, (given, text) in enumerate(photograph.captions)
        ]
    if not items:
        raise DataError(f"COCO in {tree.root}: holds no captions")
    notes = tuple(_notes(tree, whose, photographs, labels, options))
    return DataSet(NAME, tree.root, LICENCE, tuple(items), notes, names)


def _tree(root: Path, year: int | None) -> _Tree:
    parsing.require_folder(root, _ADVICE.format(root=root))
    folders = [f"{part}{one}" for one in YEARS for part in ("train", "val")]
    lists = [f"{what}_{folder}.json" for what in ("captions", "instances") for folder in folders]
    places = parsing.find_places(root, {*folders, *lists, KARPATHY, *LAVIS.values()}, closed=folders)
    there = [one for one in YEARS if f"train{one}" in places or f"val{one}" in places]
    if not there:
        raise DataError(f"COCO in {root}: no photographs (train2017, val2017; or train2014, val2014)")
    if year is None and len(there) > 1:
        raise DataError(f"COCO in {root}: the editions of 2014 and 2017 lie there; choose one: year=2017 or year=2014")
    if year is not None and year not in there:
        raise DataError(f"COCO in {root}: year={year} is asked for, the photographs are those of {there[0]}")
    chosen = year or there[0]
    names = {name: frozenset(parsing.names_in(places[name])) for name in folders if name in places}
    return _Tree(root, chosen, places, {name: found for name, found in names.items() if name.endswith(str(chosen))})


def _required(tree: _Tree, name: str) -> Path:
    if name in tree.places:
        return tree.places[name]
    other = name.replace(str(tree.year), str(next(year for year in YEARS if year != tree.year)))
    mixed = f"; {tree.places[other]} is of another edition than the photographs" if other in tree.places else ""
    raise DataError(f"COCO in {tree.root}: {name} is missing{mixed}")


def _official(tree: _Tree) -> dict[int, _Photograph]:
    photographs: dict[int, _Photograph] = {}
    missing = _Missing()
    parts: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "val"))
    for part, split in parts:
        folder = f"{part}{tree.year}"
        path = _required(tree, f"captions_{folder}.json")
        if folder not in tree.names:
            raise DataError(f"COCO in {tree.root}: the folder {folder} is missing, whose photographs {path} names")
        waiting: list[tuple[int, int, str | None, str]] = []  # captions that stand before the photographs
        for name, number, record in parsing.records(path, "images", "annotations"):
            with _entry(path, name, number):
                if name == "annotations":
                    text = parsing.collapsed(parsing.field(record, "caption", str))
                    waiting.append((number, parsing.field(record, "image_id", int), _given(record, "item"), text))
                    continue
                key, file = parsing.field(record, "id", int), parsing.field(record, "file_name", str)
                if (old := photographs.get(key)) is not None:
                    raise ValueError(f"the photograph {key} stands already among those of {old.split}")
                if file.startswith("COCO_") and tree.year == 2017:
                    raise ValueError(f"{file} is a name of 2014, the photographs are those of 2017")
                found = missing.note(tree.find((folder, file)), f"{path}: {name}[{number}]", f"{folder}/{file}")
                photographs[key] = _Photograph(found, split, _given(record, "group") or str(key))
        missing.tell()
        for number, key, given, text in waiting:
            if key not in photographs or photographs[key].split != split:
                raise DataError(f"{path}: annotations[{number}]: image_id {key} is none of its images")
            photographs[key].captions.append((given, text))
    return _without_blanks(photographs)


def _karpathy_files(tree: _Tree) -> dict[Split, Path]:
    """The file of the split, or the three lists of LAVIS; nothing where neither is there."""
    if KARPATHY in tree.places:
        return dict.fromkeys(SPLITS, tree.places[KARPATHY])
    found = {split: tree.places[name] for split, name in LAVIS.items() if name in tree.places}
    if found and len(found) < len(LAVIS):
        lacking = ", ".join(name for split, name in LAVIS.items() if split not in found)
        raise DataError(f"COCO in {tree.root}: of the three lists of Karpathy's split are missing: {lacking}")
    return found


def _karpathy(tree: _Tree) -> dict[int, _Photograph]:
    files = _karpathy_files(tree)
    if not files:
        raise DataError(
            f"COCO in {tree.root}: Karpathy's split is missing ({KARPATHY}, or {', '.join(LAVIS.values())}); get it by "
            f"`sensorium data download coco-karpathy --root {tree.root}`"
        )
    photographs: dict[int, _Photograph] = {}
    missing = _Missing()
    if KARPATHY in tree.places:
        for name, number, record in parsing.records(tree.places[KARPATHY], "images"):
            with _entry(tree.places[KARPATHY], name, number):
                _add_karpathy(tree, photographs, missing, record, f"{tree.places[KARPATHY]}: {name}[{number}]")
    else:
        for split, path in files.items():
            for _, number, record in parsing.records(path, ""):
                with _entry(path, "", number):
                    _add_lavis(tree, photographs, missing, record, (split, f"{path}: [{number}]"))
    missing.tell()
    return _without_blanks(photographs)


def _add_karpathy(
    tree: _Tree, photographs: dict[int, _Photograph], missing: _Missing, record: dict[str, Any], place: str
) -> None:
    key, folder = parsing.field(record, "cocoid", int), parsing.field(record, "filepath", str)
    name, split = parsing.field(record, "filename", str), parsing.field(record, "split", str)
    if split not in _KARPATHY_SPLITS:
        raise ValueError(f"split: expected one of {', '.join(_KARPATHY_SPLITS)} (found {split!r})")
    if key in photographs:
        raise ValueError(f"the photograph {key} stands there twice")
    found = missing.note(_of_any_year(tree, key, folder, name), place, f"{folder}/{name}")
    photograph = _Photograph(found, _KARPATHY_SPLITS[split], _given(record, "group") or str(key))
    for sentence in parsing.field(record, "sentences", list):
        if not isinstance(sentence, dict):
            raise ValueError(f"sentences: expected objects (found {str(sentence)[:60]!r})")
        text = parsing.collapsed(parsing.field(sentence, "raw", str))
        photograph.captions.append((_given(sentence, "item"), text))
    photographs[key] = photograph


def _add_lavis(
    tree: _Tree,
    photographs: dict[int, _Photograph],
    missing: _Missing,
    record: dict[str, Any],
    where: tuple[Split, str],
) -> None:
    """One caption with its photograph (train), or a photograph with a list of them (val, test)."""
    split, place = where
    folder, _, name = parsing.field(record, "image", str).rpartition("/")
    digits = _NUMBER.fullmatch(name.rpartition("_")[2])
    if digits is None:
        raise ValueError(f"image: expected FOLDER/COCO_FOLDER_NUMBER.jpg (found {name[:60]!r})")
    key = int(digits[1])
    if key not in photographs:
        found = missing.note(_of_any_year(tree, key, folder, name), place, f"{folder}/{name}")
        photographs[key] = _Photograph(found, split, str(key))
    if photographs[key].split != split:
        raise ValueError(f"the photograph {key} stands already among those of {photographs[key].split}")
    captions = [record["caption"]] if isinstance(record.get("caption"), str) else parsing.field(record, "caption", list)
    if not all(isinstance(text, str) for text in captions):
        raise ValueError("caption: expected a text or a list of texts")
    photographs[key].captions += [(None, parsing.collapsed(text)) for text in captions]


def _of_any_year(tree: _Tree, key: int, folder: str, name: str) -> Path | None:
    """The split knows the photographs by their names of 2014; in 2017 they were renamed and mixed anew."""
    renamed = f"{key:012}.jpg"
    return tree.find((folder, name), ("train2017", renamed), ("val2017", renamed))


class _entry:  # noqa: N801  (used like a function)
    """A ValueError of the block is told with the file and the entry. A class, as it is entered a million times."""

    __slots__ = ("name", "number", "path")

    def __init__(self, path: Path, name: str, number: int) -> None:
        self.path, self.name, self.number = path, name, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ValueError):
            raise DataError(f"{self.path}: {self.name}[{self.number}]: {error}") from None


def _given(record: dict[str, Any], key: str) -> str | None:
    """A key of ours, which published files do not have."""
    return parsing.field(record, key, str) if key in record else None


def _without_blanks(photographs: dict[int, _Photograph]) -> dict[int, _Photograph]:
    for photograph in photographs.values():
        photograph.captions = [caption for caption in photograph.captions if caption[1]]
    return photographs


def _labels(tree: _Tree) -> tuple[dict[int, tuple[str, ...]], tuple[str, ...]]:
    """What is on each photograph, and all names; in ascending order of the ids, which run to 90 with holes.

    Empty where neither list is there.
    """
    wanted = [f"instances_{part}{tree.year}.json" for part in ("train", "val")]
    if not any(name in tree.places for name in wanted):
        return {}, ()
    seen: dict[int, set[int]] = {}
    names: dict[int, str] = {}
    for path in (_required(tree, name) for name in wanted):  # one alone would leave half of the photographs bare
        of_file: dict[int, str] = {}
        used: dict[int, int] = {}
        for name, number, record in parsing.records(path, "annotations", "categories"):
            with _entry(path, name, number):
                if name == "categories":
                    of_file[parsing.field(record, "id", int)] = parsing.field(record, "name", str)
                    continue
                category = parsing.field(record, "category_id", int)
                seen.setdefault(parsing.field(record, "image_id", int), set()).add(category)
                used.setdefault(category, number)
        if unknown := used.keys() - of_file.keys():
            first = min(unknown)
            raise DataError(f"{path}: annotations[{used[first]}]: category_id {first} is none of its categories")
        if names and of_file != names:
            raise DataError(f"{path}: other categories than in {tree.places[wanted[0]]}")
        names = of_file
    named: dict[tuple[int, ...], tuple[str, ...]] = {}  # many photographs share their labels
    labels = {
        key: named.setdefault(ids, tuple(names[one] for one in ids))
        for key, ids in ((key, tuple(sorted(found))) for key, found in seen.items())
    }
    return labels, tuple(names[one] for one in sorted(names))


def _notes(
    tree: _Tree, whose: str, photographs: dict[int, _Photograph], labels: Mapping[int, Any], options: Options
) -> Iterator[str]:
    sizes = Counter(photograph.split for photograph in photographs.values())
    counts = " / ".join(f"{sizes[split]:,}" for split in SPLITS)
    captions = sum(len(photograph.captions) for photograph in photographs.values())
    split = "Karpathy's split" if whose == "karpathy" else "the official split"
    yield f"COCO {tree.year}: {counts} photographs in {' / '.join(SPLITS)} of {split}, {captions:,} captions"
    if whose == "official":
        yield f"COCO: no test split: {KARPATHY} (or the lists of LAVIS) is not used; val is val{tree.year}"
    elif dict(sizes) != FULL:
        yield f"COCO: the published split of Karpathy has {' / '.join(f'{FULL[split]:,}' for split in SPLITS)}"
    several = sum(len(photograph.captions) > 5 for photograph in photographs.values())
    if several:
        yield f"COCO: {several:,} photographs have more than five captions; all are read"
    if bare := sum(not photograph.captions for photograph in photographs.values()):
        yield f"COCO: {bare:,} photographs without a caption left out"
    if options.labels and not labels:
        yield f"COCO: no labels: instances_train{tree.year}.json and instances_val{tree.year}.json are not there"
