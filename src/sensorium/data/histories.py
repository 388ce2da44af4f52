"""Sets of histories: what users chose one after the other, and which choices are to be foretold from those before.

In such a set (``DataSet.history`` is not None) a group is a user and an item is one choice of theirs, with picture and
caption; ``time`` gives the order. An item is the target of a sample whose history are the ``DataSet.history`` items
before it in its group. ``meta`` may say otherwise: ``{"history": "5"}`` is a history of five, ``{"history": "0"}`` an
item that is no target; the first items of a group are none by themselves. ``meta["item"]`` is what the data set itself
calls the picture, ``score`` and ``aesthetic`` are its numbers.

Users are disjoint between splits, but what they chose need not be. So what must not be in two splits is a target: no
sample of ``train`` may hold the target of another split (``leaks``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensorium.data.items import DataSet, Item, Split
from sensorium.data.tastes import Liked, Taste
from sensorium.errors import DataError

HISTORY, ITEM = "history", "item"  # keys of meta
_SHOWN = 20
NO_TARGET: Mapping[str, str] = {HISTORY: "0"}


@dataclass(frozen=True, slots=True)
class Sample:
    """A target and what was chosen before it, oldest first. ``number``: of this one among the user's samples."""

    history: tuple[Item, ...]
    target: Item
    number: int

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.history, self.target)


def samples(dataset: DataSet, history: int | None = None) -> Iterator[Sample]:
    """The samples of a set, user by user. ``history``: instead of the set's own number, 3 where it has none.

    Raises DataError that lists the items that have no picture, no place in time among others that have one, or a
    history that is no number or not there.
    """
    usual = history or dataset.history or 3
    problems: list[str] = []
    for user in _users(dataset.items, problems):
        number = 0
        for place, item in enumerate(user):
            length = _length(item, place, usual, problems)
            if length:
                yield Sample(tuple(user[place - length : place]), item, number)
                number += 1
    if problems:
        more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([f"{dataset.root}: {len(problems)} problems", *problems[:_SHOWN], *more]))


def _users(items: Sequence[Item], problems: list[str]) -> Iterator[list[Item]]:
    """The items of each group in their order; where none has a time, that of the set."""
    users: dict[str, list[Item]] = {}
    for item in items:
        if item.image is None:
            problems.append(f"  {item.id}: has no picture")
        users.setdefault(item.group, []).append(item)
    for user in users.values():
        times = [item.time for item in user if item.time is not None]
        if times and len(times) < len(user):
            late = next(item for item in user if item.time is None)
            problems.append(f"  {late.id}: has no time, but others of its group {late.group!r} have")
        yield sorted(user, key=lambda item: item.time or 0.0)


def _length(item: Item, place: int, usual: int, problems: list[str]) -> int:
    """How many items before this one are its history; 0: it is no target."""
    told = item.meta.get(HISTORY)
    if told is None:
        return usual if place >= usual else 0
    if not told.isdecimal() or int(told) > place:
        problems.append(f"  {item.id}: meta.history is {told!r}; {place} items of its group stand before it")
        return 0
    return int(told)


def tastes(dataset: DataSet, history: int | None = None) -> dict[Split, list[Taste]]:
    """The samples as histories of captions and pictures, by split; what has no caption has an empty one.

    Raises DataError as ``samples`` does, and where nobody chose enough.
    """
    found: dict[Split, list[Taste]] = {}
    for one in samples(dataset, history):
        where = f"{dataset.root}, item {one.target.id!r}"
        liked = [_liked(item, dataset.root) for item in one.items]
        taste = Taste(one.target.group, tuple(liked[:-1]), liked[-1], "", where)
        found.setdefault(one.target.split, []).append(taste)
    if not found:
        needed = (history or dataset.history or 3) + 1
        raise DataError(f"{dataset.root}: no group has {needed} items, a history and a target; data.history sets it")
    return found


def _liked(item: Item, root: Path) -> Liked:
    assert item.image is not None  # samples refuses items without one
    return Liked(name_of(item, root), (item.text or "").strip(), item.image)


def name_of(item: Item, root: Path) -> str:
    """What a picture is called: as its data set does, else by its path."""
    path = item.image
    if path is None or ITEM in item.meta:
        return item.meta.get(ITEM, item.id)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def leaks(found: Iterable[Sample], key: Callable[[Item], str]) -> list[Sample]:
    """The samples of ``train`` that hold a target of another split. ``key``: equal for the same picture."""
    everything = list(found)
    held = {key(one.target) for one in everything if one.target.split != "train"}
    return [one for one in everything if one.target.split == "train" and any(key(item) in held for item in one.items)]


def problems(dataset: DataSet, digests: Mapping[Path, str]) -> Iterator[str]:
    """What is wrong with the splits of a set of histories. ``digests``: of the bytes of its pictures; a file that is
    not in it is known by its path."""

    def key(item: Item) -> str:
        return digests.get(item.image, str(item.image)) if item.image is not None else item.id

    found = list(samples(dataset))
    own = [one for one in found if key(one.target) in {key(item) for item in one.history}]
    if own:
        yield f"{len(own):,} samples have their target in their own history (first: {own[0].target.id})"
    shared = leaks(found, key)
    if shared:
        yield (
            f"{len(shared):,} samples of train hold a target of val or test (first: {shared[0].target.id}); "
            "split=honest leaves such ones out"
        )
