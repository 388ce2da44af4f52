"""The search index of a run as files that prove themselves: what is found is what was embedded.

```
RUN/index/<first digits of the digest of the weights>/
    index.json          sealed (proof.py): digest of the weights, items, rows of each modality, sizes and sha256
    <modality>.npy      [rows, D] L2-normalised float32
```
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sensorium import proof, reading
from sensorium.config import Section
from sensorium.errors import CheckpointError
from sensorium.files import new_folder, open_file, remove, write_file

FORMAT = 1
TABLE = "index.json"
_ITEM = {"id", "text", "image", "audio"}
_OF_VIDEOS = {"video", "seconds"}


class Table(Section):
    """``rows``: for each modality the numbers of the items in its matrix; ``files``: sha256 of the matrices; ``items``:
    of each item its ``id``, ``text``, and the paths ``image`` and ``audio``; of videos their path ``video``, and in
    ``seconds`` from where to where they are shown."""

    format: int
    digest: str
    rows: dict[str, list[int]]
    files: dict[str, str]
    items: list[dict[str, str | None]]


class Index:
    """The index of a run's weights of this digest; ``build`` writes it into ``folder`` where it is not there yet."""

    def __init__(self, run: Path, digest: str, build: Callable[[], None]) -> None:
        self.folder, self.digest, self._build = run / "index" / digest[:16], digest, build
        self._matrices: dict[str, np.ndarray] = {}

    @cached_property
    def table(self) -> Table:
        """Raises CheckpointError as ``read``."""
        if not os.path.lexists(self.folder / TABLE):
            self._build()
        return read(self.folder, self.digest)

    def matrix(self, modality: str) -> np.ndarray:
        """``[rows, D]``, proven once, not at each search. Raises CheckpointError as ``open_matrix``."""
        if modality not in self._matrices:
            self._matrices[modality] = open_matrix(self.folder, self.table, modality)
        return self._matrices[modality]

    def nearest(self, vector: np.ndarray, modality: str, count: int) -> list[tuple[float, dict[str, str | None]]]:
        """Cosine and item of the best of one modality, best first; of equals the first."""
        scores = self.matrix(modality) @ vector
        rows = self.table.rows[modality]
        return [(float(scores[i]), self.table.items[rows[i]]) for i in np.argsort(-scores, kind="stable")[:count]]


def write(folder: Path, table: Mapping[str, Any], vectors: Mapping[str, np.ndarray]) -> None:
    """Write an index, whole or not at all. ``table``: ``digest``, ``rows`` and ``items``. Raises DiskError."""
    remove(folder)
    files = {}
    with new_folder(folder) as temporary:
        for modality, matrix in vectors.items():
            path = temporary / f"{modality}.npy"
            with open_file(path, "wb") as file:
                np.save(file, matrix)
            files[modality] = _sha256(path)
        write_file(temporary / TABLE, proof.seal({"format": FORMAT, **table, "files": files}, indent=None))


def read(folder: Path, digest: str) -> Table:
    """The table of the index in ``folder``, proven. Raises CheckpointError when it is damaged, or of other weights than
    those of ``digest``."""
    path = folder / TABLE
    try:
        table = Table.model_validate(proof.unseal(reading.read_bytes(path), FORMAT), strict=True)
        if any(item.keys() - _OF_VIDEOS != _ITEM for item in table.items):
            raise ValueError("its items are not ours")
    except (OSError, ValidationError, ValueError) as error:
        reason = "not one of ours" if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path}: damaged ({reason}); delete {folder} to build it anew") from error
    if table.digest != digest:
        raise CheckpointError(f"{path}: an index of other weights; delete {folder} to build it anew")
    return table


def open_matrix(folder: Path, table: Table, modality: str) -> np.ndarray:
    """``[rows, D]`` of one modality as a memory map, every byte of it proven. Raises CheckpointError."""
    path, rows = folder / f"{modality}.npy", table.rows.get(modality, [])
    try:
        if not path.is_file():
            raise ValueError("no file")
        if _sha256(path) != table.files.get(modality):
            raise ValueError("its checksum differs")
        matrix: np.ndarray = np.load(path, mmap_mode="r")
        if matrix.ndim != 2 or matrix.dtype != np.float32 or not _within(rows, len(matrix), len(table.items)):
            raise ValueError("it does not fit the table")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete {folder} to build the index anew") from error
    return matrix


def _within(rows: Sequence[int], length: int, items: int) -> bool:
    return len(rows) == length and all(0 <= row < items for row in rows)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
