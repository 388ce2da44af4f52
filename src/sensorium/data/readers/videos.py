"""Folders of videos with their descriptions, as anybody may write them.

::

    {train,val,test}/videos/             the videos
    {train,val,test}/annotations.json    in one of these forms:

    [{"video": "a.mp4", "caption": "…"}, {"video": "b.mp4", "captions": ["…", "…"]}]
    {"a.mp4": ["…", "…"]}

An entry of the first may also hold ``id``; ``group``, of videos that show the same thing; ``start`` and ``end``, the
seconds of the file that count; and ``events``, ``[{"start", "end", "caption"}]``, which are kept for localisation, and
are, joined, the caption where there is none.
The ending of a video may be left out. One Item is one caption; val and test may be missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from sensorium import reading
from sensorium.config import Section
from sensorium.data import parsing
from sensorium.data.items import SPLITS, DataSet, Moment, Split
from sensorium.data.readers.native import leaves
from sensorium.data.video import ENDINGS
from sensorium.data.video_lists import Entry, bare, items_of, missing_names
from sensorium.errors import DataError

NAME = "videos"
SUMMARY = "train/, val/, test/, each with videos/ and annotations.json"
LICENCE = "as the owner of the videos says"
SIGN = "annotations.json"
FOLDER = "videos"
_FORMS = 'expected [{"video": "a.mp4", "caption": "…"}, …], with "captions": ["…"] instead, or {"a.mp4": ["…"], …}'
_KEYS = ("video", "caption", "captions", "id", "group", "start", "end", "events")


class Options(Section):
    """Where the parts lie."""

    train: str | None = Field(None, description="Folder of the training part; null: ROOT/train.")
    val: str | None = Field(None, description="Of the validation part; null: ROOT/val.")
    test: str | None = Field(None, description="Of the test part; null: ROOT/test.")
    allow_missing: int = Field(0, ge=0, description="So many videos of the annotations may be missing.")


@dataclass(frozen=True)
class _Said:
    """What one entry says of one video."""

    place: str
    video: str
    texts: tuple[str, ...]
    id: str | None = None
    span: tuple[float, float] | None = None
    moments: tuple[Moment, ...] = ()
    group: str | None = None


def read(root: Path | None, options: Options) -> DataSet:
    """Read the parts that are there. Raises DataError naming file, entry and what to mend."""
    folders = _folders(root, options)
    files: dict[Split, dict[str, Path]] = {}
    said: dict[Split, list[_Said]] = {}
    for split, folder in folders.items():
        path = folder / SIGN
        said[split] = list(_entries(path))
        if not said[split]:
            raise DataError(f"{path}: describes no videos")
        names = list(dict.fromkeys(one.video for one in said[split]))
        files[split] = {name: found for name in names if (found := _file(path, name)) is not None}
    counts = {s: (len(files[s]), len({one.video for one in said[s]})) for s in folders}
    _require_enough(folders, files, said, options.allow_missing)
    _require_apart(files)
    entries = {split: list(_joined(split, said[split], files[split], folders[split])) for split in folders}
    _require_unique(entries)
    items = tuple(item for split in entries for entry, path in entries[split] for item in items_of(entry, split, path))
    notes = tuple(f"{folders[s]}: {found:,} of {named:,} videos are there" for s, (found, named) in counts.items())
    return DataSet(NAME, root or folders["train"].parent, LICENCE, items, notes, found=counts)


def _folders(root: Path | None, options: Options) -> dict[Split, Path]:
    given = {"train": options.train, "val": options.val, "test": options.test}
    if root is None and options.train is None:
        raise DataError("no folder of videos is named; give the root above train/, val/ and test/, or train=FOLDER")
    folders: dict[Split, Path] = {}
    for split in SPLITS:
        name = given[split]
        folder = Path(name).expanduser() if name else root / split if root else None
        if folder is None or (name is None and split != "train" and not folder.exists()):
            continue
        for part in (folder, folder / SIGN, folder / FOLDER):
            if not part.exists():
                raise DataError(f"{part} is missing; {folder} should hold {SIGN} and {FOLDER}/")
        folders[split] = folder
    return folders


def _entries(path: Path) -> Iterator[_Said]:
    """The entries of an annotations file. Raises DataError naming it and the entry."""
    with parsing.told_of(path):
        content = reading.parse_json(reading.read_bytes(path))
        if isinstance(content, dict):
            for name, texts in content.items():
                yield _Said(f"{path}: {name!r}", name, _texts([texts] if isinstance(texts, str) else texts, name))
        elif isinstance(content, list):
            for number, entry in enumerate(content):
                try:
                    yield _said(f"{path}: [{number}]", entry)
                except ValueError as error:
                    raise ValueError(f"[{number}]: {error}") from None
        else:
            raise ValueError(f"{_FORMS} (found {str(content)[:40]!r})")


def _said(place: str, entry: Any) -> _Said:
    """One entry of the list. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"{_FORMS} (found {str(entry)[:40]!r})")
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r} (allowed: {', '.join(_KEYS)})")
    if "caption" in entry and "captions" in entry:
        raise ValueError("has both caption and captions; give one of them")
    moments = tuple(_moment(number, event) for number, event in enumerate(entry.get("events") or []))
    texts = [entry["caption"]] if "caption" in entry else entry.get("captions", [])
    if not texts and moments:
        texts = [" ".join(moment.text for moment in moments)]
    name, group = _name(entry, "id"), _name(entry, "group")
    span = None
    if "start" in entry or "end" in entry:
        span = _span(entry.get("start", 0), entry.get("end"))
    video = parsing.field(entry, "video", str)
    return _Said(place, video, _texts(texts, "caption"), name, span, moments, group)


def _name(entry: dict[str, Any], key: str) -> str | None:
    name = entry.get(key)
    if name is not None and (type(name) not in (str, int) or name == ""):
        raise ValueError(f"{key}: expected a text or a whole number (found {str(name)[:40]!r})")
    return None if name is None else str(name)


def _texts(texts: Any, what: str) -> tuple[str, ...]:
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
        raise ValueError(f"{what}: expected captions that are no empty texts (found {str(texts)[:40]!r})")
    return tuple(dict.fromkeys(parsing.collapsed(text) for text in texts))


def _span(start: Any, end: Any) -> tuple[float, float]:
    sound = all(type(one) in (int, float) and math.isfinite(one) for one in (start, end))
    if not (sound and 0 <= start < end):
        raise ValueError(f"expected start and end in seconds, 0 <= start < end (found {start} and {end})")
    return float(start), float(end)


def _moment(number: int, event: Any) -> Moment:
    if not (isinstance(event, dict) and event.keys() == {"start", "end", "caption"}):
        raise ValueError(f'events[{number}]: expected {{"start", "end", "caption"}} (found {str(event)[:40]!r})')
    return Moment(*_span(event["start"], event["end"]), *_texts([event["caption"]], f"events[{number}]"))


def _file(annotations: Path, name: str) -> Path | None:
    """The file of a video, whose ending may be left out. Raises DataError for a path that leaves, and two files."""
    folder = annotations.parent / FOLDER
    if leaves(name):
        raise DataError(f"{annotations}: {name!r} leaves {folder}; names of videos are relative to it")
    if (folder / name).is_file():
        return folder / name
    found = [path for ending in ENDINGS if (path := folder / f"{bare(name)}{ending}").is_file()]
    if len(found) > 1:
        raise DataError(f"{annotations}: two files for {name}: {found[0]} and {found[1]}; keep one, or name its ending")
    return found[0] if found else None


def _joined(
    split: Split, said: Sequence[_Said], files: Mapping[str, Path], folder: Path
) -> Iterator[tuple[Entry, Path]]:
    """One entry for each stretch of a video, whichever entries speak of it."""
    stretches: dict[tuple[Path, tuple[float, float] | None], list[_Said]] = {}
    for one in said:
        if one.video in files:
            stretches.setdefault((files[one.video], one.span), []).append(one)
    for (path, span), several in stretches.items():
        texts = tuple(dict.fromkeys(text for one in several for text in one.texts))
        moments = tuple(dict.fromkeys(moment for one in several for moment in one.moments))
        known, group = (
            next((x for x in some if x is not None), None)
            for some in zip(*((s.id, s.group) for s in several), strict=True)
        )
        name = path.relative_to(folder / FOLDER).with_suffix("").as_posix()
        name = f"{split}/{name}" + ("" if span is None else f"@{span[0]:g}-{span[1]:g}")
        yield Entry(known or name, texts, span, moments, group), path


def _require_enough(
    folders: Mapping[Split, Path],
    files: Mapping[Split, Mapping[str, Path]],
    said: Mapping[Split, Sequence[_Said]],
    allowed: int,
) -> None:
    lines, lacking = [], 0
    for split, entries in said.items():
        names = list(dict.fromkeys(one.video for one in entries))
        gone = [name for name in names if name not in files[split]]
        lacking += len(gone)
        if gone:
            lines.append(
                f"{folders[split]}: {len(names) - len(gone):,} of {len(names):,} videos, {missing_names(gone)}"
            )
    if lacking > allowed or not all(files.values()):
        raise DataError(f"{'; '.join(lines)}. Put them into {FOLDER}/, or allow it (allow_missing={lacking})")


def _require_apart(files: Mapping[Split, Mapping[str, Path]]) -> None:
    """Raise DataError when the same file stands in two splits: by its place, or by its bytes."""
    sizes: dict[int, list[tuple[Split, Path]]] = {}
    for split, found in files.items():
        for path in dict.fromkeys(found.values()):
            sizes.setdefault(path.stat().st_size, []).append((split, path))
    for same in sizes.values():
        if len({split for split, _ in same}) < 2:
            continue
        owners: dict[str, tuple[Split, Path]] = {}
        for split, path in same:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            owner, first = owners.setdefault(digest, (split, path))
            if owner != split:
                raise DataError(
                    f"{path} of {split} is the same video as {first} of {owner}; what is tested must not be trained on"
                )


def _require_unique(entries: Mapping[Split, Sequence[tuple[Entry, Path]]]) -> None:
    owners: dict[str, Path] = {}
    for pairs in entries.values():
        for entry, path in pairs:
            if owners.setdefault(entry.name, path) != path:
                raise DataError(f"{path}: its id {entry.name!r} is that of {owners[entry.name]}; ids are given once")
