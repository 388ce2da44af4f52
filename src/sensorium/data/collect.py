"""Data sets as the training guides name them, each in a folder of its own: fetched, checked, and read to the end.

::

    ROOT/manifest.json   what came, with bytes, checksums, licence and date, and the counts of each split

A set is complete only when its reader can read it: an empty folder never is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sensorium.data import acquire, archives, catalog, clips, readers
from sensorium.data.acquire import Choices
from sensorium.data.catalog import Goal, Source
from sensorium.data.items import SPLITS, DataSet
from sensorium.data.transfer import Watch
from sensorium.errors import DataError
from sensorium.files import write_json

MANIFEST = "manifest.json"
State = Literal["complete", "partial", "failed"]
Plan = Sequence[tuple[Goal, Path]]
"""Which data sets, and where."""


@dataclass(frozen=True)
class Wishes:
    """``clips``: take the sound that comes clip by clip, too. ``trust``: what is there is not hashed again, and what a
    reader can read is taken as it is. ``verify``: fetch nothing, check what is there."""

    choices: Choices = field(default_factory=Choices)
    clips: clips.Wishes | None = None
    trust: bool = False
    verify: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one data set: what failed, and what is left to be done by hand or can be had in part only."""

    name: str
    failed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        return "failed" if self.failed else "partial" if self.left else "complete"


def require_possible(plan: Plan, wishes: Wishes) -> None:
    """Raise DataError, before the first byte comes, when a program is missing or a disk too small."""
    if wishes.verify:
        return
    needed: dict[int, tuple[int, Path]] = {}
    for goal, root in plan:
        sources = catalog.find(goal.sources)
        if wishes.clips is not None and any(source.clips for source in sources):
            clips.require_tools()
        todo = acquire.jobs(sources, root)
        if any(job.remote.kind == "7z" for job in todo):
            archives.require_7z()
        place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
        device = os.stat(place).st_dev  # noqa: PTH116  (the sets may lie on several disks)
        before = needed.get(device, (0, root))[0]
        needed[device] = before + acquire.needed_space(todo, root, wishes.choices), root
    for size, root in needed.values():
        free = acquire.free_space(root)
        if size > free:
            raise DataError(f"{root}: {size:,} bytes are needed on its disk, {free:,} are free; nothing was downloaded")


def collect(goal: Goal, root: Path, wishes: Wishes, watch: Watch) -> Outcome:
    """Get one data set, as far as a program can. Raises DiskError, and DataError when ``root`` cannot be used."""
    sources = catalog.find(goal.sources)
    if wishes.trust and _is_complete_without_us(goal, root):
        watch.say(f"{goal.name}: can be read in {root}; taken as it is")
        return Outcome(goal.name, left=_missing_clips(sources, root, wishes))
    if wishes.verify:
        problems = acquire.unchanged(sources, root, watch)
    else:
        problems = acquire.acquire(sources, root, wishes.choices, watch)
    cut = [source for source in sources if source.clips]
    if cut and wishes.clips is not None and not (problems or wishes.verify):
        try:
            with acquire.locked(root):
                clips.fetch(root, wishes.clips, watch)
        except DataError as error:
            problems.append(str(error))
    left = [f"{source.name}: {source.manual}" for source in sources if source.manual]
    if problems:
        return Outcome(goal.name, tuple(problems), tuple(left))
    if cut:
        left = list(_missing_clips(sources, root, wishes))
    if goal.reader:
        found = _read(goal, root)
        if isinstance(found, DataSet):
            if (root / acquire.MANIFEST).exists() and not wishes.verify:
                _write_manifest(goal, root, found)
            left = left if cut else []  # who did by hand what had to be done has it all
        elif not left:
            return Outcome(goal.name, (str(found),))
        elif root.exists() and not cut:
            left.append(str(found))
    return Outcome(goal.name, left=tuple(left))


def _is_complete_without_us(goal: Goal, root: Path) -> bool:
    """Whether somebody else has put a data set there that its reader can read."""
    return bool(goal.reader) and not (root / acquire.MANIFEST).exists() and isinstance(_read(goal, root), DataSet)


def _missing_clips(sources: Sequence[Source], root: Path, wishes: Wishes) -> tuple[str, ...]:
    """What to say when not all clips are there."""
    cut = [source for source in sources if source.clips]
    if not cut:
        return ()
    asked, there = clips.count(root, wishes.clips.limit if wishes.clips else None)
    if there == asked:
        return ()
    gone = f"; {clips.GONE} says which are gone for ever" if (root / clips.GONE).exists() else ""
    return tuple(
        f"{source.name}: {there:,} of {asked:,} clips are there{gone}. {_capital(source.manual)}" for source in cut
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _read(goal: Goal, root: Path) -> DataSet | DataError:
    try:
        return readers.read(goal.reader, root)
    except DataError as error:
        return error


def _write_manifest(goal: Goal, root: Path, dataset: DataSet) -> None:
    counts: Mapping[str, Any] = {
        split: {"items": len(items), "groups": len({item.group for item in items})}
        for split in SPLITS
        for items in (dataset.of_split(split),)
    }
    content = {
        "format": 1,
        "name": goal.name,
        "licence": " / ".join(source.licence for source in catalog.find(goal.sources)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": counts,
        "notes": list(dataset.notes),
        "files": acquire.records(root),
    }
    write_json(root / MANIFEST, content)
