"""The processed samples of personalised pictures, as `data/tastes.py` reads them: ``train.json``, ``val.json``,
``test.json`` in one folder, of which the first must be there.

One Item is one picture of a sample, its id ``SPLIT/SAMPLE/PLACE``; its group is the user. So `sensorium data verify
pmg_json` checks the split of what preprocessing wrote, and `sensorium data import pmg_json` makes a manifest of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.histories import HISTORY, ITEM, NO_TARGET
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.data.tastes import Places, Taste, read_tastes
from sensorium.errors import DataError

NAME = "pmg_json"
SUMMARY = "processed samples of personalised pictures: train.json, val.json, test.json with histories and targets"
LICENCE = "that of the pictures"


class Options(Section):
    """Where the pictures lie."""

    image_dir: str | None = Field(
        None, min_length=1, description="Put before relative paths of pictures; null: the folder of the JSON files."
    )
    path_prefix: dict[str, str] = Field({}, description="Beginnings of absolute paths, and what to put instead.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the samples. Raises DataError that lists every problem."""
    if root is None:
        raise DataError("processed samples need the folder of their train.json; give it as root")
    parsing.require_folder(root, "it should hold train.json, val.json and test.json")
    places = Places(Path(options.image_dir).expanduser() if options.image_dir else None, options.path_prefix)
    found: dict[Split, list[Taste]] = {}
    for split in SPLITS:
        path = root / f"{split}.json"
        if split == "train" or path.is_file():
            found[split] = read_tastes(path, places)
    lengths = Counter(len(one.history) for samples in found.values() for one in samples)
    usual = lengths.most_common(1)[0][0]
    items = tuple(item for split, samples in found.items() for item in _items(split, samples, usual))
    sizes = " / ".join(f"{len(samples):,} in {split}" for split, samples in found.items())
    folders = {root.absolute(), *(item.image.absolute().parent for item in items if item.image is not None)}
    common = Path(os.path.commonpath(folders))
    return DataSet(NAME, common, LICENCE, items, (f"processed samples: {sizes}",), history=usual)


def _items(split: Split, samples: Sequence[Taste], usual: int) -> Iterator[Item]:
    turns = Counter[str]()
    for number, one in enumerate(samples):
        for place, liked in enumerate((*one.history, one.target)):
            last = place == len(one.history)
            told = ({} if place == usual else {HISTORY: str(place)}) if last else NO_TARGET
            yield Item(
                id=f"{split}/{number}/{place}",
                group=one.user,
                split=split,
                text=liked.caption or None,
                image=liked.path,
                time=float(turns[one.user]),
                meta={ITEM: liked.id, **told},
            )
            turns[one.user] += 1
