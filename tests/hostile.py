"""Files made to do harm."""

from __future__ import annotations

import io
import os
import pickle
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Makes the folder ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _torch(marker: Path, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"weights": Bomb(marker), "format": 1}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "a .pt file": lambda marker: _torch(marker, True),
    "an old .pt file": lambda marker: _torch(marker, False),
    "a pickle": lambda marker: pickle.dumps(Bomb(marker)),
    "a pickle of protocol 0": lambda marker: pickle.dumps(Bomb(marker), protocol=0),
}


@contextmanager
def soon(seconds: int = 20) -> Iterator[None]:
    """Raises TimeoutError when the block does not end: a file that never answers must not be waited for."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"still going on after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """Bound by a relative name: those of sockets are short."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": make_fifo,
    "socket": make_socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "folder": Path.mkdir,
    "link in a circle": make_loop,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "empty file": Path.touch,
}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """An RGB picture with the header and the (packed) pixels that are given, and further chunks between."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    more = b"".join(_chunk(kind, content) for kind, content in extra)
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")


def wav(
    data: bytes, *, channels: int = 1, rate: int = 16000, bits: int = 16, kind: int = 1, says: int | None = None
) -> bytes:
    """``kind`` 1: whole numbers, 3: floats. ``says``: the length that the header promises."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    length = struct.pack("<I", len(data) if says is None else says)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + length + data
    return b"RIFF" + struct.pack("<I", len(body)) + body
