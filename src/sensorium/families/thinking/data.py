"""From items to batches of frozen features: the data of the family `thinking`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from sensorium.config import Section
from sensorium.data import features, readers
from sensorium.data.items import MODALITIES, SPLITS, Item, Modality
from sensorium.engine.contract import Batch, Host, Mix, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError
from sensorium.families.thinking.config import ModelConfig
from sensorium.parts.encoders import EncoderOptions, FrozenEncoder, open_encoder

TEMPLATES: dict[Modality, str] = {"image": "a picture of {}", "audio": "the sound of {}"}  # of zero-shot classification
AT_ONCE = 64  # samples given to an encoder together while the means are taken


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


@dataclass(frozen=True)
class Sense:
    """The features of one modality: where they are, and their widths. ``store`` answers ``key`` and ``get``."""

    store: features.FeatureSource
    identity: str
    width: int
    pooled_width: int
    has_vector: bool


def cache_root(config: DataConfig) -> Path:
    return Path(config.cache).expanduser() if config.cache else features.default_root()


def open_encoders(config: DataConfig, device: str = "cpu", rows: int | None = None) -> dict[Modality, FrozenEncoder]:
    """The encoders that the configuration names. ``rows`` of one forward pass; None: what suits the device."""
    options = EncoderOptions(
        prefix=config.text_prefix,
        max_tokens=config.max_tokens,
        pool=config.audio_pool,
        window_seconds=config.audio_window_seconds,
        max_seconds=config.audio_max_seconds,
        batch_size=rows,
    )
    names: dict[Modality, str | None] = {
        "text": config.text_encoder,
        "image": config.image_encoder,
        "audio": config.audio_encoder,
    }
    root = cache_root(config)
    return {m: open_encoder(m, name, options, root, device) for m, name in names.items() if name is not None}


class FeatureSource:
    """One split: an item a row, its frozen features by modality. ``classes``: the labels of the whole data set."""

    mix: Mix | None = None  # rows that hold different modalities may meet: each says what it has

    def __init__(
        self,
        items: Sequence[Item],
        senses: Mapping[Modality, Sense],
        numbers: Mapping[str, int],
        classes: Sequence[str] = (),
    ) -> None:
        self.items, self.senses, self.classes = items, senses, tuple(classes)
        self.groups = np.array([numbers[item.group] for item in items], np.int64)
        self.keys = {modality: _keys(sense, modality, items) for modality, sense in senses.items()}
        lines = [f"{m} {sense.identity}" for m, sense in sorted(senses.items())]
        lines += [
            f"{item.id}\t{item.group}\t{[keys[i] for keys in self.keys.values()]}" for i, item in enumerate(items)
        ]
        self.fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        """Frozen features need no randomness; ``seed`` is there for the contract."""
        del seed
        stores = {m: self.senses[m].store for m in self.keys}
        found = {m: stores[m].prepare(key) for m, keys in self.keys.items() if (key := keys[index]) is not None}
        if not found:
            raise DataError(f"{self.items[index].id}: has none of the modalities {', '.join(self.keys)}")
        return {"group": self.groups[index], **found}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        rows = [dict(example) for example in examples]
        for modality, sense in self.senses.items():
            having = [row for row in rows if modality in row]
            for row, found in zip(having, sense.store.finish([row[modality] for row in having]), strict=True):
                row[modality] = found
        return collate(rows, self.senses)

    def prompts(self, template: str) -> Batch:
        """The classes as texts, a row each."""
        store = self.senses["text"].store
        keys = store.keys([template.format(label) for label in self.classes])
        found = store.finish([store.prepare(key) for key in keys])
        rows = [{"group": number, "text": features} for number, features in enumerate(found)]
        return collate(rows, {"text": self.senses["text"]})

    def couples(self, first: tuple[Modality, Sequence[int]], second: tuple[Modality, Sequence[int]]) -> Batch:
        """Rows that hold one modality of a row of the split, and another one of another row."""
        found = {}
        for modality, rows in (first, second):
            store, keys = self.senses[modality].store, self.keys[modality]
            found[modality] = store.finish([store.prepare(key) for row in rows if (key := keys[row]) is not None])
        pairs = zip(*found.values(), strict=True)
        senses = {modality: self.senses[modality] for modality in found}
        return collate([{"group": 0, **dict(zip(found, pair, strict=True))} for pair in pairs], senses)

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


def _keys(sense: Sense, modality: Modality, items: Sequence[Item]) -> list[str | None]:
    """The cache key of each item's content; None where an item lacks the modality."""
    contents = [item.content(modality) for item in items]
    keys = iter(sense.store.keys([content for content in contents if content is not None]))
    return [None if content is None else next(keys) for content in contents]


def sources(config: RunConfig, host: Host) -> Sources:
    """Read, encode what is not in the cache, and split. Raises DataError when there is nothing to train on."""
    data = config.data
    assert isinstance(data, DataConfig)
    dataset = readers.read(data.reader, Path(data.root) if data.root else None, data.options)
    for note in (*dataset.notes, *_left_out(config.model)):
        host.say(note)
    found = {m for m in MODALITIES if any(item.has(m) for item in dataset.items)}
    wanted = [m for m in MODALITIES if getattr(data, f"{m}_encoder") is not None]
    usable = [m for m in wanted if m in found]
    if len(usable) < 2:
        there = ", ".join(usable) or "none"
        raise DataError(f"{dataset.name}: usable modalities: {there}; retrieval needs at least two")
    for modality in [m for m in wanted if m not in found]:
        rest = " and ".join(sorted(usable))
        host.say(f"{modality.capitalize()}: none found in {dataset.root}; training on {rest}")
    unused = {f"{m}_encoder": None for m in MODALITIES if m not in usable}
    live = not data.use_cache and host.device != "cpu"
    if live and config.loader.workers:
        raise ConfigError("without a cache the encoders run on the GPU, where loader.workers must be 0")
    if not data.use_cache and config.loader.bad_samples == "skip":
        raise ConfigError("loader.bad_samples=skip needs the cache: without it nobody knows beforehand what is broken")
    # A pass always has the same number of rows: without a cache no more than come at once.
    rows = max(1, config.train.batch_size // host.world) if live else None
    encoders = open_encoders(data.model_copy(update=unused), host.device, rows)
    numbers = {group: number for number, group in enumerate(sorted({item.group for item in dataset.items}))}
    classes = sorted({label for item in dataset.items for label in item.labels})
    senses = {m: _sense(config, encoder, _contents(m, dataset.items, classes), host) for m, encoder in encoders.items()}
    splits = {}
    bad = {content: reason for sense in senses.values() for content, reason in sense.store.skipped.items()}
    if len(bad) > config.loader.max_bad:
        raise DataError(f"{dataset.name}: {len(bad)} bad samples; loader.max_bad is {config.loader.max_bad}")
    for content, reason in bad.items():
        host.say(f"left out: {content}: {reason}" if content not in reason else f"left out: {reason}")
    for split in SPLITS:
        items = [item for item in dataset.of_split(split) if any(item.has(m) for m in senses)]
        broken = {item.id: c for item in items for m in senses if (c := str(item.content(m))) in bad}
        if broken and split != "train":  # a table over fewer samples would not be the table
            raise DataError(f"{split}: {next(iter(broken))}: {bad[next(iter(broken.values()))]}")
        items = [item for item in items if item.id not in broken]
        splits[split] = FeatureSource(items, senses, numbers, classes) if items else None
    train = splits["train"]
    if train is None:
        raise DataError(f"{dataset.name}: no training items in {dataset.root}")
    return Sources(train, splits["val"], splits["test"])


def _left_out(model: Section) -> Iterator[str]:
    """What the configuration does without, and the data could not tell."""
    assert isinstance(model, ModelConfig)
    parts = {"reconstruction": model.weights.recon, "match head": model.weights.match}
    if missing := [name for name, weight in parts.items() if not weight]:
        yield f"Not built, as the weight is 0: {', '.join(missing)}"


def _contents(modality: Modality, items: Sequence[Item], classes: Sequence[str]) -> list[str | Path]:
    """All that is to be encoded of one modality: what the items hold, and the classes as texts."""
    prompts = [template.format(label) for template in TEMPLATES.values() for label in classes]
    held = [content for item in items if (content := item.content(modality)) is not None]
    return [*held, *prompts] if modality == "text" else held


def _sense(config: RunConfig, encoder: FrozenEncoder, contents: Sequence[str | Path], host: Host) -> Sense:
    """The filled cache of one modality, or its live encoder where the cache is switched off."""
    data = config.data
    assert isinstance(data, DataConfig)
    store: features.FeatureSource = features.LiveFeatures(encoder)
    if data.use_cache:
        with host.progress(f"encode {encoder.modality}", len(set(contents))) as advance:
            options = features.FillOptions(
                dtype=data.cache_dtype,
                policy=config.loader.bad_samples,
                rank=host.rank,
                world_size=host.world,
                barrier=host.barrier,
                progress=advance,
                say=host.say,
            )
            store = features.cached(encoder, contents, cache_root(data), options)
    if encoder.truncated:
        host.say(f"{encoder.name}: {encoder.truncated} samples were longer than it takes, and cut")
    identity = json.dumps([encoder.identity, data.cache_dtype if data.use_cache else "live"], sort_keys=True)
    return Sense(store, identity, encoder.width, encoder.pooled_width, encoder.has_vector)


def facts(config: RunConfig, sources: Sources) -> dict[str, Any]:
    """Widths of the encoders and the training means of their pooled vectors (the centre of the reconstruction)."""
    del config
    train = sources.train
    assert isinstance(train, FeatureSource)
    modalities: dict[str, Any] = {}
    for modality, sense in train.senses.items():
        rows = [key for row in train.distinct(modality) if (key := train.keys[modality][row]) is not None]
        total = np.zeros(sense.pooled_width)
        for start in range(0, len(rows), AT_ONCE):
            for found in sense.store.finish([sense.store.prepare(key) for key in rows[start : start + AT_ONCE]]):
                total += found.pooled
        modalities[modality] = {
            "width": sense.width,
            "pooled_width": sense.pooled_width,
            "has_vector": sense.has_vector,
            "mean": (total / max(1, len(rows))).tolist(),
        }
    identities = {str(modality): json.loads(sense.identity)[0] for modality, sense in train.senses.items()}
    return {"modalities": modalities, "encoders": identities}
