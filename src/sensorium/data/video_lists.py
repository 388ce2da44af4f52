"""What the readers of published sets of videos share: from lists of names to files, counted; and a validation part
where none is published.

A set never shrinks silently: fewer videos than its lists name is an error, unless as many may be missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sensorium.config import Section
from sensorium.data.items import SPLITS, DataSet, Item, Moment, Split
from sensorium.data.video import ENDINGS
from sensorium.errors import DataError

LARGEST_VAL = 0.15  # of the training videos
_DEPTH = 4
_NAMED = 10
_SILENT, _SILENT_SHARE = 10, 0.01  # names of a list that may be without a text


class ListOptions(Section):
    """What all of them are asked."""

    videos: str | None = Field(None, description="Folder of the videos, below the root; null: anywhere below it.")
    allow_missing: int = Field(0, ge=0, description="So many videos of the lists may be missing.")


class CarvedOptions(ListOptions):
    """Of a set without a validation part."""

    val_videos: int = Field(
        1000, ge=0, description="Training videos that become the validation part, at most 15 % of them; 0: none."
    )


@dataclass(frozen=True)
class Entry:
    """A video of a list. ``texts``: each is a query of its own. ``moments``: of all texts together. ``group``: where it
    is not the name."""

    name: str
    texts: tuple[str, ...]
    span: tuple[float, float] | None = None
    moments: tuple[Moment, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class Lists:
    """``title``: of the set, for people. ``published``: videos of each split in its paper. ``double``: names may carry
    a second ``.mp4``. ``prefix``: of all names, which files may lack. ``paths``: where the set itself says files lie.
    """

    title: str
    root: Path
    published: Mapping[Split, int]
    splits: Mapping[Split, Sequence[Entry]]
    double: bool = False
    prefix: str = ""
    paths: Mapping[str, Path] | None = None


def dataset(name: str, licence: str, lists: Lists, options: ListOptions, notes: Sequence[str] = ()) -> DataSet:
    """The videos that are there, one Item a text. Raises DataError: a video in two splits, under two endings, or
    missing."""
    _require_apart(lists)
    names = [entry.name for entries in lists.splits.values() for entry in entries]
    if not names:
        raise DataError(f"{lists.title} in {lists.root}: its lists name no videos")
    files = dict(lists.paths or {}) or _files(lists, names, options.videos)
    there = {name: path for name in names if (path := files.get(name)) is not None}
    counts = {
        split: (sum(entry.name in there for entry in entries), len(entries))
        for split, entries in lists.splits.items()
        if entries
    }
    said = [*_counted(lists, counts, there), *notes]
    _require_enough(lists, counts, there, options.allow_missing)
    items = tuple(
        item
        for split in SPLITS
        for entry in lists.splits.get(split, ())
        if entry.name in there
        for item in items_of(entry, split, there[entry.name])
    )
    return DataSet(name, lists.root, licence, items, tuple(said), found=counts)


def items_of(entry: Entry, split: Split, path: Path) -> list[Item]:
    """One Item a text; the moments stand with a text that is all there is."""
    moments = entry.moments if len(entry.texts) == 1 else ()
    return [
        Item(
            f"{entry.name}#{n}",
            entry.group or entry.name,
            split,
            text,
            None,
            None,
            (),
            None,
            {},
            path,
            entry.span,
            moments,
        )
        for n, text in enumerate(entry.texts)
    ]


def bare(name: str, double: bool = False) -> str:
    """A name without the ending of a video; ``double``: without a second one, too."""
    for _ in range(2 if double else 1):
        stem, ending = os.path.splitext(name)  # noqa: PTH122  (Path would drop a folder)
        name = stem if ending.lower() in ENDINGS else name
    return name


def described(path: Path, names: Sequence[str], texts: Container[str]) -> tuple[list[str], str]:
    """The names of a list of which something is said, and a note about the others, empty without any. Raises DataError
    when there are more of these than published lists have."""
    silent = [name for name in names if name not in texts]
    kept = [name for name in names if name in texts]
    if not kept or len(silent) > max(_SILENT, _SILENT_SHARE * len(names)):
        found = f"of {len(silent):,} of {len(names):,} videos no text says anything; {missing_names(silent)}"
        raise DataError(f"{path}: {found if names else 'names no videos'}")
    note = f"{path.name}: {len(names):,} names give {len(kept):,} videos with a text; {missing_names(silent)}"
    return kept, note if silent else ""


def carve(entries: Sequence[Entry], wanted: int) -> tuple[list[Entry], list[Entry]]:
    """The training part and the validation part: the videos with the smallest sha256 of their names, each with one of
    its texts, picked by the same hash. No text of theirs is left in training."""
    count = min(wanted, int(LARGEST_VAL * len(entries)))
    held = {entry.name for entry in sorted(entries, key=lambda entry: _digest(entry.name))[:count]}
    val = [
        Entry(one.name, (one.texts[_digest(one.name) % len(one.texts)],), one.span, one.moments)
        for one in entries
        if one.name in held
    ]
    return [entry for entry in entries if entry.name not in held], val


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")


def _require_apart(lists: Lists) -> None:
    owners: dict[str, Split] = {}
    for split, entries in lists.splits.items():
        for entry in entries:
            if owners.setdefault(entry.name, split) != split:
                raise DataError(
                    f"{lists.title} in {lists.root}: {entry.name} stands in {owners[entry.name]} and in {split}; what "
                    "is tested must not be trained on: mend the lists"
                )


def _files(lists: Lists, names: Sequence[str], folder: str | None) -> dict[str, Path]:
    """The file of each name. Raises DataError when there are two, or no such folder."""
    top = lists.root / folder if folder else lists.root
    if not top.is_dir():
        raise DataError(f"{top}: no such folder; videos=FOLDER names the one of the videos, below the root")
    wanted = set(names)
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(top, followlinks=True):
        level = len(Path(place).relative_to(top).parts)
        folders[:] = sorted(one for one in folders if one[0] != "." and one != "__MACOSX") if level < _DEPTH else []
        for file in sorted(files):
            stem = bare(file, lists.double)
            name = lists.prefix + stem.removeprefix(lists.prefix)
            if stem == file or name not in wanted or file[0] == ".":
                continue
            path = Path(place, file)
            if name in found:
                raise DataError(
                    f"{lists.title} in {lists.root}: two files for {name}: {found[name]} and {path}; keep one, or name "
                    "the folder of the videos (videos=FOLDER)"
                )
            found[name] = path
    return found


def _counted(lists: Lists, counts: Mapping[Split, tuple[int, int]], there: Mapping[str, Path]) -> list[str]:
    said = []
    for split, (found, named) in counts.items():
        missing = f"; {_missing(lists.splits[split], there)}" if found < named else ""
        said.append(f"{lists.title}: {split}: {found:,} of {named:,} videos are there{missing}")
    for split, published in lists.published.items():
        named = len(lists.splits.get(split, ()))
        if named != published:
            said.append(f"{lists.title}: {split}: the list here gives {named:,} videos, published are {published:,}")
    return said


def _require_enough(
    lists: Lists, counts: Mapping[Split, tuple[int, int]], there: Mapping[str, Path], allowed: int
) -> None:
    lacking = sum(named - found for found, named in counts.values())
    if lacking <= allowed and there:
        return
    lines = [
        f"{split}: {found:,} of {named:,} videos, {_missing(lists.splits[split], there)}"
        for split, (found, named) in counts.items()
        if found < named
    ]
    raise DataError(
        f"{lists.title} in {lists.root}: {'; '.join(lines)}. Get them, or allow it (allow_missing={lacking}): every "
        "number then says of how many videos it is"
    )


def _missing(entries: Sequence[Entry], there: Mapping[str, Path]) -> str:
    return missing_names([entry.name for entry in entries if entry.name not in there])


def missing_names(names: Sequence[str]) -> str:
    """The first ten of the names that are missing."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"missing: {', '.join(names[:_NAMED])}{more}"
