"""Frames that are kept, as JPEG or as they are, in the shards of the feature cache (feature_store.py): decoded once.

An entry is what one stretch of a video shows on the whole grid of instants, as bytes::

    count uint32, length float64 (seconds)     little-endian
    sizes [count, 2] int32                      width and height of each frame
    ends [count] int64                          where each ends in what follows
    frames                                      one JPEG file, or height x width x 3 bytes, each

Its key: sha256 of the file's bytes and the span. The rule (grid, size, form) names the folder; so a changed file, or a
changed rule, is another entry.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from sensorium.data import features
from sensorium.data.feature_keys import ContentKeys
from sensorium.data.feature_store import MEMO, Dtype, Features, FeatureStore
from sensorium.data.frames import Choice, DirectFrames, Look, Stretch
from sensorium.data.video import opened
from sensorium.errors import DataError
from sensorium.files import make_folder, require_space

Form = Literal["jpeg", "raw"]
QUALITY = 95
_FORMAT = 1
_DTYPE: Dtype = "uint8"
_HEAD = struct.Struct("<Id")
_BYTES: Mapping[Form, float] = {"jpeg": 0.3, "raw": 3.0}  # a pixel; JPEG as photographs need it in the mean
_ASKED = 32  # videos that are opened to estimate the size of all
_VERSIONS = ("av", "numpy", "pillow")


class FrameEncoder:
    """From a ``Stretch`` to the bytes of its entry; an ``Encoder`` of the feature cache."""

    modality: Literal["video"] = "video"
    width, pooled_width, has_vector, batch_size, max_seconds = 1, 0, False, 1, None

    def __init__(self, look: Look, form: Form) -> None:
        self.look, self.form = look, form
        self.name = f"frames of {look.side} px, {look.fps:g}/s, {form}"
        self.identity: Mapping[str, Any] = {
            "frames": _FORMAT,
            "side": look.side,
            "fps": look.fps,
            "most": look.most,
            "form": form,
            "quality": QUALITY if form == "jpeg" else None,
            "modality": self.modality,
            "width": self.width,
            "pooled_width": self.pooled_width,
            "has_vector": self.has_vector,
        }

    def prepare(self, stretch: Stretch) -> npt.NDArray[np.uint8]:
        """The entry. Raises DataError naming file and reason."""
        with opened(stretch.path) as video:
            start, length = stretch.within(video.seconds)
            frames = video.frames((start + self.look.instants(length)).tolist())
        packed: dict[int, tuple[tuple[int, int], bytes]] = {}
        for frame in frames:
            if id(frame) not in packed:
                fitted = self.look.fit(frame)
                packed[id(frame)] = fitted.size, self._packed(fitted)
        bodies = [packed[id(frame)][1] for frame in frames]
        sizes = np.array([packed[id(frame)][0] for frame in frames], "<i4")
        ends = np.cumsum([len(body) for body in bodies], dtype="<i8")
        head = _HEAD.pack(len(frames), length)
        return np.frombuffer(b"".join([head, sizes.tobytes(), ends.tobytes(), *bodies]), np.uint8)

    def encode(self, prepared: Sequence[npt.NDArray[np.uint8]]) -> list[Features]:
        """Nothing is left to be done."""
        return [Features(entry[:, None], np.zeros(0, np.uint8)) for entry in prepared]

    def _packed(self, frame: Image.Image) -> bytes:
        if self.form == "raw":
            return frame.tobytes()
        file = io.BytesIO()
        frame.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


class CachedFrames:
    """Reads what is kept; a stretch that is not is decoded."""

    def __init__(self, look: Look, form: Form, store: FeatureStore, keys: Mapping[Stretch, str]) -> None:
        self.look, self.form, self.store, self.keys = look, form, store, keys
        self._direct = DirectFrames(look)

    def read(self, stretch: Stretch, choose: Choice) -> list[Image.Image]:
        """See ``FrameReader``."""
        key = self.keys.get(stretch)
        if key is None:
            return self._direct.read(stretch, choose)
        entry = self.store.get(key).tokens.reshape(-1).data
        count, length = _HEAD.unpack_from(entry)
        sizes = np.frombuffer(entry, "<i4", 2 * count, _HEAD.size).reshape(count, 2)
        ends = np.frombuffer(entry, "<i8", count, _HEAD.size + sizes.nbytes)
        bodies = entry[_HEAD.size + sizes.nbytes + ends.nbytes :]
        starts = [0, *ends[:-1].tolist()]
        numbers = self.look.numbers(length, choose).tolist()
        found = {n: self._unpacked(bodies[starts[n] : int(ends[n])], tuple(sizes[n].tolist())) for n in set(numbers)}
        return [found[n] for n in numbers]

    def _unpacked(self, body: memoryview, size: tuple[int, int]) -> Image.Image:
        if self.form == "raw":
            return Image.frombytes("RGB", size, body)
        with Image.open(io.BytesIO(body), formats=("JPEG",)) as image:
            return image.convert("RGB")


def keep(
    look: Look, form: Form, stretches: Sequence[Stretch], root: Path, options: features.FillOptions
) -> tuple[CachedFrames, dict[Stretch, str]]:
    """Keep the frames of all stretches below ``root``; those that are missing are decoded now, by all processes side by
    side. Also gives, under the policy "skip", the stretches that cannot be decoded and why.

    Says first how large it will be. Raises DataError (a broken video under "raise"), DiskError (no room).
    """
    encoder, options = FrameEncoder(look, form), replace(options, dtype=_DTYPE)
    recorded = {"encoder": encoder.name} | {name: importlib.metadata.version(name) for name in _VERSIONS}
    store = FeatureStore(root, encoder.identity, _DTYPE, recorded, options.say)
    stretches = list(dict.fromkeys(stretches))
    problems = {one: f"{one.path}: no such file" for one in stretches if not one.path.is_file()}
    if problems and options.policy == "raise":
        raise DataError(next(iter(problems.values())))
    there = [one for one in stretches if one not in problems]
    keys = _keys(there, root, options)
    missing = set(store.missing(list(keys.values())))
    _announce([one for one, key in keys.items() if key in missing], encoder, store, options)
    features.complete(store, encoder, keys.values(), keys, options)
    problems |= {one: store.skipped[str(one)] for one in there if str(one) in store.skipped}
    return CachedFrames(look, form, store, {one: key for one, key in keys.items() if one not in problems}), problems


def _keys(stretches: Sequence[Stretch], root: Path, options: features.FillOptions) -> dict[Stretch, str]:
    """The key of each stretch; the processes hash a share of the files each, and read the rest from the memo."""
    memo = ContentKeys(root / MEMO, options.say)
    paths = list(dict.fromkeys(one.path for one in stretches))
    if options.world_size > 1:
        memo.keys(paths[options.rank :: options.world_size])
        options.barrier()
    digests = dict(zip(paths, memo.keys(paths), strict=True))
    return {
        one: digests[one.path]
        if one.span is None
        else hashlib.sha256(f"{digests[one.path]} {one.span[0]!r} {one.span[1]!r}".encode()).hexdigest()
        for one in stretches
    }


def _announce(
    missing: Sequence[Stretch], encoder: FrameEncoder, store: FeatureStore, options: features.FillOptions
) -> None:
    """Say how much will be written, and raise DiskError when there is no room for it."""
    if not missing:
        return
    step = -(-len(missing) // _ASKED)
    sizes = [size for one in missing[::step] if (size := _estimate(one, encoder)) is not None]
    size = round(sum(sizes) / len(sizes) * len(missing)) if sizes else 0
    make_folder(store.root)
    what = f"the frame cache of {len(missing):,} videos (about {size / 1e9:.2f} GB)"
    require_space(store.root, size, what)
    if options.rank == 0:
        options.say(f"{what} is written to {store.folder}")


def _estimate(stretch: Stretch, encoder: FrameEncoder) -> float | None:
    """Bytes of an entry, about; None for a video that cannot be opened, which is told when its turn comes."""
    try:
        with opened(stretch.path) as video:
            shape = video.size
            count = len(encoder.look.instants(stretch.within(video.seconds)[1]))
    except DataError:
        return None
    pixels = encoder.look.side**2 * max(shape) / max(1, min(shape))
    return count * pixels * _BYTES[encoder.form]
