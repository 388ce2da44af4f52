"""Content -> key: sha256 of a file's bytes, or of a caption in UTF-8.

A small SQLite file remembers (path, size, mtime) -> sha256. It only decides whether a file must be hashed again; it
may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from sensorium.errors import DataError
from sensorium.files import make_folder, remove

Content = str | Path
_Stamp = tuple[int, int]  # size, mtime in nanoseconds
# A file that changed less than this before it was hashed could change again without a new time stamp.
_SETTLED_NS = 2_000_000_000


class ContentKeys:
    """Keys of captions (str) and files (Path). ``memo``: where hashes are remembered between runs, or None."""

    def __init__(self, memo: Path | None) -> None:
        self._memo = memo
        self._known: dict[str, tuple[_Stamp, str]] = {}

    def key(self, content: Content) -> str:
        """64 hexadecimal digits. Raises DataError if the file cannot be read."""
        return self.keys([content])[0]

    def keys(self, contents: Sequence[Content]) -> list[str]:
        """The key of each content, hashing on several threads what is not known yet."""
        paths = {str(content.absolute()): content for content in contents if isinstance(content, Path)}
        stamps = {name: _stamp(path) for name, path in paths.items()}
        if any(self._lookup(name, stamp) is None for name, stamp in stamps.items()):
            unknown = [name for name, stamp in stamps.items() if self._lookup(name, stamp) is None]
            self._known.update(self._recall(unknown))
            fresh = self._hash({name: stamps[name] for name in unknown if self._lookup(name, stamps[name]) is None})
        else:
            fresh = {}

        def one(content: Content) -> str:
            if isinstance(content, str):
                return hashlib.sha256(content.encode("utf-8")).hexdigest()
            name = str(content.absolute())
            return fresh.get(name) or self._known[name][1]

        return [one(content) for content in contents]

    def _lookup(self, name: str, stamp: _Stamp) -> str | None:
        known = self._known.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def _hash(self, stamps: dict[str, _Stamp]) -> dict[str, str]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            hashes = dict(zip(stamps, pool.map(_file_sha256, stamps), strict=True))
        now = time.time_ns()
        settled = {name: (stamp, hashes[name]) for name, stamp in stamps.items() if now - stamp[1] > _SETTLED_NS}
        self._known.update(settled)
        self._remember(settled)
        return hashes

    def _recall(self, names: Iterable[str]) -> dict[str, tuple[_Stamp, str]]:
        if self._memo is None or not self._memo.is_file():
            return {}
        found = {}
        try:
            with closing(sqlite3.connect(self._memo, timeout=30)) as memo:
                for name in names:
                    query = "SELECT size, mtime_ns, sha256 FROM files WHERE path = ?"
                    for size, mtime_ns, sha256 in memo.execute(query, (name,)):
                        found[name] = ((size, mtime_ns), sha256)
        except sqlite3.OperationalError:
            pass  # busy or read-only: hashing again costs time, nothing else
        except sqlite3.DatabaseError:
            remove(self._memo)
        return found

    def _remember(self, hashes: dict[str, tuple[_Stamp, str]]) -> None:
        rows = [(name, size, mtime_ns, sha256) for name, ((size, mtime_ns), sha256) in hashes.items()]
        if self._memo is None or not rows:
            return
        try:
            make_folder(self._memo.parent)
            with closing(sqlite3.connect(self._memo, timeout=30)) as memo, memo:
                memo.execute(
                    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT)"
                )
                memo.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
        except sqlite3.OperationalError:
            pass  # as above
        except sqlite3.DatabaseError:
            remove(self._memo)


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_size, status.st_mtime_ns


def _file_sha256(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error
