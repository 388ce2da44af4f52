"""The feature cache: what is frozen is encoded once.

``cached`` encodes what is missing and returns the store; ``LiveFeatures`` answers the same calls without storing.
Layout and guarantees: feature_store.py; file format: feature_shards.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sensorium.data.feature_fill import Encoder, FillOptions, fill, load
from sensorium.data.feature_keys import Content, ContentKeys
from sensorium.data.feature_shards import SUFFIX, open_shard
from sensorium.data.feature_store import IDENTITY, MEMO, Features, FeatureStore, namespace, read_identity
from sensorium.errors import DataError
from sensorium.files import remove, rename

__all__ = [
    "Encoder",
    "FeatureSource",
    "FeatureStore",
    "Features",
    "FillOptions",
    "LiveFeatures",
    "Namespace",
    "cache_info",
    "cached",
    "clear",
    "complete",
    "default_root",
]

_CLEARED = ".cleared-"
_VERSIONS = ("torch", "transformers", "numpy", "pillow", "soundfile", "soxr")


class FeatureSource(Protocol):
    """Features by content: a ``FeatureStore`` or ``LiveFeatures``. ``skipped``: content -> why it has none.

    ``get(key)`` is ``finish([prepare(key)])``: what can be done sample by sample, and what is faster for many at once.
    """

    @property
    def namespace(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def has_vector(self) -> bool: ...
    @property
    def skipped(self) -> Mapping[str, str]: ...
    def key(self, content: Content) -> str: ...
    def keys(self, contents: Sequence[Content]) -> list[str]: ...
    def get(self, key: str) -> Features: ...
    def prepare(self, key: str) -> Any: ...
    def finish(self, prepared: Sequence[Any]) -> list[Features]: ...


def default_root() -> Path:
    """``SENSORIUM_CACHE``, else ``~/.cache/sensorium/features``."""
    value = os.environ.get("SENSORIUM_CACHE")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "sensorium" / "features"


def cached(
    encoder: Encoder, contents: Sequence[Content], root: Path, options: FillOptions | None = None
) -> FeatureStore:
    """The store that holds the features of all ``contents`` (captions, or files); what is missing is encoded first.

    Processes that fill together call this with the same contents; each encodes its share, and all see everything
    afterwards. With policy "skip", ``store.skipped`` names what was left out. Raises DataError (broken file, features
    that do not fit the dtype, no space).
    """
    options = options or FillOptions()
    recorded = {"encoder": encoder.name} | {name: importlib.metadata.version(name) for name in _VERSIONS}
    store = FeatureStore(root, encoder.identity, options.dtype, recorded, options.say)
    if options.policy == "skip":
        gone = [one for one in contents if isinstance(one, Path) and not one.is_file()]
        store.skipped.update({str(one): "no such file" for one in gone})
        contents = [one for one in contents if str(one) not in store.skipped]
    if options.world_size > 1:  # share the hashing: the others read it from the memo
        store.keys(contents[options.rank :: options.world_size])
        options.barrier()
    complete(store, encoder, store.keys(contents), contents, options)
    return store


def complete(
    store: FeatureStore, encoder: Encoder, keys: Iterable[str], contents: Iterable[Any], options: FillOptions
) -> None:
    """Encode into the store what it lacks of ``contents``, which have these keys; see ``cached``."""
    keys, contents = list(keys), list(contents)
    wanted = dict(zip(keys, contents, strict=True))
    missing = store.missing(wanted)
    options.barrier()  # nobody adds or deletes before everybody has counted
    store.tidy()
    mine = {key: wanted[key] for key in missing[options.rank :: options.world_size]}
    reasons = fill(store, encoder, mine, options) if mine else {}
    options.barrier()
    store.refresh()
    left = set(store.missing(keys))
    for key, content in zip(keys, contents, strict=True):
        if key in left:
            store.skipped[str(content)] = reasons.get(key, "another process could not encode it and knows why")
    if store.skipped and options.policy == "raise":
        raise DataError(f"feature cache {store.folder}: {len(left)} entries are gone again; run it once more")


class LiveFeatures:
    """Encodes on every ``get`` and stores nothing: float32 features, as a float32 cache holds them."""

    def __init__(self, encoder: Encoder) -> None:
        self.namespace = namespace(encoder.identity, "float32")
        self.width, self.pooled_width, self.has_vector = encoder.width, encoder.pooled_width, encoder.has_vector
        self.skipped: dict[str, str] = {}
        self._encoder = encoder
        self._keys = ContentKeys(None)
        self._contents: dict[str, Content] = {}

    def key(self, content: Content) -> str:
        return self.keys([content])[0]

    def keys(self, contents: Sequence[Content]) -> list[str]:
        """As ``FeatureStore.keys``; remembers which content a key stands for."""
        keys = self._keys.keys(contents)
        self._contents.update(zip(keys, contents, strict=True))
        return keys

    def get(self, key: str) -> Features:
        """Raises DataError if the content is broken, or its key was never asked for."""
        return self.finish([self.prepare(key)])[0]

    def prepare(self, key: str) -> Any:
        """One sample, decoded and ready for the encoder. Raises DataError as ``get``."""
        if key not in self._contents:
            raise DataError(f"no content is known for key {key[:12]}; ask for the key of a content first")
        return load(self._encoder, self._contents[key])

    def finish(self, prepared: Sequence[Any]) -> list[Features]:
        """One call of the encoder for all, which is faster than one by one."""
        return [Features(result.tokens, result.pooled) for result in self._encoder.encode(prepared)]


@dataclass(frozen=True)
class Namespace:
    """One folder of the cache. ``bytes`` on disk; ``damaged``: shards that cannot be used."""

    name: str
    encoder: str
    modality: str
    dtype: str
    entries: int
    bytes: int
    damaged: int


def cache_info(root: Path) -> list[Namespace]:
    """What the cache holds, largest first. Reads heads only."""
    found = [_info(path.parent) for path in sorted(root.glob(f"*/{IDENTITY}"))]
    return sorted(found, key=lambda one: -one.bytes)


def _info(folder: Path) -> Namespace:
    keys: set[str] = set()
    damaged = 0
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            keys.update(open_shard(path).keys)
        except DataError:
            damaged += 1
    size = sum(path.stat().st_size for path in folder.iterdir())
    content = read_identity(folder / IDENTITY)
    encoder = content.get("recorded", {}).get("encoder", "?")
    modality = content.get("identity", {}).get("modality", "?")
    return Namespace(folder.name, encoder, modality, content.get("dtype", "?"), len(keys), size, damaged)


def clear(root: Path, name: str | None = None) -> int:
    """Delete one namespace, or all and the memo of hashes; says how many bytes that freed.

    Each folder is renamed away first, so that it is never seen half-deleted. Raises DataError for an unknown name.
    """
    folders = {path.parent.name: path.parent for path in root.glob(f"*/{IDENTITY}")}
    if name is not None and name not in folders:
        there = ", ".join(sorted(folders)) or "none"
        raise DataError(f"the feature cache {root} has no namespace {name!r}; there are: {there}")
    freed = 0
    for folder in [folders[name]] if name is not None else folders.values():
        freed += sum(path.stat().st_size for path in folder.iterdir())
        rename(folder, root / f"{_CLEARED}{uuid.uuid4().hex}")
    for leftover in root.glob(f"{_CLEARED}*"):
        remove(leftover)
    if name is None:
        remove(root / MEMO)
    return freed
