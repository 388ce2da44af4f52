"""What a frozen encoder makes of each field, kept in the feature cache: encoded once, however often it is trained on.

An entry is what an encoder gives for one field with everything that belongs to it; its key is the digest of all of that
as the model would get it, so that another reader of files, another place or another time is another entry. Windows are
averaged before (tokens.py), so that an entry is small: 64 x 64 points are 256 tokens, 1.3 MB.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sensorium.data import features
from sensorium.data.feature_store import Dtype, FeatureStore
from sensorium.engine.contract import Host
from sensorium.families.climate_text.data import Inputs, Part
from sensorium.families.climate_text.encoders import Encoder
from sensorium.families.climate_text.tokens import window_centres
from sensorium.files import make_folder, require_space

DTYPE: Dtype = "float16"
_FORMAT = 1
_NO_POOLED = np.zeros(0, np.float32)
_HASHED = (
    *("field", "static", "static_given", "climatology", "climatology_given"),
    *("lat", "lon", "day_hour", "input_time", "lead_time"),
)


@dataclass(frozen=True)
class Field:
    """An entry of a split, with everything that its encoder gets."""

    part: Part
    number: int

    def __str__(self) -> str:
        return str(self.part.folder / self.part.entries[self.number].climate_file)


@dataclass(frozen=True)
class _Tokens:
    tokens: np.ndarray
    pooled: np.ndarray


class FieldEncoder:
    """From a ``Field`` to tokens ``[N, D]``; an ``Encoder`` of the feature cache."""

    modality: Literal["video"] = "video"  # takes contents as they are
    pooled_width, has_vector, max_seconds, batch_size = 0, False, None, 1

    def __init__(self, encoder: Encoder, inputs: Inputs, device: str) -> None:
        self.inputs, self.device, self.width = inputs, device, encoder.width
        assert isinstance(encoder, nn.Module)
        self.encoder: Any = encoder.to(device).eval()
        self.name = f"tokens of fields, {type(encoder).__name__}"
        self.identity: Mapping[str, Any] = {
            **{"fields": _FORMAT, "encoder": encoder.identity},
            **{"width": self.width, "pooled_width": 0, "has_vector": False},
        }

    def prepare(self, sample: Any) -> dict[str, Any]:
        """The field as the model gets it. Raises DataError."""
        assert isinstance(sample, Field)
        return self.inputs.climate(sample.part, sample.number)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Any]) -> list[_Tokens]:
        """One by one, where numbers could depend on what stands beside them."""
        found = []
        for one in prepared:
            batch = {name: torch.as_tensor(value)[None].to(self.device) for name, value in one.items()}
            tokens_BND = self.encoder.encode(batch)[0]
            found.append(_Tokens(tokens_BND[0].float().cpu().numpy(), _NO_POOLED))
        return found


@dataclass(frozen=True)
class TokenStore:
    """Tokens of the fields of some splits. ``keys``: of each entry, by folder of the split; ``window``: side lengths of
    what a token stands for, in grid points; ``encoded``: fields that were not there, and the ``seconds`` they took."""

    store: FeatureStore
    keys: Mapping[Path, Sequence[str]]
    window: tuple[int, int]
    encoded: int = 0
    seconds: float = 0.0

    @property
    def width(self) -> int:
        return self.store.width

    def climate(self, part: Part, number: int) -> dict[str, Any]:
        """The part of an example that is a field: ``climate_tokens`` ``[N, D]`` float32 with their ``token_lat`` and
        ``token_lon`` ``[N]``. Raises DataError."""
        tokens = torch.from_numpy(self.store.get(self.keys[part.folder][number]).tokens.astype(np.float32))
        sample = part.sample(number)
        degrees = (torch.from_numpy(one.copy())[None] for one in (sample.lat, sample.lon))
        lat, lon = (one[0] for one in window_centres(*degrees, self.window))
        fields = len(tokens) // len(lat)  # of more than two times several stand side by side
        return {
            "climate_tokens": tokens,
            "token_lat": lat.repeat(fields),
            "token_lon": lon.repeat(fields),
            "field_given": True,
        }


def cached(encoder: Encoder, inputs: Inputs, parts: Sequence[Part], root: Path, host: Host) -> TokenStore:
    """Encode what is not there yet; processes share the work. Raises DataError, and DiskError before it begins."""
    frozen = FieldEncoder(encoder, inputs, host.device)
    recorded = {"encoder": frozen.name} | {name: importlib.metadata.version(name) for name in encoder.packages}
    store = FeatureStore(root, frozen.identity, DTYPE, recorded, host.say)
    fields = [Field(part, number) for part in parts for number in range(len(part.entries))]
    with host.progress("look at fields", len(fields)) as advance:
        keys = []
        for place, field in enumerate(fields, start=1):
            keys.append(key_of(frozen.prepare(field)))
            advance(place, len(fields))
    missing = len(store.missing(keys))
    if missing:
        _require_room(frozen, store, missing, host)
    begun = time.monotonic()
    with host.progress("encode fields", missing) as advance:
        options = features.FillOptions(
            dtype=DTYPE, rank=host.rank, world_size=host.world, barrier=host.barrier, progress=advance, say=host.say
        )
        features.complete(store, frozen, keys, fields, options)
    seconds = time.monotonic() - begun
    by_folder: dict[Path, list[str]] = {part.folder: [] for part in parts}
    for field, key in zip(fields, keys, strict=True):
        by_folder[field.part.folder].append(key)
    first = frozen.prepare(fields[0])["field"]
    window = encoder.window(*first.shape[-2:], first.shape[0])
    return TokenStore(store, by_folder, window, missing, seconds)


def _require_room(frozen: FieldEncoder, store: FeatureStore, missing: int, host: Host) -> None:
    """Say how much will be written at most, and raise DiskError where there is no room for it."""
    size = missing * frozen.encoder.settings.max_climate_tokens * frozen.width * np.dtype(DTYPE).itemsize
    make_folder(store.root)
    what = f"the kept tokens of {missing:,} fields (up to {size / 1e9:.2f} GB)"
    require_space(store.root, size, what)
    host.say(f"{what} are written to {store.folder}")


def key_of(climate: Mapping[str, Any]) -> str:
    """sha256 over everything that an encoder gets."""
    digest = hashlib.sha256()
    for name in _HASHED:
        value = torch.as_tensor(climate[name])
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
