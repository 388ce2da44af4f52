"""The native format: ``manifest.jsonl``, one object a line, paths relative to its folder.

    manifest.jsonl   {"id": "1", "group": "dog", "split": "train", "text": "a dog", "image": "images/dog.png", ...}
    dataset.json     optional: {"name": ..., "licence": ..., "notes": [...], "history": 3}

Keys of a line: ``id`` and ``split`` (train, val or test) are required, and one of ``text``, ``image``, ``audio``,
``video`` at least; ``group`` (default: the id), ``labels`` (list of words), ``time`` (seconds) and ``meta`` (words by
word) may be there, and of a video ``span`` (``[from, to]``, the seconds that count) and ``moments`` (list of
``[from, to, text]``). ``history`` says that groups are users and items what they chose, in the order of ``time``: see
``data/histories.py``. Paths are written with ``/`` and stay inside the folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError, model_validator

from sensorium import reading
from sensorium.config import Section
from sensorium.data.files import read_text
from sensorium.data.items import MEDIA, DataSet, Item, Moment, Split
from sensorium.errors import DataError
from sensorium.files import write_file, write_json

NAME = "native"
SUMMARY = (
    "manifest.jsonl: one JSON object a line with id, group, split, text, image, audio, video; paths relative to it"
)
LICENCE = "as dataset.json beside the manifest says"
MANIFEST = "manifest.jsonl"
ABOUT = "dataset.json"
_SHOWN = 20
_NAME, _TEXT = 4096, 1_000_000  # most characters: as many as a path may have, and a long book


class Options(Section):
    """The native format has no options."""


class About(Section):
    """``dataset.json``."""

    name: str = Field(NAME, description="Name of the data set.")
    licence: str = Field("not stated", description="Licence of the data.")
    notes: tuple[str, ...] = Field((), description="What was dropped when the data were imported.")
    history: int | None = Field(None, ge=1, description="Groups are users; so many choices before one foretold.")


class Line(Section):
    """One line of the manifest."""

    id: str = Field(min_length=1, max_length=_NAME)
    split: Split
    group: str | None = Field(None, min_length=1, max_length=_NAME)
    text: str | None = Field(None, min_length=1, max_length=_TEXT)
    image: str | None = Field(None, min_length=1, max_length=_NAME)
    audio: str | None = Field(None, min_length=1, max_length=_NAME)
    labels: tuple[str, ...] = ()
    time: float | None = None
    meta: dict[str, str] = Field({})
    video: str | None = Field(None, min_length=1, max_length=_NAME)
    span: tuple[float, float] | None = None
    moments: tuple[tuple[float, float, str], ...] = ()

    @model_validator(mode="after")
    def _usable(self) -> Line:
        paths = {"image": self.image, "audio": self.audio, "video": self.video}
        if self.text is None and not any(paths.values()):
            raise ValueError("has none of text, image, audio, video")
        for key, value in paths.items():
            if value is not None and leaves(value):
                raise ValueError(f"{key}: {value!r} leaves the folder of the manifest; paths are relative to it")
        for start, end in (*([self.span] if self.span else []), *(moment[:2] for moment in self.moments)):
            if not 0 <= start < end < math.inf:
                raise ValueError(f"{start} to {end} is no stretch of a video: from and to are seconds, 0 <= from < to")
        return self


def leaves(path: str) -> bool:
    """Whether a path of a manifest points outside its folder (links are left to the owner of the data)."""
    pure = PurePosixPath(path)
    if not pure.parts or "\0" in path:
        return True
    return pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in pure.parts[0]


def read(root: Path | None, options: Options) -> DataSet:
    """Read the manifest in ``root``. Raises DataError that lists the first 20 problems with their lines."""
    del options
    if root is None:
        raise DataError("the native format needs the folder of its manifest.jsonl; give it as root")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should hold {MANIFEST}")
    about = _about(root)
    problems: list[str] = []
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, text in enumerate(read_text(root / MANIFEST).split("\n"), start=1):
        if not text.strip():
            continue
        found = _line(text)
        if isinstance(found, str):
            problems.append(f"line {number}: {found}")
        elif found.id in seen:
            problems.append(f"line {number}: id {found.id!r} stands in line {seen[found.id]} already")
        else:
            seen[found.id] = number
            items.append(_item(found, root))
    if problems:
        raise DataError(_listing(root / MANIFEST, problems))
    if not items:
        raise DataError(f"{root / MANIFEST}: holds no items")
    return DataSet(about.name, root, about.licence, tuple(items), about.notes, history=about.history)


def _about(root: Path) -> About:
    path = root / ABOUT
    if not path.is_file():
        return About()
    try:
        return About.model_validate_json(read_text(path))
    except ValidationError as error:
        raise DataError(f"{path}: {_reasons(error)}") from None


def _line(text: str) -> Line | str:
    """The line, or what is wrong with it."""
    try:
        line = Line.model_validate_json(text, strict=True)
        reading.parse_json(text)  # of a key that is given twice, pydantic takes the last
    except ValidationError as error:
        return _reasons(error)
    except ValueError as error:
        return str(error)
    return line


def _reasons(error: ValidationError) -> str:
    return "; ".join(_reason(detail["loc"], detail["type"], detail["msg"]) for detail in error.errors())


def _reason(place: Sequence[int | str], kind: str, message: str) -> str:
    key = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"unknown key {key!r} (allowed: {', '.join(Line.model_fields)})"
    if kind == "missing":
        return f"{key} is missing"
    message = message.removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}" if key else message


def _item(line: Line, root: Path) -> Item:
    return Item(
        id=line.id,
        group=line.group or line.id,
        split=line.split,
        text=line.text,
        image=root / line.image if line.image else None,
        audio=root / line.audio if line.audio else None,
        labels=line.labels,
        time=line.time,
        meta=line.meta,
        video=root / line.video if line.video else None,
        span=line.span,
        moments=tuple(Moment(*moment) for moment in line.moments),
    )


def _listing(path: Path, problems: Sequence[str]) -> str:
    plural = "problem" if len(problems) == 1 else "problems"
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([f"{path}: {len(problems)} {plural}", *(f"  {one}" for one in problems[:_SHOWN]), *more])


def manifest_lines(items: Sequence[Item], paths: Mapping[Path, str]) -> Iterator[str]:
    """The lines of a manifest; ``paths`` gives the relative path of each file. What has its default is left out."""
    for item in items:
        values: dict[str, Any] = {
            "id": item.id,
            "group": item.group,
            "split": item.split,
            "text": item.text,
            **{medium: paths[item.files[medium]] for medium in MEDIA if medium in item.files},
            "labels": list(item.labels),
            "time": item.time,
            "meta": dict(item.meta),
            "span": item.span,
            "moments": [(moment.start, moment.end, moment.text) for moment in item.moments],
        }
        kept = {key: value for key, value in values.items() if value is not None and value not in ([], {})}
        yield json.dumps(kept, ensure_ascii=False, allow_nan=False)


def write(folder: Path, dataset: DataSet, paths: Mapping[Path, str]) -> None:
    """Write ``dataset.json`` and then ``manifest.jsonl`` into an existing folder."""
    about = {"name": dataset.name, "licence": dataset.licence, "notes": list(dataset.notes)}
    kind = {} if dataset.history is None else {"history": dataset.history}
    write_json(folder / ABOUT, about | kind)
    lines = manifest_lines(dataset.items, paths)
    write_file(folder / MANIFEST, "".join(f"{line}\n" for line in lines).encode())
