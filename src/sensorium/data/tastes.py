"""What users liked, and what they chose next: the processed JSON of personalised picture generation.

A file is a list of objects (two spellings of the user are read):

```
{"user_id": "7",                       or "worker_id"; text or number
 "history_item_ids": ["a", "b", "c"],
 "history_items_info": [{"item_id": "a", "caption": "…", "image_path": "a.jpg", "score": 4}, …],   the same order
 "target_item_id": "d",
 "target_item_info": {"item_id": "d", "caption": "…", "image_path": "d.jpg"},
 "user_style": "blue, round"}          or "worker_style"; optional
```
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sensorium import reading
from sensorium.errors import DataError

USERS, STYLES = ("user_id", "worker_id"), ("user_style", "worker_style")
KEPT = ("num_interactions", "window_position", "total_sequence_length", "sample_index")
_ITEM = {"item_id", "caption", "image_path", "score", "aesthetic_score"}
_KNOWN = {
    *(*USERS, *STYLES, *KEPT),
    *("history_item_ids", "history_items_info", "target_item_id", "target_item_info"),
}
_MOST_PROBLEMS = 20  # that one error lists


@dataclass(frozen=True)
class Liked:
    """A picture that somebody liked."""

    id: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Taste:
    """A user's history, oldest first, and the target. ``where``: file and number of the object, for messages."""

    user: str
    history: tuple[Liked, ...]
    target: Liked
    style: str
    where: str

    def problem(self) -> str | None:
        """Why nothing can be learned from it, whatever its picture looks like."""
        empty = next((one for one in (*self.history, self.target) if not one.caption.strip()), None)
        if empty is not None:
            return f"{self.where}: picture {empty.id!r} has an empty caption"
        if self.target.id in {one.id for one in self.history}:
            return f"{self.where}: the target {self.target.id!r} stands in its own history"
        return None


@dataclass(frozen=True)
class Places:
    """Where pictures lie: ``folder`` before relative paths, None: that of the JSON file; ``prefixes``: beginnings of
    absolute paths, and what to put instead."""

    folder: Path | None = None
    prefixes: Mapping[str, str] | None = None

    def of(self, given: str, file: Path) -> Path:
        """The path of a picture that ``file`` names."""
        for old, new in (self.prefixes or {}).items():
            if given == old or given.startswith(old.rstrip("/") + "/"):
                return Path(new).expanduser() / given[len(old) :].lstrip("/")
        return Path(given) if Path(given).is_absolute() else (self.folder or file.parent) / given


def read_tastes(path: Path, places: Places, styles: Mapping[str, str] | None = None) -> list[Taste]:
    """The samples of a file. ``styles``: by user, for samples without a style of their own.

    Raises DataError that lists every problem with the number of the object and the key. That a picture is missing or
    broken is found when it is used; a folder that is not there is a problem of the file.
    """
    problems: list[str] = []
    found: list[Taste] = []
    try:
        for _, number, content in reading.json_lists(path, {""}):
            taste = _taste(path, number, content, places, problems)
            if taste is not None:
                found.append(taste)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    problems += _missing_folders(found, path)
    if problems:
        raise DataError(_listing(path, problems))
    if not found:
        raise DataError(f"{path}: holds no samples")
    return with_styles(found, styles)


def with_styles(tastes: Sequence[Taste], styles: Mapping[str, str] | None) -> list[Taste]:
    """The samples with the style text of their user, where they have none of their own."""
    return [one if one.style or not styles else replace(one, style=styles.get(one.user, "")) for one in tastes]


def _taste(path: Path, number: int, content: Any, places: Places, problems: list[str]) -> Taste | None:
    before = len(problems)

    def problem(key: str, text: str) -> None:
        problems.append(f"object {number}, {key}: {text}")

    if not isinstance(content, dict):
        problem("(whole)", f"expected an object (found {_shown(content)})")
        return None
    for key in sorted(content.keys() - _KNOWN):
        problem(key, f"unknown key; known are {', '.join(sorted(_KNOWN))}")
    users = [key for key in USERS if key in content]
    if len(users) != 1:
        problem(" or ".join(USERS), f"expected exactly one of them (found {len(users)})")
    user = _identity(content[users[0]]) if users else None
    if users and user is None:
        problem(users[0], f"expected text or a number (found {_shown(content[users[0]])})")
    style = _style(content, problem)
    for key in KEPT:
        if content.get(key) is not None and type(content[key]) is not int:
            problem(key, f"expected a whole number (found {_shown(content[key])})")
    history = _history(content, path, places, problem)
    target = _liked(content.get("target_item_info"), "target_item_info", path, places, problem)
    wanted = _identity(content.get("target_item_id"))
    if wanted is None:
        problem("target_item_id", f"expected text or a number (found {_shown(content.get('target_item_id'))})")
    elif target is not None and target.id != wanted:
        problem("target_item_info.item_id", f"is {target.id!r}, but target_item_id is {wanted!r}")
    if len(problems) > before or target is None or user is None:
        return None
    return Taste(user, history, target, style, f"{path}, object {number}")


def _style(content: Mapping[str, Any], problem: Any) -> str:
    given = [key for key in STYLES if content.get(key) is not None]
    if len(given) > 1:
        problem(" or ".join(STYLES), f"expected at most one of them (found {len(given)})")
    style = content[given[0]] if given else ""
    if not isinstance(style, str):
        problem(given[0], f"expected text (found {_shown(style)})")
        return ""
    return style.strip()


def _history(content: Mapping[str, Any], path: Path, places: Places, problem: Any) -> tuple[Liked, ...]:
    ids, infos = content.get("history_item_ids"), content.get("history_items_info")
    if not isinstance(infos, list) or not infos:
        problem("history_items_info", f"expected a list of at least one picture (found {_shown(infos)})")
        infos = []
    found = [_liked(one, f"history_items_info[{place}]", path, places, problem) for place, one in enumerate(infos)]
    if not isinstance(ids, list):
        problem("history_item_ids", f"expected a list (found {_shown(ids)})")
    elif infos and None not in found and [_identity(one) for one in ids] != [one.id for one in found if one]:
        problem("history_item_ids", "are not those of history_items_info, in the same order")
    return tuple(one for one in found if one is not None)


def _liked(content: Any, key: str, path: Path, places: Places, problem: Any) -> Liked | None:
    if not isinstance(content, dict):
        problem(key, f"expected an object (found {_shown(content)})")
        return None
    identity = _identity(content.get("item_id"))
    wrong = [f"{key}.{name}" for name in ("caption", "image_path") if not isinstance(content.get(name), str)]
    wrong += [f"{key}.item_id"] if identity is None else []
    for name in wrong:
        value = content.get(name.rpartition(".")[2])
        problem(name, "missing" if value is None else f"expected text (found {_shown(value)})")
    for name in ("score", "aesthetic_score"):
        value = content.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            problem(f"{key}.{name}", f"expected a number (found {_shown(value)})")
    for name in sorted(content.keys() - _ITEM):
        problem(f"{key}.{name}", f"unknown key; known are {', '.join(sorted(_ITEM))}")
    if wrong or identity is None:
        return None
    return Liked(identity, content["caption"].strip(), places.of(content["image_path"], path))


def _identity(value: Any) -> str | None:
    """``7`` and ``"7"`` are the same user."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 60 else f"{text[:60]} …"


def _missing_folders(found: Sequence[Taste], path: Path) -> Iterator[str]:
    """Of pictures in folders that are not there: they have been moved, and those that were moved together are one."""
    folders = {one.path.parent: one for taste in found for one in (*taste.history, taste.target)}
    moved: dict[Path, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            above = (folder, *folder.parents)
            moved.setdefault(next(one for one in reversed(above) if not one.is_dir()), []).append(folder)
    for together in moved.values():
        place, one = Path(os.path.commonpath(together)), folders[together[0]]
        advice = f'data.path_prefix: {{"{place}": "where it is now"}}' if place.is_absolute() else "data.image_dir"
        more = f", nor are {len(together) - 1:,} more below {place}" if len(together) > 1 else ""
        yield f"picture {one.id!r}: the folder {together[0]} is not there{more}; set {advice} if it lies elsewhere"


def read_styles(path: Path) -> dict[str, str]:
    """Style text by user, of a list of ``{"user" or "worker", "style"}`` or of an object from topic to
    ``{"topic", "keywords", …}`` or to text. Raises DataError that lists every problem."""
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, list | dict):
        raise DataError(f"{path}: expected a list or an object (found {_shown(content)})")
    entries = content.items() if isinstance(content, dict) else ((None, one) for one in content)
    found: dict[str, str] = {}
    problems: list[str] = []
    for number, (key, one) in enumerate(entries):
        where = f"entry {number if key is None else key}"
        user, style = _preference(key, one)
        if user is None or style is None:
            problems.append(f"{where}: expected user (or worker) and style, or topic and keywords")
        elif key is not None and user != key:
            problems.append(f"{where}: is called {user!r} inside")
        elif user in found:
            problems.append(f"{where}: the user {user!r} stands there already")
        else:
            found[user] = style
    if problems:
        raise DataError(_listing(path, problems))
    return found


def _preference(key: str | None, one: Any) -> tuple[str | None, str | None]:
    """User and style of an entry, as far as it has them. ``key``: its key, in an object."""
    if isinstance(one, str):
        return key, one.strip()
    if not isinstance(one, dict):
        return None, None
    names = [name for name in ("user", "worker", "topic") if name in one]
    user = _identity(one[names[0]]) if len(names) == 1 else None if names else key
    style = one.get("style", one.get("keywords"))
    if isinstance(style, list) and all(isinstance(word, str) for word in style):
        style = ", ".join(style)
    return user, style.strip() if isinstance(style, str) else None


def _listing(path: Path, problems: Sequence[str]) -> str:
    """The first problems, a line each, under a heading with their number."""
    shown = problems[:_MOST_PROBLEMS]
    more = [f"  and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    many = "problem" if len(problems) == 1 else "problems"
    return "\n".join([f"{path}: {len(problems)} {many}", *(f"  {one}" for one in shown), *more])
