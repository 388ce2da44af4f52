"""Damage for tests: flipped bytes, wrecked files, checkpoints that were changed by somebody who knew how."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sensorium import proof
from sensorium.engine import checkpoint, session
from sensorium.engine.guard import Guard

FLIPS = int(os.environ.get("SENSORIUM_FLIPS", "1000"))  # of each of the properties, together over its files
DEEP = b"[" * 100_000 + b"]" * 100_000


def flipped(path: Path, count: int, seed: int) -> Iterator[int]:
    """``count`` times the file with one byte, anywhere, of another value; afterwards as it was."""
    data = path.read_bytes()
    draws = np.random.default_rng(seed)
    for place, other in zip(draws.integers(0, len(data), count), draws.integers(1, 256, count), strict=True):
        path.write_bytes(data[:place] + bytes([data[place] ^ other]) + data[place + 1 :])
        yield int(place)
    path.write_bytes(data)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link(path: Path) -> None:
    path.rename(path.with_name(f"real-{path.name}"))
    path.symlink_to(f"real-{path.name}")


WRECKS: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one byte longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a folder": put_folder,
    "a FIFO": put_fifo,
    "a link": put_link,
    "nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "deep": lambda path: path.write_bytes(DEEP),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_bytes(b"[]"),
}


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and seal it again."""
    manifest = proof.unseal((folder / checkpoint.MANIFEST).read_bytes(), checkpoint.FORMAT)
    change(manifest)
    (folder / checkpoint.MANIFEST).write_bytes(proof.seal(manifest))


def forge_file(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes into a file of a checkpoint, and their sha256 into the manifest."""
    (folder / name).write_bytes(data)
    record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(folder, lambda manifest: manifest["files"].update({name: record}))


def state(**changes: Any) -> bytes:
    """``state.json`` at step 6, as the engine writes it, with changes."""
    return json.dumps({**session.Progress(Guard(1), step=6, stage_ends=[6]).dump(), **changes}).encode()
