"""Unpacking .7z files through py7zr, which is not installed everywhere: import this only when one is to be unpacked.

py7zr decompresses; which members there are, where each goes and how many bytes it may have is decided here, so that
what holds for zip and tar files holds for these, too. It is given an open file, as it uses several threads otherwise.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

import py7zr
from py7zr.exceptions import ArchiveError, PasswordRequired
from py7zr.io import Py7zIO, WriterFactory

# Parsers of py7zr let these through on damaged files.
DAMAGE = (
    ArchiveError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RuntimeError,
)

Create = Callable[[PurePosixPath], IO[bytes]]
"""Opens the new file of a place."""


class EncryptedError(Exception):
    """A password would be needed."""


def members(file: BinaryIO) -> list[py7zr.FileInfo]:
    """What the archive holds. Raises one of DAMAGE, or EncryptedError."""
    file.seek(0)
    try:
        with py7zr.SevenZipFile(file) as archive:
            found: list[py7zr.FileInfo] = archive.list()
            if archive.needs_password():
                raise EncryptedError
            return found
    except PasswordRequired:
        raise EncryptedError from None


def extract(
    file: BinaryIO, wanted: Mapping[str, tuple[PurePosixPath, int]], create: Create, moved: Callable[[int], None]
) -> None:
    """Write the members ``wanted``, by name: where each goes, and how many bytes it has; nothing else is written.

    ``moved`` is told of all bytes so far. Raises one of DAMAGE: a member is shorter or longer than it should be, or its
    checksum is wrong.
    """
    file.seek(0)
    writers = _Writers(wanted, create, moved)
    try:
        with py7zr.SevenZipFile(file) as archive:
            archive.extract(path=_NOWHERE, targets=set(wanted), factory=writers)
    finally:
        for writer in writers.made.values():
            writer.file.close()
    for name, (_, size) in wanted.items():
        if name not in writers.made or writers.made[name].done != size:
            raise EOFError(f"{name} is not whole")


_NOWHERE = Path("/")  # py7zr puts it before every name; nothing is written there, as the writers open the files


class _Writers(WriterFactory):
    def __init__(
        self, wanted: Mapping[str, tuple[PurePosixPath, int]], create: Create, moved: Callable[[int], None]
    ) -> None:
        self.wanted = {PurePosixPath(name): name for name in wanted}
        self.places, self.open, self.moved = wanted, create, moved
        self.made: dict[str, _Writer] = {}

    def create(self, filename: str) -> Py7zIO:
        name = self.wanted[PurePosixPath(filename).relative_to(_NOWHERE)]
        place, size = self.places[name]
        self.made[name] = _Writer(self, self.open(place), size)
        return self.made[name]

    def told(self) -> None:
        self.moved(sum(writer.done for writer in self.made.values()))


class _Writer(Py7zIO):
    """A file that takes no more bytes than its member announced."""

    def __init__(self, owner: _Writers, file: IO[bytes], size: int) -> None:
        self.owner, self.file, self.limit, self.done = owner, file, size, 0

    def write(self, s: bytes | bytearray) -> int:
        if self.done + len(s) > self.limit:
            raise EOFError(f"a member has more than the {self.limit:,} bytes that it announced")
        self.done += self.file.write(s)
        return len(s)

    def read(self, size: int | None = None) -> bytes:
        raise ValueError("written only")

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.done

    def flush(self) -> None:
        self.file.flush()

    def size(self) -> int:
        return self.done

    def close(self) -> None:
        self.file.close()
        self.owner.told()
