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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        shown = problems[:_MOST_PROBLEMS]
        more = [f"  and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        many = "problem" if len(problems) == 1 else "problems"
        raise DataError("\n".join([f"{path}: {len(problems)} {many}", *(f"  {one}" for one in shown), *more]))
    if not found:
        raise DataError(f"{path}: holds no samples")
    if not styles:
        return found
    return [
        one if one.style else Taste(one.user, one.history, one.target, styles.get(one.user, ""), one.where)
        for one in found
    ]


def _taste(path: Path, number: int, content: Any, places: Places, problems: list[str]) -> Taste | None:
    before = len(problems)

    def problem(key: str, text: str) -> None:
        problems.append(f"object {number}, {key}: {text}")

    if not isinstance(content, dict):
        problem("(whole)", f"expected an object (found {_shown(content)})")
        return None
    for key in content.keys() - _KNOWN:
        problem(key, f"unknown key; known are {', '.join(sorted(_KNOWN))}")
    users = [key for key in USERS if key in content]
    if len(users) != 1:
        problem(" or ".join(USERS), f"expected exactly one of them (found {len(users)})")
    user = _identity(content[users[0]]) if users else None
    if users and user is None:
        problem(users[0], f"expected text or a number (found {_shown(content[users[0]])})")
    style = next((content[key] for key in STYLES if content.get(key) is not None), "")
    if not isinstance(style, str):
        problem("user_style", f"expected text (found {_shown(style)})")
    history = _history(content, path, places, problem)
    target = _liked(content.get("target_item_info"), "target_item_info", path, places, problem)
    wanted = _identity(content.get("target_item_id"))
    if wanted is None:
        problem("target_item_id", f"expected text or a number (found {_shown(content.get('target_item_id'))})")
    elif target is not None and target.id != wanted:
        problem("target_item_info.item_id", f"is {target.id!r}, but target_item_id is {wanted!r}")
    if len(problems) > before or target is None or user is None:
        return None
    return Taste(user, history, target, str(style).strip(), f"{path}, object {number}")


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
    for name in content.keys() - _ITEM:
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
    """Of pictures in folders that are not there: they have been moved."""
    folders = {one.path.parent: one for taste in found for one in (*taste.history, taste.target)}
    for folder, one in folders.items():
        if not folder.is_dir():
            advice = (
                f'data.path_prefix: {{"{folder}": "where it is now"}}' if folder.is_absolute() else "data.image_dir"
            )
            yield f"picture {one.id!r}: the folder {folder} is not there; set {advice} if it lies elsewhere"


def read_styles(path: Path) -> dict[str, str]:
    """Style text by user, of a list of ``{"user" or "worker", "style"}`` or of an object from topic to
    ``{"topic", "keywords", …}``. Raises DataError that lists every problem."""
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    topics = isinstance(content, dict)
    entries = content.items() if topics else enumerate(content if isinstance(content, list) else [])
    found: dict[str, str] = {}
    problems = [] if topics or isinstance(content, list) else ["expected a list or an object"]
    for key, one in entries:
        values = one if isinstance(one, dict) else {}
        user = _identity(values.get("user", values.get("worker", values.get("topic", key if topics else None))))
        style = values.get("style", values.get("keywords"))
        style = ", ".join(style) if isinstance(style, list) and all(isinstance(s, str) for s in style) else style
        if user is None or not isinstance(style, str):
            problems.append(f"entry {key}: expected user (or worker) and style, or topic and keywords")
        else:
            found[user] = style
    if problems:
        raise DataError("\n".join([f"{path}: {len(problems)} problems", *(f"  {one}" for one in problems[:20])]))
    return found
