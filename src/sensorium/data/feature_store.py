"""``FeatureStore``: features by content, on disk. Features never change; there are only more of them.

::

    <root>/                               SENSORIUM_CACHE, else ~/.cache/sensorium/features
      hashes.sqlite                       which files need no hashing (feature_keys.py)
      <namespace>/                        first 32 digits of sha256 of (identity, dtype)
        identity.json                     sealed (proof.py): the identity in full, dtype; recorded: encoder's name,
                                          library versions
        <digest>.shard                    features of some hundred samples (feature_shards.py)
        .sensorium-tmp-*                  being written

What is recorded is for people; it is no part of the namespace.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sensorium import proof, reading
from sensorium.data.feature_keys import Content, ContentKeys
from sensorium.data.feature_shards import (
    SUFFIX,
    Array,
    Entry,
    Shard,
    open_shard,
    write_shard,
)
from sensorium.errors import DataError
from sensorium.files import new_file, open_file, remove, remove_leftovers

Dtype = Literal["float16", "float32", "uint8"]  # uint8: kept frames (frame_cache.py)
MEMO = "hashes.sqlite"
IDENTITY = "identity.json"
_FORMAT = 2  # of the features and their files: part of the namespace, so that caches of before are not looked at
_SEALED = 2  # of identity.json
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """``tokens`` ``[n, width]`` (n = 0 if only pooled features were asked for) and ``pooled`` ``[pooled_width]``."""

    tokens: Array
    pooled: Array


class FeatureStore:
    """The features of one encoder in one dtype.

    ``identity``: JSON values that decide the features (``Encoder.identity``), among them ``width``, ``pooled_width``
    and ``has_vector``. ``recorded``: what else to note beside it. ``say``: receives one line for each damaged shard and
    for a damaged memo. Raises DataError if the folder holds another identity, or a damaged one.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, Any],
        dtype: Dtype = "float16",
        recorded: Mapping[str, str] | None = None,
        say: Callable[[str], None] = _log.warning,
    ) -> None:
        self.root = root
        self.identity = dict(identity)
        self.dtype = dtype
        self.folder = root / namespace(identity, dtype)
        self.skipped: dict[str, str] = {}  # contents that could not be encoded, with the reason
        self._recorded = dict(recorded or {})
        self._say = say
        self._keys = ContentKeys(root / MEMO, say)
        self._shards: dict[str, Shard] = {}  # by file name
        self._where: dict[str, Shard] = {}  # by key
        self._verified: set[Path] = set()
        self._refused: set[str] = set()
        self._check_identity()
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes open the folder anew instead of receiving a copy of the features.
        return FeatureStore, (self.root, self.identity, self.dtype, self._recorded)

    def __len__(self) -> int:
        return len(self._where)

    @property
    def namespace(self) -> str:
        return self.folder.name

    @property
    def width(self) -> int:
        return int(self.identity["width"])

    @property
    def pooled_width(self) -> int:
        return int(self.identity["pooled_width"])

    @property
    def has_vector(self) -> bool:
        """Whether ``pooled`` is a projection of its own, not a mean of the tokens."""
        return bool(self.identity["has_vector"])

    def key(self, content: Content) -> str:
        """sha256 of a file's bytes (Path) or of a caption (str). Raises DataError if the file cannot be read."""
        return self._keys.key(content)

    def keys(self, contents: Sequence[Content]) -> list[str]:
        """``key`` of each, faster than one by one."""
        return self._keys.keys(contents)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without sound features, each once, in their order. Reads the shards of the others whole, once a
        process; a damaged one is said and left out."""
        wanted = list(dict.fromkeys(keys))
        shards = {shard.path: shard for key in wanted if (shard := self._where.get(key)) is not None}
        unverified = [shard for path, shard in shards.items() if path not in self._verified]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for shard, problem in zip(unverified, pool.map(_problem, unverified), strict=True):
                if problem is None:
                    self._verified.add(shard.path)
                else:
                    self._refuse(shard.path, problem)
        return [key for key in wanted if key not in self._where]

    def get(self, key: str) -> Features:
        """Features as read-only views on the memory map (copy them before torch). Raises DataError if there are none,
        or their shard is damaged."""
        shard = self._where.get(key)
        if shard is None:
            raise DataError(f"feature cache {self.folder} has no entry {key[:12]}; encode the data again")
        if shard.path not in self._verified:
            if problem := _problem(shard):
                raise DataError(f"{problem}; start again, and its entries are encoded again")
            self._verified.add(shard.path)
        return Features(*shard.entry(shard.rows[key]))

    def prepare(self, key: str) -> Features:
        """As ``get``: nothing is left to be done for many at once."""
        return self.get(key)

    def finish(self, prepared: Sequence[Features]) -> list[Features]:
        return list(prepared)

    def add(self, entries: Sequence[Entry]) -> None:
        """Write one shard. Raises DiskError."""
        self._write_identity()
        shard = write_shard(self.folder, entries)
        self._refused.discard(shard.name)
        self._take(open_shard(shard))

    def refresh(self) -> None:
        """Take in what other processes have written since."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name in self._shards or path.name in self._refused:
                continue
            try:
                self._take(self._fitting(open_shard(path)))
            except DataError as error:
                self._refuse(path, str(error))

    def tidy(self) -> None:
        """Delete temporary files of dead processes, and damaged shards; write the identity where it is gone."""
        remove_leftovers(self.folder)
        for name in sorted(self._refused):
            path = self.folder / name
            if path.is_symlink() or not path.is_dir():  # a folder is no shard of ours, whatever it is called
                remove(path)
                self._refused.discard(name)
        if self._shards:
            self._write_identity()

    def _write_identity(self) -> None:
        path = self.folder / IDENTITY
        if not path.is_file():
            content = {**_named(self.identity, self.dtype), "format": _SEALED, "recorded": self._recorded}
            with new_file(path) as temporary, open_file(temporary, "wb") as file:
                file.write(proof.seal(content))

    def _fitting(self, shard: Shard) -> Shard:
        head = shard.head
        if (head["dtype"], head["width"], head["pooled_width"]) != (self.dtype, self.width, self.pooled_width):
            raise DataError(f"{shard.path}: damaged, a shard of another encoder")
        return shard

    def _take(self, shard: Shard) -> None:
        self._shards[shard.path.name] = shard
        for key in shard.keys:
            self._where.setdefault(key, shard)

    def _refuse(self, path: Path, problem: str) -> None:
        self._say(f"{problem}; its entries will be encoded again")
        self._refused.add(path.name)
        self._shards.pop(path.name, None)
        self._where.clear()
        for shard in self._shards.values():
            self._take(shard)

    def _check_identity(self) -> None:
        path = self.folder / IDENTITY
        if not os.path.lexists(path):
            return
        found = read_identity(path)
        wanted = _named(self.identity, self.dtype)
        if any(found.get(key) != wanted[key] for key in ("identity", "dtype")):
            raise DataError(f"{path} belongs to another encoder; run `sensorium data cache clear {self.folder.name}`")


def _named(identity: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, "identity": identity, "dtype": dtype}))
    return value


def namespace(identity: Mapping[str, Any], dtype: str) -> str:
    """Name of the folder of an encoder's features."""
    text = json.dumps(_named(identity, dtype), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_identity(path: Path) -> dict[str, Any]:
    """``identity.json``, proven. Raises DataError if it is damaged."""
    try:
        return proof.unseal(reading.read_bytes(path), _SEALED)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it, and it is written anew") from error


def _problem(shard: Shard) -> str | None:
    try:
        shard.verify()
    except DataError as error:
        return str(error)
    return None
