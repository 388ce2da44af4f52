"""From who chose what to a set of histories: windows, what is dropped and why, splits. See ``histories.py``.

The readers of published sets say what stands in their files (``Raw``); ``compose`` does the rest for all of them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sensorium.config import Section
from sensorium.data import history_splits, parsing
from sensorium.data.captions import read_captions
from sensorium.data.feature_keys import ContentKeys
from sensorium.data.feature_store import MEMO
from sensorium.data.features import default_root
from sensorium.data.histories import ITEM, NO_TARGET
from sensorium.data.history_splits import Published, Rule
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff", ".tif")  # the first is preferred
TITLES = "titles"


class Choices(Section):
    """What can be chosen of every set of histories."""

    split: Rule = Field(
        "guide",
        description="`guide`: the published counts, in which training and test share targets; `honest`: no sample of "
        "training holds a held-out target, and validation has 200 samples of 10 users or more.",
    )
    seed: int = Field(42, ge=0, description="Of the splits, and of what else is drawn.")
    captions: str | None = Field(
        None, min_length=1, description="JSON from id to caption; null: a file that the data set brings, if it does."
    )
    bad_samples: Literal["raise", "skip"] = Field(
        "raise", description="What to do with a picture without a caption: stop, or leave out its samples."
    )
    max_bad: int = Field(100, ge=0, description="With `skip`: stop above so many such pictures.")


@dataclass(frozen=True, slots=True)
class Step:
    """A choice. ``target``: whether it may be foretold from those before. ``score``: of the user, or empty."""

    item: str
    score: str = ""
    target: bool = True


@dataclass(frozen=True)
class Raw:
    """What stands in the files of a data set. ``users``: in the order of the files, as are their choices;
    ``pictures``: of the items whose picture is there; ``about``: more of an item, by its id; ``told_by``: who wrote the
    captions; ``strangers``: pictures of other users are targets, so that a history tells nothing of them."""

    name: str
    licence: str
    root: Path
    history: int
    users: Mapping[str, Sequence[Step]]
    pictures: Mapping[str, Path]
    captions: Mapping[str, str]
    told_by: str
    about: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...] = ()
    published: Published = "windows"
    strangers: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """The sample whose target is the choice ``place`` of a user."""

    user: str
    place: int


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name without ending, accents written in one way (NFC)."""
    found: dict[str, tuple[int, Path]] = {}
    for name in parsing.names_in(folder):
        stem, dot, ending = name.rpartition(".")
        if dot and f".{ending.lower()}" in SUFFIXES:
            ranked = (SUFFIXES.index(f".{ending.lower()}"), folder / name)
            identity = unicodedata.normalize("NFC", stem)
            found[identity] = min(ranked, found.get(identity, ranked))
    return {name: path for name, (_, path) in found.items()}


def without_ending(name: str) -> str:
    """The name of a picture without its ending, accents written in one way."""
    stem, dot, ending = name.strip().rpartition(".")
    return unicodedata.normalize("NFC", stem if dot and f".{ending.lower()}" in SUFFIXES else name.strip())


def captions_of(options: Choices, root: Path, brought: str, titles: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Captions by id, and who wrote them: a file that was named, else one that the set brings, else its titles.

    Raises DataError where there is none of them.
    """
    named = Path(options.captions).expanduser() if options.captions else None
    path = named or next(iter(parsing.find_places(root, {brought}, depth=1).values()), None)
    if path is not None:
        return read_captions(path), path.name
    if titles:
        return dict(titles), TITLES
    raise DataError(
        f"{root}: there are no captions, as no such set has them; give captions=FILE (JSON from id to text; {brought} "
        "in that folder is found by itself), or let the scripts in examples/pmg/data write them: --captioner FOLDER"
    )


def compose(raw: Raw, options: Choices) -> tuple[DataSet, dict[str, Any]]:
    """The set of histories, and the facts of its making: what was dropped, and what each split holds.

    Raises DataError: nothing is left, captions are missing (policy ``raise``, or too many), a file cannot be read.
    """
    windows, dropped = _present(raw)
    if not windows:
        raise DataError(
            f"{raw.root}: no sample has all its pictures ({dropped['missing picture']:,} have not; {raw.history} "
            "choices and a target are one sample)"
        )
    digests = _digests(raw, windows)
    windows = _kept(raw, windows, dropped, digests, options)
    users: dict[str, list[Window]] = {}
    for one in windows:
        users.setdefault(one.user, []).append(one)

    def pictures(one: Window) -> list[str]:
        return [digests[step.item] for step in _steps(raw, one)]

    if options.split == "honest":
        parts, withheld = history_splits.honest(users, options.seed, pictures)
        dropped["holds a held-out target"] = withheld
    else:
        parts = history_splits.guide(users, options.seed, raw.published)
    lacking = [split for split in SPLITS if not parts[split]]
    if lacking:
        raise DataError(f"{raw.root}: {len(users):,} users with samples are too few; {' and '.join(lacking)} got none")
    held = {pictures(one)[-1] for split in ("val", "test") for one in parts[split]}
    leaking = sum(not held.isdisjoint(pictures(one)) for one in parts["train"])
    dropped["beyond the split"] = len(windows) - sum(map(len, parts.values())) - dropped["holds a held-out target"]
    facts = _facts(raw, options, parts, dropped) | {"train_samples_with_held_out_target": leaking}
    notes = (*raw.notes, *_notes(raw, facts))
    return DataSet(raw.name, raw.root, raw.licence, tuple(_items(raw, parts)), notes, history=raw.history), facts


def used_pictures(raw: Raw) -> dict[str, Path]:
    """The pictures, by item, that have to have captions: those of the samples all of whose pictures are there."""
    items = dict.fromkeys(step.item for one in _present(raw)[0] for step in _steps(raw, one))
    return {item: raw.pictures[item] for item in items}


def _steps(raw: Raw, one: Window) -> Sequence[Step]:
    return raw.users[one.user][one.place - raw.history : one.place + 1]


def _present(raw: Raw) -> tuple[list[Window], Counter[str]]:
    """The windows of which all pictures are there."""
    found: list[Window] = []
    dropped = Counter[str]()
    for user, steps in raw.users.items():
        for place in range(raw.history, len(steps)):
            if not steps[place].target:
                continue
            window = Window(user, place)
            if all(step.item in raw.pictures for step in _steps(raw, window)):
                found.append(window)
            else:
                dropped["missing picture"] += 1
    return found, dropped


def _digests(raw: Raw, windows: Sequence[Window]) -> dict[str, str]:
    """Digest of each picture's bytes, by item: two names of one picture are one picture."""
    items = list(dict.fromkeys(step.item for one in windows for step in _steps(raw, one)))
    keys = ContentKeys(default_root() / MEMO).keys([raw.pictures[item] for item in items])
    return dict(zip(items, keys, strict=True))


def _kept(
    raw: Raw, windows: Sequence[Window], dropped: Counter[str], digests: Mapping[str, str], options: Choices
) -> list[Window]:
    """Without those whose target stands in their own history, or of which a caption is missing."""
    found: list[Window] = []
    mute: dict[str, None] = {}
    for one in windows:
        *history, target = _steps(raw, one)
        if digests[target.item] in {digests[step.item] for step in history}:
            dropped["target in its own history"] += 1
            continue
        lacking = [step.item for step in (*history, target) if not raw.captions.get(step.item)]
        mute.update(dict.fromkeys(lacking))
        if lacking:
            dropped["no caption"] += 1
        else:
            found.append(one)
    if mute and (options.bad_samples == "raise" or len(mute) > options.max_bad):
        first = next(iter(mute))
        limit = f", {options.max_bad:,} may be (max_bad)" if options.bad_samples == "skip" else ""
        way = "complete them" if options.bad_samples == "skip" else "complete them, or bad_samples=skip leaves them out"
        raise DataError(
            f"{raw.root}: {len(mute):,} pictures have no caption in {raw.told_by}{limit} (first: {first}); {way}"
        )
    return found


def _items(raw: Raw, parts: Mapping[Split, Sequence[Window]]) -> list[Item]:
    """One for each choice that a sample holds."""
    split_of = {one.user: split for split in SPLITS for one in parts[split]}
    targets = {(one.user, one.place) for split in SPLITS for one in parts[split]}
    held = {
        (one.user, place)
        for split in SPLITS
        for one in parts[split]
        for place in range(one.place - raw.history, one.place + 1)
    }
    return [
        Item(
            id=f"{user}/{place}",
            group=user,
            split=split_of[user],
            text=raw.captions[step.item],
            image=raw.pictures[step.item],
            time=float(place),
            meta=_meta(raw, step, (user, place) in targets),
        )
        for user, steps in raw.users.items()
        for place, step in enumerate(steps)
        if (user, place) in held
    ]


def _meta(raw: Raw, step: Step, target: bool) -> dict[str, str]:
    score = {"score": step.score} if step.score else {}
    return {ITEM: step.item, **score, **raw.about.get(step.item, {}), **({} if target else NO_TARGET)}


def _facts(
    raw: Raw, options: Choices, parts: Mapping[Split, Sequence[Window]], dropped: Mapping[str, int]
) -> dict[str, Any]:
    def counts(windows: Sequence[Window]) -> dict[str, int]:
        pictures = {step.item for one in windows for step in _steps(raw, one)}
        users = {one.user for one in windows}
        return {"users": len(users), "samples": len(windows), "pictures": len(pictures)}

    return {
        "data_set": raw.name,
        "split": options.split,
        "seed": options.seed,
        "history": raw.history,
        "captions": raw.told_by,
        "users": len(raw.users),
        "splits": {split: counts(parts[split]) for split in SPLITS},
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "target_of_another_user": raw.strangers,
    }


def _notes(raw: Raw, facts: Mapping[str, Any]) -> list[str]:
    sizes = " / ".join(
        f"{facts['splits'][split]['samples']:,} ({facts['splits'][split]['users']:,})" for split in SPLITS
    )
    notes = [f"{raw.name}: {sizes} samples (users) in {' / '.join(SPLITS)}, split {facts['split']}"]
    notes += [f"{raw.name}: {count:,} samples dropped: {reason}" for reason, count in facts["dropped"].items()]
    if shared := facts["train_samples_with_held_out_target"]:
        notes.append(
            f"{raw.name}: {shared:,} samples of train hold a target of val or test; split=honest leaves them out"
        )
    if raw.strangers:
        notes.append(f"{raw.name}: targets are of other users, so that a history says nothing about them")
    return notes
