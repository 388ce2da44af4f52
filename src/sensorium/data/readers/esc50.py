"""ESC-50 (Piczak 2015): 2,000 sounds of 5 s, 40 of each of 50 classes. For evaluation only: all of it is ``test``.

The folder as its repository has it, a folder more or less above::

    meta/esc50.csv   filename,fold,target,category; esc10,src_file,take may follow
    audio/           the sounds, 44.1 kHz WAV

One Item is one sound; its label is the class as it is published (``crying_baby``), its group the sound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.items import DataSet, Item
from sensorium.errors import DataError

NAME = "esc50"
SUMMARY = "ESC-50: 2,000 environmental sounds of 50 classes, for evaluation only"
LICENCE = "CC BY-NC by common report; see LICENSE in its folder"
DEFAULT_ROOT = Path("data/esc50")
FULL_SOUNDS, FULL_CLASSES, FOLDS = 2000, 50, ("1", "2", "3", "4", "5")
_COLUMNS = ("filename", "fold", "target", "category")
_MORE = ("esc10", "src_file", "take")
_LIST, _SOUNDS = "esc50.csv", "audio"


class Options(Section):
    """This format has no options."""


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and line of what is missing or damaged."""
    del options
    root = root or DEFAULT_ROOT
    advice = "get it by `sensorium data download esc50 --root {}`, or name its folder (data.root=FOLDER)"
    parsing.require_folder(root, advice.format(root))
    places = parsing.find_places(root, {_LIST, _SOUNDS}, closed=(_SOUNDS,))
    for name in (_LIST, _SOUNDS):
        if name not in places:
            raise DataError(f"ESC-50 in {root}: {name} is missing")
    items = tuple(_items(places[_LIST], places[_SOUNDS]))
    if not items:
        raise DataError(f"{places[_LIST]}: holds no sounds")
    return DataSet(NAME, root, LICENCE, items, tuple(_notes(items)))


def _items(path: Path, folder: Path) -> Iterator[Item]:
    there = set(parsing.names_in(folder))
    seen: set[str] = set()
    classes: dict[str, str] = {}
    for line, (name, fold, target, category, *_) in parsing.table(path, _header(path)):
        place = f"{path}: line {line}"
        if fold not in FOLDS:
            raise DataError(f"{place}: fold {fold!r}; expected one of {', '.join(FOLDS)}")
        if classes.setdefault(target, category) != category or list(classes.values()).count(category) > 1:
            raise DataError(f"{place}: target {target!r} and category {category!r} do not fit the lines above")
        if name in seen:
            raise DataError(f"{place}: {name} stands there twice")
        if name not in there:
            raise DataError(f"{place}: {name} is missing in {folder}; unpack the archive again")
        seen.add(name)
        yield Item(id=name, group=name, split="test", audio=folder / name, labels=(category,), meta={"fold": fold})


def _header(path: Path) -> tuple[str, ...]:
    """The header with or without the columns that are not needed."""
    heading = next((text for _, text in parsing.lines(path)), "")
    return (*_COLUMNS, *_MORE) if heading.count(",") >= len(_COLUMNS) else _COLUMNS


def _notes(items: tuple[Item, ...]) -> Iterator[str]:
    classes = Counter(item.labels[0] for item in items)
    yield f"ESC-50: {len(items):,} sounds of {len(classes)} classes, all for evaluation"
    if (len(items), len(classes)) != (FULL_SOUNDS, FULL_CLASSES):
        yield f"ESC-50: the whole set has {FULL_SOUNDS:,} sounds of {FULL_CLASSES} classes"
