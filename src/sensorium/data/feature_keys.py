"""Content -> key: sha256 of a file's bytes, or of a caption in UTF-8.

A small SQLite file remembers (path, size, mtime) -> sha256. It only decides whether a file must be hashed again; it
may be deleted at any time. SQLite finds a damaged structure, not a damaged value, and a wrong hash would give a file
the features of another one: so each row carries a checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from sensorium.errors import DataError, DiskError
from sensorium.files import free_name, make_folder, rename

Content = str | Path
_Stamp = tuple[int, int]  # size, mtime in nanoseconds
# A file that changed less than this before it was hashed could change again without a new time stamp.
_SETTLED_NS = 2_000_000_000
# Path as bytes: a name need not be UTF-8. The stamp as text: a time may be larger than SQLite's numbers.
_TABLE = "CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, stamp BLOB, sha256 BLOB, checksum BLOB)"
_NO_DAMAGE = {  # busy, read-only or out of reach: hashing again costs time, nothing else
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOLFS),
}
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class ContentKeys:
    """Keys of captions (str) and files (Path). ``memo``: where hashes are remembered between runs, or None; ``say``:
    receives a line when that is damaged; it is then set aside and begun anew."""

    def __init__(self, memo: Path | None, say: Callable[[str], None] = _log.warning) -> None:
        self._memo, self._say = memo, say
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
        def read(memo: sqlite3.Connection) -> dict[str, tuple[_Stamp, str]]:
            found = {}
            for name in names:
                path = os.fsencode(name)
                for row in memo.execute("SELECT stamp, sha256, checksum FROM hashes WHERE path = ?", (path,)):
                    if row[2] != _checksum(path, row[0], row[1]):
                        raise sqlite3.DatabaseError(f"the checksum of {name} differs")
                    size, mtime_ns = map(int, row[0].split())
                    found[name] = ((size, mtime_ns), row[1].hex())
            return found

        there = self._memo is not None and os.path.lexists(self._memo)
        return (self._with_memo(read) if there else None) or {}

    def _remember(self, hashes: dict[str, tuple[_Stamp, str]]) -> None:
        rows = []
        for name, ((size, mtime_ns), sha256) in hashes.items():
            row = (os.fsencode(name), f"{size} {mtime_ns}".encode(), bytes.fromhex(sha256))
            rows.append((*row, _checksum(*row)))
        if self._memo is not None and rows:
            make_folder(self._memo.parent)
            self._with_memo(lambda memo: memo.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", rows))

    def _with_memo(self, use: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """What ``use`` makes of the memo; None when it cannot be used, which is said if it is damaged."""
        assert self._memo is not None
        try:
            if os.path.lexists(self._memo) and not self._memo.is_file():
                raise sqlite3.DatabaseError("not a regular file")
            with closing(sqlite3.connect(self._memo, timeout=30)) as memo, memo:
                memo.text_factory = bytes  # what damage left need not be UTF-8
                memo.execute(_TABLE)
                return use(memo)
        # MemoryError: a damaged length; UnicodeDecodeError: a message that quotes what is damaged
        except (sqlite3.Error, MemoryError, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_DAMAGE:
                self._set_aside(self._memo, " ".join(str(error).split()))
            return None

    def _set_aside(self, memo: Path, reason: str) -> None:
        aside = free_name(memo)
        try:
            rename(memo, aside)
        except DiskError as error:
            self._memo = None
            self._say(f"{memo}: damaged ({reason}) and cannot be set aside; files are hashed anew ({error})")
        else:
            self._say(f"{memo}: damaged ({reason}); set aside as {aside.name}, files are hashed anew")


def _checksum(path: bytes, stamp: object, sha256: object) -> bytes:
    """Of a row, whatever damage made of its values."""
    return hashlib.sha256(repr((path, stamp, sha256)).encode()).digest()[:16]


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
