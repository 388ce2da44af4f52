"""One file of the feature cache: a shard.

A shard is written once and never changed::

    8 bytes   b"SENSFEA1"
    8 + 8     sizes of head and index, uint64, little-endian
    32        sha256 of head and index
    head      JSON: entries, dtype, width, pooled_width, body (bytes), sha256 (of the body)
    index     keys [entries, 32] uint8 (sha256 of the content), tokens of each entry [entries] int64
    zeros     up to a multiple of 64
    body      pooled [entries, pooled_width], then tokens [all tokens, width], flat, in the order of the index

It appears by one rename after it has been written whole and fsynced, so a crash leaves at most a temporary file. A
writer holds a lock (flock) on its temporary file; the kernel frees it when the process dies, however it dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sensorium import reading
from sensorium.errors import DataError, DiskError
from sensorium.files import new_file, open_file

Array = np.ndarray[Any, np.dtype[Any]]
SUFFIX = ".shard"
_MAGIC = b"SENSFEA1"
_FIXED = struct.Struct("<8sQQ32s")
_ALIGN = 64
_DTYPES = ("float16", "float32", "float64", "uint8")


@dataclass(frozen=True)
class Entry:
    """``key``: 64 hexadecimal digits. ``tokens`` ``[n, width]`` and ``pooled`` ``[pooled_width]`` of one dtype."""

    key: str
    tokens: Array
    pooled: Array

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.pooled.nbytes


@dataclass(frozen=True, eq=False)
class Shard:
    """An opened shard whose head and index are sound; ``verify`` says whether its body is."""

    path: Path
    head: dict[str, Any]
    keys: tuple[str, ...]
    offsets: Array  # [entries + 1] int64: entry i has the tokens offsets[i]:offsets[i + 1]
    start: int  # of the body, in bytes
    rows: dict[str, int] = field(repr=False, default_factory=dict)

    @cached_property
    def _body(self) -> Array:
        return np.asarray(np.memmap(self.path, np.uint8, "r", offset=self.start))

    def verify(self) -> None:
        """Raises DataError if the body is not what was written."""
        try:
            digest = hashlib.sha256(self._body.data).hexdigest()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        if digest != self.head["sha256"]:
            raise DataError(f"{self.path}: damaged, its sha256 is not the one noted when it was written")

    def entry(self, row: int) -> tuple[Array, Array]:
        """Tokens and pooled vector: views on the memory map, read-only."""
        dtype = np.dtype(self.head["dtype"])
        width, pooled_width, entries = self.head["width"], self.head["pooled_width"], len(self.keys)
        split = entries * pooled_width * dtype.itemsize
        pooled = self._body[:split].view(dtype).reshape(entries, pooled_width)
        tokens = self._body[split:].view(dtype).reshape(-1, width)
        return tokens[self.offsets[row] : self.offsets[row + 1]], pooled[row]


def open_shard(path: Path) -> Shard:
    """Reads and proves all before the body, and compares the size. Raises DataError if that is not whole."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opened, a FIFO would be waited for
            raise DataError(f"{path}: damaged, not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            magic, head_size, index_size, digest = _FIXED.unpack(_read(file, _FIXED.size))
            if magic != _MAGIC or head_size + index_size > size:
                raise DataError(f"{path}: damaged, not a shard of the feature cache")
            head_bytes, index = _read(file, head_size), _read(file, index_size)
            start = _body_start(head_size, index_size)
            gap = _read(file, start - _FIXED.size - head_size - index_size)
    except struct.error:
        raise DataError(f"{path}: damaged, cut off in its head") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(head_bytes + index).digest() != digest:
        raise DataError(f"{path}: damaged, head and index do not have the sha256 noted when they were written")
    if any(gap):
        raise DataError(f"{path}: damaged, not zeros before its body")
    head = _parsed(path, head_bytes)
    entries = head["entries"]
    counts = np.frombuffer(index, "<i8", offset=32 * entries) if len(index) == 40 * entries else np.array([-1])
    width, pooled_width = head["width"], head["pooled_width"]
    values = sum(map(int, counts)) * width + entries * pooled_width
    if counts.min(initial=0) < 0 or head["body"] != values * np.dtype(head["dtype"]).itemsize:
        raise DataError(f"{path}: damaged, its head contradicts its index")
    if size != start + head["body"]:
        raise DataError(f"{path}: damaged, {size} bytes long instead of {start + head['body']}")
    keys = tuple(index[32 * row : 32 * (row + 1)].hex() for row in range(entries))
    offsets = np.concatenate([[0], counts.cumsum()])
    return Shard(path, head, keys, offsets, start, {key: row for row, key in enumerate(keys)})


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    """The head, with every value of its kind. Its sha256 keeps damage away, not what another program wrote."""
    try:
        head = reading.parse_json(data)
    except ValueError as error:
        raise DataError(f"{path}: damaged, its head cannot be read ({error})") from error
    sizes = ("entries", "width", "pooled_width", "body")
    if (
        not isinstance(head, dict)
        or not all(type(head.get(name)) is int and head[name] >= 0 for name in sizes)
        or head.get("dtype") not in _DTYPES
        or not isinstance(head.get("sha256"), str)
    ):
        raise DataError(f"{path}: damaged, its head is not that of a shard")
    return head


def write_shard(folder: Path, entries: Sequence[Entry]) -> Path:
    """A new shard with these entries (one dtype, one width). Raises DiskError."""
    pooled = np.stack([entry.pooled for entry in entries])
    tokens = np.concatenate([entry.tokens for entry in entries])
    body = np.ascontiguousarray(pooled).tobytes() + np.ascontiguousarray(tokens).tobytes()
    counts = np.array([len(entry.tokens) for entry in entries], dtype="<i8")
    index = b"".join(bytes.fromhex(entry.key) for entry in entries) + counts.tobytes()
    digest = hashlib.sha256(body).hexdigest()
    values = {"entries": len(entries), "dtype": tokens.dtype.name, "width": tokens.shape[1]}
    values |= {"pooled_width": pooled.shape[1], "body": len(body), "sha256": digest}
    head = json.dumps(values).encode()
    fixed = _FIXED.pack(_MAGIC, len(head), len(index), hashlib.sha256(head + index).digest())
    gap = bytes(_body_start(len(head), len(index)) - _FIXED.size - len(head) - len(index))
    # Named by what it holds: the same shard written twice is one file.
    path = folder / f"{hashlib.sha256(index + digest.encode()).hexdigest()[:24]}{SUFFIX}"
    try:
        with new_file(path) as temporary, open_file(temporary, "wb") as file:
            file.writelines([fixed, head, index, gap, body])
    except DiskError as error:
        raise DiskError(f"{error}; SENSORIUM_CACHE names the place of the feature cache") from error
    return path


def _body_start(head_size: int, index_size: int) -> int:
    return -(-(_FIXED.size + head_size + index_size) // _ALIGN) * _ALIGN


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise struct.error("cut off")
    return data
