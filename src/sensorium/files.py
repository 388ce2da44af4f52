"""Files and folders that appear whole or not at all, and the one object through which all of them are written.

Whatever Sensorium changes on a disk it changes by the functions below, and they by the calls of ``Disk``: so a test can
kill the process before and after each of them, or let the disk be full there. An OSError becomes a ``DiskError``: one
line with the file, the reason and the free space.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sensorium.errors import DataError, DiskError

TEMPORARY = ".sensorium-tmp-"  # what is being written in a folder that several processes share
_ADVICE = {
    errno.ENOSPC: "free some space, or take another place",
    errno.EDQUOT: "free some space, or take another place",
    errno.EIO: "the disk may be failing",
    errno.EROFS: "take another place, or make it writable",
    errno.EACCES: "take another place, or make it writable",
    errno.EPERM: "take another place, or make it writable",
    errno.ENOENT: "a folder on the way to it is gone",
    errno.ENOTDIR: "something on the way to it is no folder",
    errno.EXDEV: "the two lie on different file systems",
}


class Disk:
    """Every call that changes what a disk holds. Raises OSError."""

    def open(self, path: Path, mode: str) -> IO[Any]:
        return path.open(mode, encoding=None if "b" in mode else "utf-8")

    def by_library(self, path: Path, write: Callable[[Path], object]) -> None:
        """A library writes the new file ``path`` by itself."""
        write(path)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def symlink(self, source: Path, target: Path) -> None:
        target.symlink_to(source)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        path.rmdir()


disk = Disk()  # tests put another one here


def disk_error(path: Path, error: OSError) -> DiskError:
    """The line for the user: file, reason, free space and what to do."""
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    advice = _ADVICE.get(error.errno or 0)
    other = f": {error.filename}" if error.filename not in (None, str(path)) else ""
    reason = f"{error.strerror or error}{other} ({shutil.disk_usage(folder).free:,} bytes free on its disk)"
    name = path.parent if path.name.startswith(TEMPORARY) else path  # a passing name says nothing
    return DiskError(f"{name}: cannot be written: {reason}" + (f"; {advice}" if advice else ""))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which changes ``path``, into a DiskError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def open_file(path: Path, mode: str) -> IO[Any]:
    """Open a file for writing in place. Raises DiskError; what is written to it belongs into ``told``."""
    with told(path):
        return disk.open(path, mode)


def sync(path: Path) -> None:
    """Make the content of a file, or the renames inside a folder, survive a loss of power."""
    with told(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            disk.fsync(handle)
        finally:
            os.close(handle)


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise DiskError when the disk of ``folder`` has fewer than ``size`` bytes left."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskError(f"{what} needs {size:,} bytes in {folder}, {free:,} are free; make room or take another place")


def free_name(path: Path) -> Path:
    """The first of ``PATH.1``, ``PATH.2`` … that nothing has: where to set aside what stands at ``path``."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises DiskError."""
    with told(path):
        for folder in reversed([path, *path.parents]):
            try:
                if not folder.is_dir():
                    disk.mkdir(folder)
            except FileExistsError:
                if not folder.is_dir():  # otherwise another process was first
                    raise


def rename(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, for good; a file there is replaced. Raises DiskError."""
    with told(target):
        disk.rename(source, target)
        sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there. Links are not followed. Raises DiskError."""
    with told(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            for inner in list(path.iterdir()):
                remove(inner)
            disk.rmdir(path)
        else:
            disk.unlink(path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that takes the name ``path`` when it is whole: until then there is the old one, or none.

    For folders in which one process writes at a time (see ``new_file``). Raises DiskError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with told(path):
            with disk.open(temporary, "wb") as file:
                yield file
                file.flush()
                disk.fsync(file.fileno())
            disk.rename(temporary, path)
            sync(path.parent)
    except BaseException:
        with suppress(DiskError):
            remove(temporary)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy one file, whole or not at all. Raises DiskError."""
    with source.open("rb") as original, replacing(target) as copy:
        shutil.copyfileobj(original, copy)


def symlink(source: Path, target: Path) -> None:
    """``target`` points to ``source``. Raises DiskError."""
    with told(target):
        disk.symlink(source.absolute(), target)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links. Raises DiskError."""
    try:
        disk.link(source, target)
    except OSError:
        copy_file(source, target)


def write_file(path: Path, data: bytes) -> None:
    """Write one file so that it is either absent, the old one or the whole new one. Raises DiskError."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON for people to read, whole or not at all. Raises DiskError."""
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_by_library(path: Path, write: Callable[[Path], object]) -> None:
    """Let a library write the new file ``path``, in a folder that nobody sees yet. Raises DiskError."""
    with told(path):
        disk.by_library(path, write)
        sync(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, also where several processes
    write at once. Its lock (flock) ends with the process, however that ends: see ``remove_leftovers``.

    Raises DiskError.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    with told(path), _held(temporary, lambda: disk.open(temporary, "xb").close()):
        try:
            yield temporary
            sync(temporary)
            disk.rename(temporary, path)
            sync(path.parent)
        except BaseException:
            with suppress(DiskError):
                remove(temporary)
            raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes it by one rename when the block ends well.

    An empty ``target`` is replaced. What a killed process left is removed. Raises DataError when a filled one is there
    by then, and DiskError.
    """
    make_folder(target.parent)
    remove_leftovers(target.parent)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    with told(target), _held(temporary, lambda: disk.mkdir(temporary)):
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in (".", *names):
                    if not (inner := Path(folder, name)).is_symlink():
                        sync(inner)
            disk.rename(temporary, target)
            sync(target.parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise DataError(f"{target}: exists already; name a new folder") from error
            raise
        finally:
            with suppress(DiskError):
                remove(temporary)


@contextmanager
def _held(path: Path, make: Callable[[], object]) -> Iterator[None]:
    """Make ``path`` and hold its lock, which goes with the process, however that ends."""
    while True:
        make()
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists():  # otherwise another process tidied up before the lock was held
                yield
                return
        finally:
            os.close(handle)


def remove_leftovers(folder: Path) -> int:
    """Remove what ``new_file`` and ``new_folder`` of dead processes left in ``folder``; says how many."""
    removed = 0
    for path in folder.glob(f"{TEMPORARY}*"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO is waited for otherwise
        except FileNotFoundError:  # just finished
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
            removed += 1
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(handle)
    return removed
