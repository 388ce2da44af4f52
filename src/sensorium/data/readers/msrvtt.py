"""MSR-VTT (Xu 2016) with the split that retrieval is measured on: 9,000 videos to train on, 1,000 pairs to be tested on
(Yu 2018, "1k-A"); 20 captions a video in training, one in the test.

::

    MSRVTT_data.json             {"videos": [{"video_id": …}], "sentences": [{"video_id", "caption", "sen_id"}]}
    MSRVTT_train.9k.csv          video_id; or MSRVTT_train.7k.csv
    MSRVTT_JSFUSION_test.csv     key,vid_key,video_id,sentence
    anywhere below               video0.mp4 …

Nothing is published for validation: some training videos are held out (``val_videos``). One Item is one caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium.data import parsing
from sensorium.data.items import DataSet, Split
from sensorium.data.video_lists import CarvedOptions, Entry, Lists, bare, carve, dataset
from sensorium.errors import DataError

NAME = "msrvtt"
SUMMARY = "MSR-VTT: 10,000 videos with 20 captions each; the 9k (or 7k) training list and the 1k-A test"
LICENCE = "none stated by its authors; the videos belong to their makers"
SIGN = "MSRVTT_data.json"
DEFAULT_ROOT = Path("data/msrvtt")
TEST = "MSRVTT_JSFUSION_test.csv"
LISTS = {"9k": "MSRVTT_train.9k.csv", "7k": "MSRVTT_train.7k.csv"}
PUBLISHED: dict[str, dict[Split, int]] = {"9k": {"train": 9000, "test": 1000}, "7k": {"train": 7010, "test": 1000}}
CAPTIONS = 20


class Options(CarvedOptions):
    """Which list is trained on."""

    train: Literal["9k", "7k"] | None = Field(None, description="Training list; null: the one there is, of two the 9k.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming the file and line that is missing, damaged or does not fit."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "get MSR-VTT's lists and videos, or name its folder (root=FOLDER)")
    places = parsing.find_places(root, {SIGN, TEST, *LISTS.values()})
    chosen: str = options.train or next((name for name, file in LISTS.items() if file in places), "9k")
    if missing := [file for file in (SIGN, TEST, LISTS[chosen]) if file not in places]:
        raise DataError(f"MSR-VTT in {root}: {', '.join(missing)} missing")
    captions = _captions(places[SIGN])
    names = _names(places[LISTS[chosen]])
    if silent := [name for name in names if name not in captions]:
        raise DataError(f"{places[SIGN]}: holds no sentence for {silent[0]} of {LISTS[chosen]}")
    whole = [Entry(name, tuple(captions[name])) for name in names]
    train, val = carve(whole, options.val_videos)
    published = {split: count - len(val) * (split == "train") for split, count in PUBLISHED[chosen].items()}
    splits: dict[Split, list[Entry]] = {"train": train, "val": val, "test": _pairs(places[TEST])}
    notes = [f"MSR-VTT: val: {len(val):,} training videos, one caption each"]
    if odd := [entry.name for entry in whole if len(entry.texts) != CAPTIONS]:
        notes.append(f"MSR-VTT: {len(odd):,} videos have not {CAPTIONS} captions (first: {odd[0]})")
    return dataset(NAME, LICENCE, Lists("MSR-VTT", root, published, splits), options, notes)


def _captions(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with parsing.told_of(path):
        for name, number, record in parsing.records(path, "sentences"):
            try:
                video, text = (parsing.field(record, key, str) for key in ("video_id", "caption"))
            except ValueError as error:
                raise ValueError(f"{name}[{number}]: {error}") from None
            if text := parsing.collapsed(text):
                found.setdefault(video, []).append(text)
    return found


def _names(path: Path) -> list[str]:
    names = [bare(name.strip()) for _, (name,) in parsing.table(path, ("video_id",))]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path}: {'a video stands there twice' if names else 'names no videos'}")
    return names


def _pairs(path: Path) -> list[Entry]:
    texts: dict[str, list[str]] = {}
    for line, (_, _, name, sentence) in parsing.table(path, ("key", "vid_key", "video_id", "sentence")):
        if not (text := parsing.collapsed(sentence)):
            raise DataError(f"{path}: line {line}: no sentence")
        texts.setdefault(bare(name.strip()), []).append(text)
    if not texts:
        raise DataError(f"{path}: names no videos")
    return [Entry(name, tuple(some)) for name, some in texts.items()]
