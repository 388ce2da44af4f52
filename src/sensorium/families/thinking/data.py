"""From items to batches of frozen features: the data of the family `thinking`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from sensorium.config import Section
from sensorium.data import features, readers
from sensorium.data.items import MODALITIES, SPLITS, DataSet, Item, Modality
from sensorium.engine.contract import Batch, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.parts.encoders import EncoderOptions, FrozenEncoder, open_encoder


class DataConfig(Section):
    reader: str = Field("native", description="Format of the data set: a name that `sensorium data list` shows.")
    root: str | None = Field(None, description="Folder of the data set; null where the reader knows it.")
    options: dict[str, Any] = Field({}, description="The reader's own options.")
    text_encoder: str | None = Field(
        "intfloat/e5-small-v2", description="Hub name, local folder, `package:` or `random:`."
    )
    image_encoder: str | None = Field("openai/clip-vit-base-patch32", description="Likewise; null leaves pictures out.")
    audio_encoder: str | None = Field("openai/whisper-tiny", description="Likewise; null leaves sound out.")
    text_prefix: str | None = Field(
        None, description="Put before every text; null takes what the encoder was trained with."
    )
    max_tokens: int = Field(64, ge=4, le=512, description="Longest text in tokens; longer ones are cut and counted.")
    audio_pool: int = Field(4, ge=1, le=64, description="Frames of sound averaged into one token.")
    audio_window_seconds: float = Field(30.0, ge=1, le=30, description="Window the sound encoder sees; 30 as trained.")
    audio_max_seconds: float = Field(30.0, ge=1, description="Longer recordings are cut here.")
    cache: str | None = Field(None, description="Folder of the feature cache; null takes SENSORIUM_CACHE or ~/.cache.")
    cache_dtype: Literal["float16", "float32"] = Field("float16", description="How cached features are stored.")
    use_cache: bool = Field(True, description="False encodes anew for every batch.")
    cache_workers: int = Field(2, ge=0, le=64, description="Processes that decode while the cache is filled.")


def open_encoders(config: DataConfig, device: str = "cpu") -> dict[Modality, FrozenEncoder]:
    """The encoders that the configuration names."""
    options = EncoderOptions(
        prefix=config.text_prefix,
        max_tokens=config.max_tokens,
        pool=config.audio_pool,
        window_seconds=config.audio_window_seconds,
        max_seconds=config.audio_max_seconds,
    )
    names: dict[Modality, str | None] = {
        "text": config.text_encoder,
        "image": config.image_encoder,
        "audio": config.audio_encoder,
    }
    return {m: open_encoder(m, name, options, device) for m, name in names.items() if name is not None}


class FeatureSource:
    """One split: an item a row, its frozen features by modality.

    ``features`` maps a modality to what answers ``get(content)``: a FeatureStore, or LiveFeatures without a cache.
    """

    def __init__(self, items: Sequence[Item], store: Mapping[Modality, Any], numbers: Mapping[str, int]) -> None:
        self.items, self.features = items, store
        self.groups = np.array([numbers[item.group] for item in items], np.int64)
        self.keys = {m: [_key(store[m], item.content(m)) for item in items] for m in store}
        text = "\n".join([*sorted(f"{m}:{s.namespace}" for m, s in store.items()), *self._lines()])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def _lines(self) -> list[str]:
        return [f"{item.id}\t{item.group}\t{[self.keys[m][i] for m in self.keys]}" for i, item in enumerate(self.items)]

    def __len__(self) -> int:
        return len(self.items)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        """Frozen features need no randomness; ``seed`` is there for the contract."""
        del seed
        found = {m: self.features[m].get(keys[index]) for m, keys in self.keys.items() if keys[index] is not None}
        if not found:
            raise DataError(f"{self.items[index].id}: has none of the modalities {', '.join(self.keys)}")
        return {"group": self.groups[index], **found}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(examples, self.features)

    def distinct(self, modality: Modality) -> np.ndarray:
        """Rows that are the first with their content in their group: the gallery and the queries of an evaluation."""
        seen: dict[tuple[str, str], int] = {}
        for row, key in enumerate(self.keys[modality]):
            if key is not None:
                seen.setdefault((self.items[row].group, key), row)
        return np.array(sorted(seen.values()), np.int64)


def collate(examples: Sequence[Mapping[str, Any]], encoders: Mapping[Modality, Any]) -> Batch:
    """Pad tokens to the longest of the batch; a missing modality has an all-False mask and zeros.

    ``encoders``: whatever knows ``width`` and ``pooled_width`` of each modality of the run.
    """
    batch: Batch = {
        "group": torch.tensor([int(e["group"]) for e in examples]),
        "has": torch.tensor([[m in e for m in MODALITIES] for e in examples]),
    }
    for modality, encoder in encoders.items():
        rows = [example.get(modality) for example in examples]
        length = max([1, *(len(row.tokens) for row in rows if row is not None)])
        tokens = np.zeros((len(rows), length, encoder.width), np.float32)
        pooled = np.zeros((len(rows), encoder.pooled_width), np.float32)
        mask = np.zeros((len(rows), length), bool)
        for number, row in enumerate(rows):
            if row is not None:
                tokens[number, : len(row.tokens)] = row.tokens
                mask[number, : len(row.tokens)] = True
                pooled[number] = row.pooled
        for name, array in (("tokens", tokens), ("mask", mask), ("pooled", pooled)):
            batch[f"{modality}_{name}"] = torch.from_numpy(array)
    return batch


def _key(store: Any, content: str | Path | None) -> str | None:
    return None if content is None else store.key(content)


def load_dataset(config: DataConfig, say: Callable[[str], None]) -> DataSet:
    """Read the data set that the configuration names."""
    dataset = readers.read(config.reader, Path(config.root) if config.root else None, config.options)
    for note in dataset.notes:
        say(note)
    return dataset


def sources(config: RunConfig, say: Callable[[str], None]) -> Sources:
    """Read, encode what is not in the cache, and split. Raises DataError when there is nothing to train on."""
    data = config.data
    assert isinstance(data, DataConfig)
    dataset = load_dataset(data, say)
    found = {m for m in MODALITIES if any(item.has(m) for item in dataset.items)}
    encoders = open_encoders(data)
    for modality in [m for m in encoders if m not in found]:
        say(f"{modality.capitalize()}: none found in {dataset.root}; training without it")
        del encoders[modality]
    if len(encoders) < 2:
        raise DataError(f"{dataset.name}: found only {', '.join(sorted(found))}; at least two modalities are needed")
    numbers = {group: number for number, group in enumerate(sorted({item.group for item in dataset.items}))}
    stores = open_stores(data, encoders, dataset.items)
    splits = {}
    for split in SPLITS:
        items = [item for item in dataset.of_split(split) if any(item.has(m) for m in stores)]
        splits[split] = FeatureSource(items, stores, numbers) if items else None
    if splits["train"] is None:
        raise DataError(f"{dataset.name}: no training items in {dataset.root}")
    return Sources(splits["train"], splits["val"], splits["test"])


def open_stores(
    data: DataConfig, encoders: Mapping[Modality, FrozenEncoder], items: Sequence[Item]
) -> dict[Modality, Any]:
    """A filled feature store for each modality, or live encoders where the cache is switched off."""
    root = Path(data.cache).expanduser() if data.cache else features.default_root()
    stores: dict[Modality, Any] = {}
    for modality, encoder in encoders.items():
        contents = [content for item in items if (content := item.content(modality)) is not None]
        if data.use_cache:
            options = features.FillOptions(dtype=data.cache_dtype, workers=data.cache_workers)
            stores[modality] = features.cached(encoder, contents, root, options)
        else:
            stores[modality] = features.LiveFeatures(encoder)
    return stores


def facts(config: RunConfig, found: Sources) -> dict[str, Any]:
    """Widths of the encoders and the training means of their pooled vectors (the centre of the reconstruction)."""
    del config
    train = found.train
    assert isinstance(train, FeatureSource)
    modalities: dict[str, Any] = {}
    for modality, store in train.features.items():
        rows = [key for row in train.distinct(modality) if (key := train.keys[modality][row]) is not None]
        total = sum(store.get(key).pooled.astype(np.float64) for key in rows)
        modalities[modality] = {
            "width": store.width,
            "pooled_width": store.pooled_width,
            "has_vector": store.has_vector,
            "mean": (total / max(1, len(rows))).tolist(),
        }
    return {"modalities": modalities}
