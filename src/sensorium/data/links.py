"""Pictures by their addresses, several at once; some of them are gone for ever.

::

    FOLDER/NAME.jpg        whole, and decoded once
    FOLDER/.links/         what is being fetched; the next call goes on there
    FOLDER/.links-gone.tsv NAME, a tab, why; these are not asked for again. Delete it to try once more
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from sensorium.data.catalog import Remote
from sensorium.data.files import read_text
from sensorium.data.history_build import SUFFIXES, pictures_in
from sensorium.data.media import load_image
from sensorium.data.transfer import Patience, Tally, Watch, fetch, state_file
from sensorium.errors import DataError, printable
from sensorium.files import make_folder, open_file, remove, rename, sync, told, write_file

GONE, _PASSING = ".links-gone.tsv", ".links"
_AT_ONCE = 8
_GIVEN_UP = 40  # failures in a row that are not the pictures' own: this machine is refused, or without a network
_FOR_EVER = re.compile(r"the server answers (401|403|404|410)\b|no picture")
_NO_NAME = re.compile(r"[/\\\0]")


def fetch_pictures(
    links: Mapping[str, str], folder: Path, progress: Callable[[int, int], None], patience: Patience | None = None
) -> Tally:
    """Fetch what is missing in ``folder`` of pictures by name. ``progress``: how many of those, and of how many.

    A killed call goes on where it was. Raises DataError when one after the other fails for a reason that is not the
    picture's own, or a name cannot be one of a file; DiskError.
    """
    odd = next((name for name in links if _NO_NAME.search(name) or name[:1] in ("", ".")), None)
    if odd is not None:
        raise DataError(f"{folder}: {odd[:60]!r} cannot be the name of a picture")
    make_folder(folder / _PASSING)
    there, gone = pictures_in(folder), _gone(folder / GONE)
    todo = {name: link for name, link in links.items() if name not in there and name not in gone}
    tally = Tally("pictures", GONE, asked=len(links), there=sum(name in there for name in links))
    tally.gone = tally.asked - tally.there - len(todo)
    patient = patience or Patience(attempts=3, timeout=15.0)
    in_a_row = 0
    for done, (name, problem) in enumerate(_fetched(todo, folder, patient), start=1):
        lost = bool(_FOR_EVER.search(problem))
        if lost:
            _remember(folder / GONE, name, problem)
        tally.gone += lost
        tally.fetched += not problem
        tally.failed += bool(problem) and not lost
        tally.reason = problem if problem and not lost else tally.reason
        in_a_row = in_a_row + 1 if problem and not lost else 0
        progress(done, len(todo))
        if in_a_row >= _GIVEN_UP:
            raise DataError(
                f"{folder}: {in_a_row} pictures in a row could not be fetched (last: {problem}); what came is kept, "
                "the same command goes on there"
            )
    if not tally.failed:
        remove(folder / _PASSING)
    return tally


def _fetched(todo: Mapping[str, str], folder: Path, patience: Patience) -> Iterator[tuple[str, str]]:
    """Name and problem (empty: it came) of each, as they are done."""

    def one(entry: tuple[str, str]) -> tuple[str, str]:
        name, link = entry
        try:
            _fetch(name, link, folder, patience)
        except DataError as error:
            return name, str(error)
        return name, ""

    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield from pool.map(one, todo.items())
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(name: str, link: str, folder: Path, patience: Patience) -> None:
    """One picture. Raises DataError."""
    if link.startswith("//"):  # as the published table has some: of either protocol
        link = f"https:{link}"
    parts = urlsplit(link)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(f"{link[:80]!r}: no picture: this is no address")
    ending = PurePosixPath(parts.path).suffix.lower()
    remote = Remote(f"{name}{ending if ending in SUFFIXES else SUFFIXES[0]}", link, "file")
    path, _ = fetch(remote, folder / _PASSING, patience, Watch(_nobody, _nobody_moves))
    try:
        load_image(path)
        rename(path, folder / path.name)
    except DataError as error:
        remove(path)
        raise DataError(f"{link}: no picture came ({error})") from None
    finally:
        remove(state_file(path))


def _nobody(text: str) -> None:
    """A picture is too small to be told of."""


def _nobody_moves(what: str, done: int, total: int | None) -> None:
    """Likewise."""


def _gone(path: Path) -> set[str]:
    """Pictures that are gone for ever."""
    if not path.is_file():
        return set()
    whole, end, torn = read_text(path).rpartition("\n")
    if torn:  # by a kill; what comes next would become a part of it
        write_file(path, (whole + end).encode())
    return {line.partition("\t")[0] for line in whole.split("\n") if line}


def _remember(path: Path, name: str, problem: str) -> None:
    with told(path), open_file(path, "a") as file:
        file.write(f"{name}\t{' '.join(printable(problem).split())}\n")
    sync(path)
