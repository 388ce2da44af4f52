"""AudioCaps 1 (Kim 2019): clips of ten seconds from YouTube, one caption each to train on, five each to be tested on.

The lists are published, the sound is not::

    {train,val,test}.csv     audiocap_id,youtube_id,start_time,caption
    anywhere below           YOUTUBE_START.wav (ours), AUDIOCAP.*, YOUTUBE.* or YYOUTUBE.*, looked for in this order

Many clips are gone from YouTube for ever. What is missing is counted in the notes for each split, so that numbers can
be given with the number of clips that they rest on. Lists of version 2 are told from those of version 1 by their rows,
and by their captions, which begin with small letters; the two are never mixed. One Item is one caption, its id the
``audiocap_id``; its group is the clip.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.errors import DataError

NAME = "audiocaps"
SUMMARY = "AudioCaps: captions of ten-second clips from YouTube, as far as the clips are there"
LICENCE = "lists: MIT, for academic purposes only; the clips belong to their makers"
DEFAULT_ROOT = Path("data/audiocaps")
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
FULL: dict[Split, int] = {"train": 49_838, "val": 495, "test": 975}  # clips of version 1
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_DEPTH = 4
_YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}")
_NUMBER = re.compile(r"[0-9]{1,7}")


class Options(Section):
    """What is read."""

    version: Literal[1, 2] = Field(1, description="Of the lists that lie there; published numbers rest on 1.")


@dataclass(frozen=True, slots=True)
class Caption:
    """A row of a list. ``start``: seconds, as it is written."""

    id: str
    youtube: str
    start: str
    text: str
    line: int

    @property
    def clip(self) -> str:
        """The name of the clip: YOUTUBE_START."""
        return f"{self.youtube}_{self.start}"


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and line of what is damaged or of another version, or when no
    clip at all is there."""
    root = root or DEFAULT_ROOT
    lists = read_lists(root, options.version)
    sounds = sounds_below(root)
    items: list[Item] = []
    notes: list[str] = []
    for split, rows in lists.items():
        found = {row.clip: path for row in rows if (path := sound_of(row, sounds)) is not None}
        items += [
            Item(id=row.id, group=row.clip, split=split, text=row.text, audio=found[row.clip])
            for row in rows
            if row.clip in found
        ]
        notes += _notes(split, rows, found)
    if not items:
        raise DataError(
            f"AudioCaps in {root}: the lists are there, but none of their clips; the sound is not published: "
            f"`sensorium data download audiocaps --root {root} --audio` takes it from YouTube"
        )
    return DataSet(NAME, root, LICENCE, tuple(items), tuple(notes))


def read_lists(root: Path, version: int = 1) -> dict[Split, list[Caption]]:
    """The three lists, checked against each other. Raises DataError naming file and line."""
    advice = "get the lists by `sensorium data download audiocaps --root {}`, or name its folder (data.root=FOLDER)"
    parsing.require_folder(root, advice.format(root))
    places = parsing.find_places(root, {f"{split}.csv" for split in SPLITS})
    missing = [f"{split}.csv" for split in SPLITS if f"{split}.csv" not in places]
    if missing:
        raise DataError(f"AudioCaps in {root}: {', '.join(missing)} missing; {advice.format(root)}")
    lists: dict[Split, list[Caption]] = {}
    ids: dict[str, str] = {}
    videos: dict[str, tuple[Split, str]] = {}
    for split in SPLITS:
        path = places[f"{split}.csv"]
        lists[split] = list(_rows(path))
        _require_version(path, split, lists[split], version)
        for row in lists[split]:
            here = f"{path}: line {row.line}"
            if (before := ids.setdefault(row.id, here)) != here:
                raise DataError(f"{here}: audiocap_id {row.id} stands in {before} already")
            owner, first = videos.setdefault(row.youtube, (split, here))
            if owner != split:
                raise DataError(f"{here}: {row.youtube} of {split} stands in {first}, too, which is {owner}")
    return lists


def _rows(path: Path) -> Iterator[Caption]:
    for line, (name, youtube, start, caption) in parsing.table(path, COLUMNS):
        text = parsing.collapsed(caption)
        if not (_NUMBER.fullmatch(name) and _YOUTUBE.fullmatch(youtube) and _NUMBER.fullmatch(start) and text):
            found = ",".join((name, youtube, start, caption))[:80]
            raise DataError(f"{path}: line {line}: expected a number, an id of YouTube, seconds, a caption ({found!r})")
        yield Caption(name, youtube, start, text, line)


def _require_version(path: Path, split: Split, rows: list[Caption], version: int) -> None:
    """Version 2 kept the clips of val and test with their ids, so that only the captions tell."""
    if not rows:
        raise DataError(f"{path}: holds no captions")
    capital = sum(row.text[0].isupper() for row in rows)
    found = 1 if 2 * capital >= len(rows) and not (split == "train" and len(rows) > FULL["train"]) else 2
    if found != version:
        raise DataError(
            f"{path}: line {rows[-1].line}: {len(rows):,} rows, {capital:,} captions with a capital letter: this is "
            f"version {found}, version {version} is asked for; take all three lists of one version, and say which "
            f"(version={found})"
        )


def sounds_below(root: Path) -> dict[str, Path]:
    """Every clip below the root by its name without the ending; of two of one name, the first in alphabetical order."""
    sounds: dict[str, Path] = {}
    for top, folders, files in os.walk(root, followlinks=True):
        level = len(Path(top).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if f != "__MACOSX" and f[0] != ".") if level < _DEPTH else []
        for name in sorted(files):
            stem, ending = os.path.splitext(name)  # noqa: PTH122  (Path is slow, and takes `.wav` for a name)
            if ending.lower() in SOUNDS:
                sounds.setdefault(stem, Path(top, name))
    return sounds


def sound_of(row: Caption, sounds: Mapping[str, Path]) -> Path | None:
    """The file of a clip, under the first of its four names that is there."""
    names = (row.clip, row.id, row.youtube, f"Y{row.youtube}")
    return next((sounds[name] for name in names if name in sounds), None)


def _notes(split: Split, rows: list[Caption], found: Mapping[str, Path]) -> Iterator[str]:
    clips = dict.fromkeys(row.clip for row in rows)
    gone = [clip for clip in clips if clip not in found]
    missing = f", {len(gone):,} are missing (first: {gone[0]})" if gone else ""
    yield f"AudioCaps: {split}: {len(found):,} of {len(clips):,} clips are there{missing}"
    paths = Counter(found.values())
    if shared := sum(count > 1 for count in paths.values()):
        yield f"AudioCaps: {split}: {shared:,} files serve more than one clip; name them YOUTUBE_START"
    if split in FULL and len(clips) != FULL[split]:
        yield f"AudioCaps: {split}: version 1 has {FULL[split]:,} clips"
