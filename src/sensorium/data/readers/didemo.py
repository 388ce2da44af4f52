"""DiDeMo (Hendricks 2017): videos from Flickr, of which up to 30 seconds are described, moment by moment.

::

    {train,val,test}_list.txt      names of videos, one a line
    {train,val,test}_data.json     [{"video", "description", "times": [[first, last], …], …}]; times: numbers of
                                   stretches of 5 s, as several people chose them
    anywhere below                 the videos, with whatever ending, perhaps with a second .mp4

Retrieval takes all descriptions of a video as one paragraph (``paragraphs``). One Item is one paragraph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from sensorium.data import parsing
from sensorium.data.items import SPLITS, DataSet, Moment, Split
from sensorium.data.video_lists import Entry, ListOptions, Lists, bare, dataset, described
from sensorium.errors import DataError

NAME = "didemo"
SUMMARY = "DiDeMo: 10,464 videos from Flickr, their moments described; a paragraph for each video"
LICENCE = "descriptions: BSD-2; the videos: as their makers say on Flickr"
SIGN = "train_data.json"
DEFAULT_ROOT = Path("data/didemo")
PUBLISHED: dict[Split, int] = {"train": 8392, "val": 1065, "test": 1004}
STRETCH, SPAN = 5.0, (0.0, 31.0)  # seconds


class Options(ListOptions):
    """How descriptions are taken."""

    paragraphs: bool = Field(True, description="Join all descriptions of a video; false: each is a query of its own.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming the file, and the entry in it, that is missing or damaged."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "get DiDeMo's lists and videos, or name its folder (root=FOLDER)")
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("list.txt", "data.json")]
    places = parsing.find_places(root, set(wanted))
    if missing := [name for name in wanted if name not in places]:
        raise DataError(f"DiDeMo in {root}: {', '.join(missing)} missing")
    splits: dict[Split, list[Entry]] = {}
    notes: list[str] = []
    for split in SPLITS:
        listed = places[f"{split}_list.txt"]
        said = _descriptions(places[f"{split}_data.json"])
        names = list(dict.fromkeys(bare(line, double=True) for _, line in parsing.lines(listed)))
        names, note = described(listed, names, said)
        splits[split] = [_entry(name, said[name], options.paragraphs) for name in names]
        notes += [note] if note else []
    return dataset(NAME, LICENCE, Lists("DiDeMo", root, PUBLISHED, splits, double=True), options, notes)


def _descriptions(path: Path) -> dict[str, list[Moment]]:
    found: dict[str, list[Moment]] = {}
    with parsing.told_of(path):
        for _, number, record in parsing.records(path, ""):
            try:
                name, text = (parsing.field(record, key, str) for key in ("video", "description"))
                start, end = _when(parsing.field(record, "times", list))
            except ValueError as error:
                raise ValueError(f"[{number}]: {error}") from None
            if text := parsing.collapsed(text):
                found.setdefault(bare(name, double=True), []).append(Moment(start, end, text))
    return found


def _when(times: list[Any]) -> tuple[float, float]:
    """The seconds that most people chose; of equals the first. Raises ValueError."""
    pairs = Counter(_pairs(times))
    if not pairs:
        raise ValueError("times: names no stretch")
    first, last = pairs.most_common(1)[0][0]
    return STRETCH * first, STRETCH * (last + 1)


def _pairs(times: list[Any]) -> Iterator[tuple[int, int]]:
    for pair in times:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(one) is int for one in pair)):
            raise ValueError(f"times: expected pairs of whole numbers (found {str(pair)[:40]})")
        if not 0 <= pair[0] <= pair[1] < 100:
            raise ValueError(f"times: {pair} is no stretch from first to last")
        yield pair[0], pair[1]


def _entry(name: str, moments: list[Moment], paragraphs: bool) -> Entry:
    texts = tuple(moment.text for moment in moments)
    return Entry(name, (" ".join(texts),) if paragraphs else texts, SPAN, tuple(moments))
