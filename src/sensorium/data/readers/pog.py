"""POG (Chen 2019), which is Alibaba iFashion: what 3.57 million users clicked before they clicked an outfit.

The files as they are published (github.com/wenyuer/POG), unpacked, with the pictures beside them::

    user_data.txt            user,item;item;…,outfit: what was clicked, oldest first, and the outfit clicked then
    outfit_data.txt          outfit,item;item;…
    item_data.txt            item,category,address of its picture,title
    images/ITEM.jpg          the pictures, which have to be fetched by their addresses: data/links.py
    captions_sampled.json    optional: from item to caption; else titles are the captions

Only ``users`` of the users are read, drawn by the seed, each with the last of their lines. With ``target=next`` what
was clicked next is foretold; with ``target=outfit`` an item of the outfit, from the last five clicks.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium import reading
from sensorium.data import parsing
from sensorium.data.grouping import draw
from sensorium.data.history_build import Choices, Raw, Step, captions_of, compose, pictures_in
from sensorium.data.items import DataSet
from sensorium.errors import DataError

NAME = "pog"
SUMMARY = "POG (Alibaba iFashion): what users clicked, one garment after the other, and the outfit after that"
LICENCE = "academic use, as its repository states"
DEFAULT_ROOT = Path("data/pog")
USERS, OUTFITS, ITEMS, PICTURES = "user_data.txt", "outfit_data.txt", "item_data.txt", "images"
CAPTIONS = "captions_sampled.json"
_OUTFIT_HISTORY = 5
_ADVICE = "its files come from github.com/wenyuer/POG; it is not Polyvore"


class Options(Choices):
    """Whose clicks are read, and how they are split."""

    history: int | None = Field(
        None, ge=1, le=32, description="Clicks before the item that is foretold; null: 3, or 5 with target=outfit."
    )
    users: int = Field(2000, ge=4, le=10_000_000, description="Users that are read, drawn by the seed.")
    target: Literal["next", "outfit"] = Field(
        "next", description="The next click is foretold, or an item of the outfit from the last clicks."
    )

    @property
    def length(self) -> int:
        """Clicks before the item that is foretold."""
        return self.history or (_OUTFIT_HISTORY if self.target == "outfit" else 3)


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming file and line of what is missing or damaged."""
    return compose(gather(root, options), options)[0]


def gather(root: Path | None, options: Options, *, captions: Mapping[str, str] | None = None, by: str = "") -> Raw:
    """What stands in its files. ``captions``: instead of titles or a file of them, written by ``by``."""
    root = root or DEFAULT_ROOT
    users = clicked(root, options)
    titles, _ = _items(root, _wanted(users))
    if captions is None:
        captions, by = captions_of(options, root, CAPTIONS, titles)
    folder = parsing.find_places(root, {PICTURES}, depth=1, closed={PICTURES}).get(PICTURES)
    if folder is None:
        raise DataError(
            f"POG in {root}: the folder {PICTURES} is missing; examples/pmg/data/preprocess_pog.py --download fetches "
            "the pictures by their addresses"
        )
    pictures = pictures_in(folder)
    note = f"POG: {len(users):,} users with {options.length + 1} clicks or more, targets: {options.target}"
    return Raw(NAME, LICENCE, root, options.length, users, pictures, captions, by, {}, (note,))


def addresses(root: Path, options: Options) -> dict[str, str]:
    """Where the pictures that ``read`` looks for are, by item. Raises DataError."""
    return _items(root, _wanted(clicked(root, options)))[1]


def clicked(root: Path, options: Options) -> dict[str, list[Step]]:
    """What each of the drawn users clicked, and what is foretold. Raises DataError."""
    parsing.require_folder(root, _ADVICE)
    lines = _drawn(root, options)
    if not lines:
        raise DataError(f"{root / USERS}: no user has {options.length} clicks or more")
    if options.target == "next":
        return {user: [Step(item) for item in items] for user, (items, _) in lines.items()}
    outfits = _outfits(root, {outfit for _, outfit in lines.values()})
    found: dict[str, list[Step]] = {}
    for user, (items, outfit) in lines.items():
        history = items[-options.length :]
        others = [item for item in outfits.get(outfit, ()) if item not in history]
        if others:
            target = others[int(draw(options.seed, "outfit", user) * len(others))]
            found[user] = [*(Step(item, target=False) for item in history), Step(target)]
    return found


def _drawn(root: Path, options: Options) -> dict[str, tuple[list[str], str]]:
    """Clicks and outfit of the users whose number is among the smallest, in the order of the file; one pass, and no
    more of it in memory than these: there are millions."""
    needed = options.length + (options.target == "next")
    kept: dict[str, tuple[list[str], str]] = {}
    largest: list[tuple[float, str]] = []
    for line, (user, clicks, outfit) in _rows(root / USERS, 3):
        items = _split(root / USERS, line, clicks)
        if len(items) < needed:
            continue
        if user not in kept:
            number = -draw(options.seed, "pog", user)
            if len(largest) == options.users:
                if number <= largest[0][0]:
                    continue
                del kept[heapq.heappop(largest)[1]]
            heapq.heappush(largest, (number, user))
        kept[user] = (items, outfit)
    return kept


def _wanted(users: Mapping[str, list[Step]]) -> set[str]:
    return {step.item for steps in users.values() for step in steps}


def _outfits(root: Path, wanted: Collection[str]) -> dict[str, list[str]]:
    path = root / OUTFITS
    return {outfit: _split(path, line, items) for line, (outfit, items) in _rows(path, 2) if outfit in wanted}


def _items(root: Path, wanted: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Title and address of each item."""
    titles: dict[str, str] = {}
    links: dict[str, str] = {}
    for _, (item, _, link, title) in _rows(root / ITEMS, 4):
        if item in wanted:
            links[item] = link
            if title:
                titles[item] = parsing.collapsed(title)
    return titles, links


def _split(path: Path, line: int, text: str) -> list[str]:
    items = [item.strip() for item in text.split(";") if item.strip()]
    if not items:
        raise DataError(f"{path}: line {line}: expected items with ; between them (found {text[:60]!r})")
    return items


def _rows(path: Path, count: int) -> Iterator[tuple[int, list[str]]]:
    """Lines of so many fields, read one by one; the last field may hold commas. Raises DataError."""
    try:
        with reading.open_plain(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="\n") as text:
            for number, line in enumerate(text, start=1):
                if not line.strip():
                    continue
                fields = [field.strip() for field in line.split(",", count - 1)]
                if len(fields) != count or not fields[0]:
                    raise DataError(
                        f"{path}: line {number}: expected {count} fields with commas between them "
                        f"(found {line.strip()[:60]!r}); {_ADVICE}"
                    )
                yield number, fields
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from None
