"""What the readers of published data sets share: finding the parts of a tree, and reading its lists and tables.

Everything raises DataError in one line that names the file, and the line or entry in it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sensorium import reading
from sensorium.data.files import read_text
from sensorium.errors import DataError

DEPTH = 3  # folders below the root that are looked into
Value = TypeVar("Value", str, int, list[Any])


def require_folder(root: Path, advice: str) -> None:
    """Raise DataError when the root of a data set is not there; ``advice``: how to get it."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {advice}")


def find_places(root: Path, wanted: Set[str], depth: int = DEPTH, closed: Collection[str] = ()) -> dict[str, Path]:
    """Where files and folders lie below ``root``, by name: the upper one of two; of a folder that holds itself once
    more, the inner one. ``closed``: folders that are not looked into, as they hold a hundred thousand files."""
    places: dict[str, Path] = {}
    for top, folders, files in os.walk(root, followlinks=True):  # the depth ends every loop
        here = Path(top)
        level = len(here.relative_to(root).parts)
        for name in wanted & {*folders, *files}:
            if name not in places or level < len(places[name].relative_to(root).parts) - 1:
                places[name] = here / name
        inner = (f for f in folders if f != "__MACOSX" and f[0] != "." and f not in closed)
        folders[:] = sorted(inner) if level < depth else []
    for name, place in places.items():
        while (place / name).is_dir():
            place = places[name] = place / name
    return places


def listed(folder: Path) -> list[Path]:
    """What a folder holds, sorted."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def names_in(folder: Path) -> list[str]:
    """The names of all that a folder holds but hidden files, sorted; fast for large folders."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != ".")
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without white space around them, and their numbers."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def collapsed(text: str) -> str:
    """Captions with stray ends of lines in one line."""
    return " ".join(text.split())


def table(
    path: Path, columns: Sequence[str], delimiter: str = ",", text: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, with the numbers of the lines where they end; blank lines are passed over.

    ``columns``: the header, which must be exactly this, but for blanks around a name. ``text``: the content, where it
    is not UTF-8. Raises DataError: another header, a row with more or fewer fields, a quote that is not closed.
    """
    rows = csv.reader(
        io.StringIO(read_text(path) if text is None else text, newline=""), delimiter=delimiter, strict=True
    )
    try:
        header = next(rows, [])
        if [name.strip() for name in header] != list(columns):
            found = delimiter.join(header)[:100]
            raise DataError(f"{path}: line 1: expected the columns {', '.join(columns)} (found {found!r})")
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                raise DataError(
                    f"{path}: line {rows.line_num}: expected {len(columns)} fields (found {len(row)}: "
                    f"{delimiter.join(row)[:60]!r})"
                )
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: not a table ({error})") from None


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """What goes wrong while ``path`` is read as JSON is a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def records(path: Path, *wanted: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The objects in the lists ``wanted`` of a JSON file of any size, as (list, number, object); ``""``: the file is
    the list. A list that is not there is an error."""
    with told_of(path):
        for name, number, value in reading.json_lists(path, wanted):
            if not isinstance(value, dict):
                raise ValueError(f"{name}[{number}]: expected an object (found {str(value)[:60]!r})")
            yield name, number, value


def field(record: dict[str, Any], key: str, kind: type[Value]) -> Value:
    """A value of an object. Raises ValueError, to be told with the file and the number of the object."""
    value = record.get(key)
    if type(value) is not kind:
        found = "nothing" if key not in record else repr(value)[:60]
        raise ValueError(f"{key}: expected {_KINDS[kind]} (found {found})")
    return value


_KINDS: dict[type, str] = {str: "a text", int: "a whole number", list: "a list"}
