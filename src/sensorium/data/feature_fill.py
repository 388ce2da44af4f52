"""Filling the feature cache: decode and prepare ahead on threads, encode in batches, write shard after shard."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from sensorium.data.feature_shards import Array, Entry
from sensorium.data.feature_store import Dtype, FeatureStore
from sensorium.data.items import Modality
from sensorium.data.media import load_audio, load_image
from sensorium.errors import DataError

_SHARD_BYTES = 64 * 2**20
_SAMPLE_RATE = 16000
_log = logging.getLogger(__name__)


class Encoded(Protocol):
    """float32 features of one sample: ``tokens`` ``[n, width]``, ``pooled`` ``[pooled_width]``."""

    @property
    def tokens(self) -> Array: ...
    @property
    def pooled(self) -> Array: ...


class Encoder(Protocol):
    """What the cache needs of an encoder; ``sensorium.parts.encoders.FrozenEncoder`` is one.

    ``identity``: JSON values that decide the features, among them the next three. ``has_vector``: ``pooled`` is a
    projection of its own, not a mean of tokens. ``batch_size``: samples of one forward pass. ``max_seconds``: part of
    a recording that counts.
    ``prepare`` is called on several threads at once, except for text; it takes a caption, an RGB picture, mono sound
    ``[samples]`` float32 at 16 kHz, or, for video, the content as it is. A result of ``encode`` must not depend on the
    other samples of the call.
    """

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def has_vector(self) -> bool: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def max_seconds(self) -> float | None: ...
    def prepare(self, sample: Any) -> Any: ...
    def encode(self, prepared: Sequence[Any]) -> Sequence[Encoded]: ...


def _alone() -> None:
    """The barrier of a single process."""


@dataclass(frozen=True)
class FillOptions:
    """How to fill.

    ``policy``: "raise" stops at the first broken file, "skip" leaves it out and reports it. ``workers``: threads that
    decode and prepare; None takes half of the cores, shared among the processes. ``rank``, ``world_size``,
    ``barrier``: processes that fill together, each its part. ``progress(done, total)``: of this process. ``say``:
    receives a line for what must be known. A shard is written after ``shard_entries`` entries or ``shard_seconds``.
    """

    dtype: Dtype = "float16"
    policy: Literal["raise", "skip"] = "raise"
    workers: int | None = None
    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = _alone
    progress: Callable[[int, int], None] | None = None
    say: Callable[[str], None] = _log.warning
    shard_entries: int = 256
    shard_seconds: float = 20.0


def fill(store: FeatureStore, encoder: Encoder, wanted: Mapping[str, Any], options: FillOptions) -> dict[str, str]:
    """Encode ``wanted`` (key -> content) into the store; what was finished stays if this stops half-way.

    Returns the keys left out under policy "skip", with the reason. Raises DataError for a broken file under "raise",
    and for features that ``dtype`` cannot hold.
    """
    pending: list[Entry] = []
    skipped: dict[str, str] = {}
    since, done = time.monotonic(), 0
    try:
        for chunk in _chunks(_prepared(encoder, wanted, options), _chunk_size(encoder)):
            good = [(key, sample) for key, sample in chunk if not isinstance(sample, DataError)]
            features = encoder.encode([sample for _, sample in good])
            for (key, _), result in zip(good, features, strict=True):
                pending.append(_entry(key, result, wanted[key], encoder, options.dtype))
            for key, problem in chunk:
                if isinstance(problem, DataError):
                    if options.policy == "raise":
                        raise problem
                    skipped[key] = str(problem)
            done += len(chunk)
            full = len(pending) >= options.shard_entries or sum(entry.nbytes for entry in pending) >= _SHARD_BYTES
            if pending and (full or time.monotonic() - since > options.shard_seconds):
                store.add(pending)
                pending, since = [], time.monotonic()
            if options.progress is not None:
                options.progress(done, len(wanted))
    finally:
        if pending:
            store.add(pending)
    return skipped


def load(encoder: Encoder, content: Any) -> Any:
    """Decode and prepare one sample. Raises DataError naming the file, or the caption, and the reason."""
    if encoder.modality == "video":
        return encoder.prepare(content)
    if isinstance(content, str) != (encoder.modality == "text"):
        raise TypeError(f"content for {encoder.modality} must be a {'str' if encoder.modality == 'text' else 'Path'}")
    try:
        if encoder.modality == "text":
            return encoder.prepare(content)
        path = Path(content)
        if encoder.modality == "image":
            return encoder.prepare(load_image(path))
        # One second more than counts: so the encoder sees that it cuts something off.
        longest = None if encoder.max_seconds is None else encoder.max_seconds + 1
        return encoder.prepare(load_audio(path, _SAMPLE_RATE, longest))
    except DataError as error:
        named = isinstance(content, Path) and str(content) in str(error)
        raise error if named else DataError(f"{describe(content)}: {error}") from error


def describe(content: Any) -> str:
    """A content in a message."""
    return f"caption {content[:60]!r}" if isinstance(content, str) else str(content)


def _chunk_size(encoder: Encoder) -> int:
    # Text is encoded in batches of equal length; of many captions at once each length fills its batches.
    return encoder.batch_size * (16 if encoder.modality == "text" else 1)


def _chunks(samples: Iterator[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    chunk: list[tuple[str, Any]] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _prepared(encoder: Encoder, wanted: Mapping[str, Any], options: FillOptions) -> Iterator[tuple[str, Any]]:
    """``(key, prepared sample or DataError)``, a few batches ahead of the encoder."""

    def job(content: Any) -> Any:
        try:
            return load(encoder, content)
        except DataError as error:
            return error

    if encoder.modality == "text":  # tokenizers change their state, and are fast; sorted, texts need less padding
        for key, content in sorted(wanted.items(), key=lambda pair: len(str(pair[1]))):
            yield key, job(content)
        return
    # Threads, not processes: decoding, resizing and spectra run outside Python's lock, and threads inherit no state,
    # survive no kill and need no second import of everything.
    cores = (os.cpu_count() or 2) // (2 * options.world_size)
    workers = min(16, max(1, cores if options.workers is None else options.workers))
    pool = ThreadPoolExecutor(workers)
    ahead: deque[tuple[str, Future[Any]]] = deque()
    try:
        for key, content in wanted.items():
            ahead.append((key, pool.submit(job, content)))
            if len(ahead) >= 2 * (encoder.batch_size + workers):
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _entry(key: str, result: Encoded, content: Any, encoder: Encoder, dtype: Dtype) -> Entry:
    with np.errstate(over="ignore"):  # found and said below
        entry = Entry(key, result.tokens.astype(dtype), result.pooled.astype(dtype))
    if not (np.isfinite(entry.tokens).all() and np.isfinite(entry.pooled).all()):
        largest = max(float(np.abs(values).max(initial=0)) for values in (result.tokens, result.pooled))
        raise DataError(
            f"{describe(content)}: encoder {encoder.name} gives features that {dtype} cannot hold (largest "
            f"{largest:.3g}); store them as float32, or take another encoder if that fails too"
        )
    return entry
