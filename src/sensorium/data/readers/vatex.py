"""VATEX (Wang 2019), English: videos of ten seconds with ten captions each, every one of which is a query.

::

    train_list.txt, test_list.txt     ids of videos, one a line; val_list.txt where a copy has it
    ref_captions.json                 {"ID": ["…", …]}
    anywhere below                    ID.mp4, with any ending

Without a list for validation, some training videos are held out (``val_videos``). One Item is one caption.
"""

from __future__ import annotations

from pathlib import Path

from sensorium import reading
from sensorium.data import parsing
from sensorium.data.items import DataSet, Split
from sensorium.data.video_lists import CarvedOptions, Entry, Lists, bare, carve, dataset, described
from sensorium.errors import DataError

NAME = "vatex"
SUMMARY = "VATEX: clips of ten seconds with ten English captions each, all of them queries"
LICENCE = "captions: CC BY 4.0; the videos belong to their makers"
SIGN = "ref_captions.json"
DEFAULT_ROOT = Path("data/vatex")
PUBLISHED: dict[Split, int] = {"train": 25991, "val": 1500, "test": 1500}


class Options(CarvedOptions):
    """VATEX has no options of its own."""


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming the file, and the video in it, that is missing or damaged."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "get VATEX's lists and videos, or name its folder (root=FOLDER)")
    lists: dict[Split, str] = {"train": "train_list.txt", "val": "val_list.txt", "test": "test_list.txt"}
    places = parsing.find_places(root, {SIGN, *lists.values()})
    if missing := [name for name in (SIGN, lists["train"], lists["test"]) if name not in places]:
        raise DataError(f"VATEX in {root}: {', '.join(missing)} missing")
    captions = _captions(places[SIGN])
    notes: list[str] = []
    splits: dict[Split, list[Entry]] = {}
    for split, file in lists.items():
        if file in places:
            names = list(dict.fromkeys(bare(line) for _, line in parsing.lines(places[file])))
            names, note = described(places[file], names, captions)
            splits[split] = [Entry(name, captions[name]) for name in names]
            notes += [note] if note else []
    published = dict(PUBLISHED)
    if lists["val"] not in places:
        splits["train"], splits["val"] = carve(splits["train"], options.val_videos)
        published |= {"train": PUBLISHED["train"] - len(splits["val"]), "val": len(splits["val"])}
        notes.append(f"VATEX: val: {len(splits['val']):,} training videos, one caption each")
    return dataset(NAME, LICENCE, Lists("VATEX", root, published, splits), options, notes)


def _captions(path: Path) -> dict[str, tuple[str, ...]]:
    with parsing.told_of(path):
        content = reading.parse_json(reading.read_bytes(path))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object of lists of captions (found {str(content)[:40]!r})")
        found = {}
        for name, texts in content.items():
            if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise ValueError(f"{name}: expected a list of captions (found {str(texts)[:40]!r})")
            if said := tuple(text for one in texts if (text := parsing.collapsed(one))):
                found[bare(name)] = said
    return found
