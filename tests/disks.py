"""Disks for tests: one that kills the process at a chosen call, one that fails there, one that is full."""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sensorium import files


class Watched(files.Disk):
    """Each call goes through ``act(name, path, call)``, which has to make the call itself, or not.

    A write is a call of its own, as the system sees it: what Python buffers comes in one piece.
    """

    def __init__(self, act: Callable[[str, Path, Callable[..., Any]], Any]) -> None:
        self.act = act

    def open(self, path: Path, mode: str) -> IO[Any]:
        return self.act("open", path, lambda: self._open(path, mode))

    def _open(self, path: Path, mode: str) -> IO[Any]:
        raw = _Raw(self, path, mode)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def by_library(self, path: Path, write: Callable[[Path], object]) -> None:
        self.act("by_library", path, lambda: write(path))

    def fsync(self, handle: int) -> None:
        self.act("fsync", Path(f"/proc/self/fd/{handle}").readlink(), lambda: os.fsync(handle))

    def rename(self, source: Path, target: Path) -> None:
        self.act("rename", target, lambda: super(Watched, self).rename(source, target))

    def link(self, source: Path, target: Path) -> None:
        self.act("link", target, lambda: super(Watched, self).link(source, target))

    def symlink(self, source: Path, target: Path) -> None:
        self.act("symlink", target, lambda: super(Watched, self).symlink(source, target))

    def unlink(self, path: Path) -> None:
        self.act("unlink", path, path.unlink)

    def mkdir(self, path: Path) -> None:
        self.act("mkdir", path, path.mkdir)

    def rmdir(self, path: Path) -> None:
        self.act("rmdir", path, path.rmdir)


class _Raw(io.FileIO):
    def __init__(self, disk: Watched, path: Path, mode: str) -> None:
        super().__init__(path, mode.replace("b", ""))
        self._disk, self._path = disk, path

    def write(self, data: Any) -> int:
        def call(part: Any = data) -> int:
            return super(_Raw, self).write(part)

        call.data = data  # type: ignore[attr-defined]  # for one that writes only half of it
        return self._disk.act("write", self._path, call)


class Deadly:
    """Kills the process at call ``fatal`` (from 1): before it, after it, or half-way through what it writes."""

    def __init__(self, fatal: int = 0, when: str = "before") -> None:
        self.fatal, self.when, self.calls = fatal, when, 0

    def __call__(self, name: str, path: Path, call: Callable[..., Any]) -> Any:
        self.calls += 1
        if self.calls != self.fatal:
            return call()
        if self.when == "half" and name == "write":
            call(bytes(call.data)[: len(call.data) // 2])  # type: ignore[attr-defined]
        elif self.when == "half" and name == "by_library":
            call()
            os.truncate(path, path.stat().st_size // 2)
        elif self.when == "after":
            call()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class Failing:
    """The calls named ``names`` (of those, from the ``first`` on) raise OSError ``number``; only below ``folder``."""

    def __init__(self, number: int, names: tuple[str, ...] = (), folder: Path = Path("/"), first: int = 1) -> None:
        self.number, self.names, self.folder, self.left = number, names, folder, first

    def __call__(self, name: str, path: Path, call: Callable[..., Any]) -> Any:
        if name in (self.names or (name,)) and path.is_relative_to(self.folder):
            self.left -= 1
            if self.left <= 0:
                raise OSError(self.number, os.strerror(self.number))
        return call()


class Full:
    """A disk on which ``room`` more bytes can be written by Python's files."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, name: str, path: Path, call: Callable[..., Any]) -> Any:
        if name == "write":
            if len(call.data) > self.room:  # type: ignore[attr-defined]
                call(bytes(call.data)[: self.room])  # type: ignore[attr-defined]
                self.room = 0
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= len(call.data)  # type: ignore[attr-defined]
        if name == "by_library" and self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()


@contextmanager
def on(act: Callable[[str, Path, Callable[..., Any]], Any]) -> Iterator[None]:
    """Within the block all files are written through ``act``."""
    before, files.disk = files.disk, Watched(act)
    try:
        yield
    finally:
        files.disk = before
