"""Search with a trained run: any modality, or several at once, against an exact memory-mapped index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium import exported
from sensorium.data import media, search_index
from sensorium.data.items import MODALITIES, Item, Modality
from sensorium.engine.contract import Hit, Host, Loaded
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.thinking.data import DataConfig, FeatureSource, collate, open_encoders, sources
from sensorium.families.thinking.task import ThinkingTask
from sensorium.parts.encoders import Encoded, FrozenEncoder

BATCH = 128  # rows embedded at once while the index is built
DEFAULT_ANSWER: dict[Modality, Modality] = {"text": "image", "image": "text", "audio": "image"}
ENCODERS = "encoders"  # in the facts: identities of the encoders that the model was trained over


def identity_of(encoder: FrozenEncoder) -> Any:
    """The encoder's identity as JSON gives it back."""
    return json.loads(json.dumps(encoder.identity))


class Searcher:
    """A trained run with its encoders and its index. The index is built at the first search and kept in the run.

    The index (data/search_index.py) of other weights, or a damaged one, is refused. An exported model has no data: it
    encodes, over the encoders that it was trained with and no others, and does not search.
    """

    def __init__(self, loaded: Loaded) -> None:
        assert isinstance(loaded.task, ThinkingTask)
        assert isinstance(loaded.config.data, DataConfig)
        self.loaded, self.task, self.data = loaded, loaded.task, loaded.config.data
        self._index = search_index.Index(loaded.run, loaded.digest, self.build_index)

    @cached_property
    def encoders(self) -> dict[Modality, FrozenEncoder]:
        """The encoders of the modalities that the run was trained with. Raises ConfigError when one cannot be opened,
        CheckpointError when it is not the one that the facts name."""
        used = self.data.model_copy(
            update={f"{m}_encoder": None for m in MODALITIES if m not in self.task.facts},
        )
        opened = open_encoders(used)
        for modality, identity in self.loaded.facts.get(ENCODERS, {}).items():
            if modality in opened:
                self._require_identity(opened[modality], identity)
        return opened

    def _require_identity(self, encoder: FrozenEncoder, identity: Mapping[str, Any]) -> None:
        found = identity_of(encoder)
        wrong = [key for key in identity.keys() | found.keys() if identity.get(key) != found.get(key)]
        if wrong:
            raise CheckpointError(
                f"{self.loaded.run}: {encoder.modality} encoder {encoder.name!r} is not the one of the training "
                f"(not the same: {', '.join(sorted(wrong))}); name that one: "
                f"load(..., data={{'{encoder.modality}_encoder': ...}})"
            )

    def encode(self, query: Mapping[str, str]) -> np.ndarray:
        """``[D]`` L2-normalised read-out of one query, joint when it has several modalities."""
        unknown = [name for name in query if name not in self.encoders]
        if unknown or not query:
            asked = f"cannot ask with {', '.join(unknown)}" if unknown else "an empty query"
            raise ConfigError(f"{self.loaded.run}: {asked}; this run knows {', '.join(self.encoders)}")
        example: dict[str, Any] = {"group": 0}
        for modality in self.encoders:
            if modality in query:
                [example[modality]] = self._features(modality, [query[modality]])
        with torch.inference_mode():
            batch = collate([example], self.encoders)
            joint = self.task.embed_joint(batch, tuple(m for m in MODALITIES if m in query))
        embedding: np.ndarray = joint[0].float().numpy()
        return embedding

    def _features(self, modality: Modality, values: Sequence[str]) -> list[Encoded]:
        encoder = self.encoders[modality]
        return encoder.encode([encoder.prepare(_decode(modality, value, self.data)) for value in values])

    def search(self, query: Mapping[str, str], among: str | None = None, k: int = 5, rerank: int = 0) -> list[Hit]:
        """The ``k`` best items of modality ``among`` (default: pictures; for a picture, texts), best first.

        ``rerank``: so many of the best, but at least ``k``, are looked at again, together with the query, and ordered
        by the logit of the match head, which is then their score. Raises ConfigError for what the run cannot do.
        """
        if exported.is_export(self.loaded.run):
            raise ConfigError(
                f"{self.loaded.run}: an exported model holds no data to search in; search its run, or compare what "
                "`encode` gives for your own files, as the README.md of the export shows"
            )
        embedding = self.encode(query)
        asked: Modality = next(m for m in MODALITIES if m in query)
        modality = among or self._answer_to(asked)
        if modality not in self.encoders:
            raise ConfigError(f"{self.loaded.run}: cannot search among {modality}; it knows {', '.join(self.encoders)}")
        if rerank:
            self._require_match(query, modality)
        hits = [Hit(score, **item) for score, item in self._index.nearest(embedding, modality, max(k, rerank))]
        return self._matched(query, modality, hits)[:k] if rerank else hits

    def _require_match(self, query: Mapping[str, str], modality: str) -> None:
        if self.task.match is None:
            raise ConfigError(
                f"{self.loaded.run}: has no match head to re-rank with; train with model.weights.match above 0"
            )
        if set(query) == {modality}:
            raise ConfigError(f"{self.loaded.run}: re-ranking compares two modalities; search {modality} with another")

    def _matched(self, query: Mapping[str, str], modality: Modality, hits: list[Hit]) -> list[Hit]:
        """The hits by how well the query and each belong together: the mean over the query's other modalities, as the
        match head was trained on pairs."""
        asked = [m for m in MODALITIES if m in query and m != modality]
        own = {m: self._features(m, [query[m]])[0] for m in asked}
        logits = torch.zeros(len(hits))
        for start in range(0, len(hits), BATCH):
            found = self._features(modality, [_content(hit, modality) for hit in hits[start : start + BATCH]])
            for m in asked:
                pair = {name: self.encoders[name] for name in (m, modality)}
                batch = collate([{"group": 0, m: own[m], modality: one} for one in found], pair)
                with torch.inference_mode():
                    logits[start : start + BATCH] += self.task.match_score(batch) / len(asked)
        order = torch.argsort(logits, descending=True, stable=True)
        return [replace(hits[i], score=float(logits[i])) for i in order.tolist()]

    def _answer_to(self, asked: Modality) -> str:
        """Pictures, or texts for a picture; in a run without those, the first other modality."""
        usual = DEFAULT_ANSWER[asked]
        return usual if usual in self.encoders else next(m for m in self.encoders if m != asked)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The index's table of items; built from the run's whole data set when it is not there yet."""
        return self._index.table.model_dump()

    def build_index(self) -> None:
        """Embed every distinct text, picture and recording of the run's data set; appears by one rename."""
        found = sources(self.loaded.config, Host())
        splits = [split for split in (found.train, found.val, found.test) if isinstance(split, FeatureSource)]
        items = [item for split in splits for item in split.items]
        rows: dict[str, list[int]] = {}
        vectors: dict[str, np.ndarray] = {}
        for modality in found.train.senses if isinstance(found.train, FeatureSource) else {}:
            parts, rows[modality], before = [], [], 0
            for split in splits:
                distinct = split.distinct(modality)
                rows[modality] += (distinct + before).tolist()
                parts += [self._embed(split, modality, distinct[i : i + BATCH]) for i in range(0, len(distinct), BATCH)]
                before += len(split)
            vectors[modality] = torch.cat(parts).numpy()
        content = {"digest": self.loaded.digest, "rows": rows, "items": [_describe(item) for item in items]}
        search_index.write(self._index.folder, content, vectors)

    def _embed(self, split: FeatureSource, modality: Modality, rows: Sequence[int] | np.ndarray) -> Tensor:
        with torch.inference_mode():
            batch = split.collate([split.example(int(row), 0) for row in rows])
            own = {k: v for k, v in batch.items() if k in ("has", "group") or k.startswith(f"{modality}_")}
            return self.task.embed(own)[modality].float()


def _describe(item: Item) -> dict[str, str | None]:
    files = {
        name: str(path.resolve()) if path else None for name, path in (("image", item.image), ("audio", item.audio))
    }
    return {"id": item.id, "text": item.text, **files}


def _content(hit: Hit, modality: Modality) -> str:
    value = {"text": hit.text, "image": hit.image, "audio": hit.audio}[modality]
    assert value is not None  # the index lists an item under the modalities that it has
    return value


def _decode(modality: Modality, value: str, data: DataConfig) -> Any:
    if modality == "text":
        return value
    if modality == "image":
        return media.load_image(Path(value))
    return media.load_audio(Path(value), max_seconds=data.audio_max_seconds)
