"""Use of a trained model: search in its run, and the two halves of a ``.pt`` file, a model and what feeds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium import exported
from sensorium.data import search_index
from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Hit, Host, Loaded
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.data import DataConfig, EvalSource, TeachersConfig, TrainSource
from sensorium.families.interaction.matching import match_logits
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.portable import read_portable
from sensorium.families.interaction.processor import Processor, statistics
from sensorium.families.interaction.samples import Row
from sensorium.families.interaction.sources import facts, sources
from sensorium.families.interaction.task import InteractionTask, embed, encode
from sensorium.families.interaction.words import Vocabulary, WordTokenizer

BATCH = 64  # rows encoded at once
DEFAULT_ANSWER: Mapping[Modality, Modality] = {"text": "image", "image": "text", "audio": "image"}


def load_model(path: str | Path) -> tuple[InteractionModel, Processor]:
    """The model of a ``.pt`` file that training wrote (``best_model.pt``), on the CPU and in evaluation mode, and what
    makes its inputs of files and texts. Nothing but the file is needed. Raises CheckpointError."""
    found = read_portable(Path(path))
    return found.model, found.processor


def processor_of(loaded: Loaded) -> Processor:
    """What makes the inputs of a trained run's model."""
    model, data, facts = loaded.config.model, loaded.config.data, loaded.facts
    assert isinstance(model, ModelConfig)
    assert isinstance(data, DataConfig)
    tokenizer = WordTokenizer(Vocabulary.of(facts["vocabulary"]), model.max_tokens)
    mean, std = statistics(facts["mel_mean"]), statistics(facts["mel_std"])
    return Processor(tokenizer, model.image_size, mean, std, data.audio_max_seconds, tuple(facts["labels"]))


class Searcher:
    """A trained run with its index (data/search_index.py), which is built at the first search and kept in the run.

    What is compared are the towers' embeddings; the fusion only re-ranks. An exported model has no data: it encodes and
    does not search.
    """

    def __init__(self, loaded: Loaded) -> None:
        assert isinstance(loaded.task, InteractionTask)
        self.loaded, self.task = loaded, loaded.task
        self.modalities = tuple(m for m in MODALITIES if m in loaded.facts["modalities"])
        self.processor = processor_of(loaded)
        self._index = search_index.Index(loaded.run, loaded.digest, self.build_index)

    def encode(self, query: Mapping[str, str]) -> np.ndarray:
        """``[D]`` unit vector of a text, a picture's or a recording's path; of several, the direction of their sum."""
        unknown = [name for name in query if name not in self.modalities]
        if unknown or not query:
            asked = f"cannot ask with {', '.join(unknown)}" if unknown else "an empty query"
            raise ConfigError(f"{self.loaded.run}: {asked}; this run knows {', '.join(self.modalities)}")
        with torch.inference_mode():
            vectors = [embed(self.task.model, self.processor.batch(m, [query[m]]))[m] for m in _of(query)]
            joint = torch.nn.functional.normalize(torch.cat(vectors).sum(dim=0), dim=0)
        embedding: np.ndarray = (vectors[0][0] if len(vectors) == 1 else joint).float().numpy()
        return embedding

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
        modality = among or self._answer_to(_of(query)[0])
        if modality not in self.modalities:
            known = ", ".join(self.modalities)
            raise ConfigError(f"{self.loaded.run}: cannot search among {modality}; it knows {known}")
        if rerank:
            self._require_match(query, modality)
        hits = [Hit(score, **item) for score, item in self._index.nearest(embedding, modality, max(k, rerank))]
        return self._matched(query, modality, hits)[:k] if rerank else hits

    def _answer_to(self, asked: Modality) -> Modality:
        """Pictures, or texts for a picture; in a run without those, the first other modality."""
        usual = DEFAULT_ANSWER[asked]
        return usual if usual in self.modalities else next(m for m in self.modalities if m != asked)

    def _require_match(self, query: Mapping[str, str], modality: str) -> None:
        if not (self.task.config.weights.match and self.task.config.stages.full.share):
            raise ConfigError(
                f"{self.loaded.run}: has no trained match head to re-rank with; train with model.weights.match and "
                "model.stages.full.share above 0"
            )
        if set(query) == {modality}:
            raise ConfigError(f"{self.loaded.run}: re-ranking compares two modalities; search {modality} with another")

    def _matched(self, query: Mapping[str, str], modality: Modality, hits: list[Hit]) -> list[Hit]:
        """The hits by how well the query and each belong together: the mean over the query's other modalities, as the
        match head was trained on pairs."""
        model = self.task.model
        asked = [m for m in _of(query) if m != modality]
        logits = torch.zeros(len(hits))
        with torch.inference_mode():
            own = {m: encode(model, self.processor.batch(m, [query[m]])) for m in asked}
            for start in range(0, len(hits), BATCH):
                part = [_content(hit, modality) for hit in hits[start : start + BATCH]]
                items = encode(model, self.processor.batch(modality, part))
                for m in asked:
                    logits[start : start + BATCH] += match_logits(model, own[m], items) / len(asked)
        order = torch.argsort(logits, descending=True, stable=True)
        return [replace(hits[i], score=float(logits[i])) for i in order.tolist()]

    @cached_property
    def index(self) -> dict[str, Any]:
        """The index's table of items; built from the run's whole data sets when it is not there yet."""
        return self._index.table.model_dump()

    def build_index(self) -> None:
        """Embed every distinct text, picture and recording of the run's data sets; appears by one rename."""
        data = self.loaded.config.data
        assert isinstance(data, DataConfig)
        config = self.loaded.config
        whole = data.model_copy(update={"validation_groups": None, "teachers": TeachersConfig()})
        found = sources(config.model_copy(update={"data": whole}), Host())
        known = facts(config, found)
        shown = ("vocabulary", "mel_mean", "mel_std")
        if changed := [name for name in shown if known[name] != self.loaded.facts[name]]:
            raise CheckpointError(
                f"{self.loaded.run}: its data are not those that it was trained on (other: {', '.join(changed)}), so "
                "that they cannot be searched"
            )
        train = found.train
        assert isinstance(train, TrainSource)
        held = [row for part in (found.val, found.test) if isinstance(part, EvalSource) for row in part.rows]
        source = EvalSource([*_rows(train), *held], train.media, list(data.sets))
        rows = {m: [i for i, row in enumerate(source.rows) if row.modality == m] for m in self.modalities}
        vectors = {m: self._embed(source, m, numbers) for m, numbers in rows.items()}
        items = [_described(row, source.names[row.set]) for row in source.rows]
        search_index.write(self._index.folder, {"digest": self.loaded.digest, "rows": rows, "items": items}, vectors)

    def _embed(self, source: EvalSource, modality: Modality, rows: Sequence[int]) -> np.ndarray:
        """``[rows, D]`` float32."""
        parts = [np.zeros((0, self.task.config.embedding), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                batch = source.collate([source.example(row, 0) for row in rows[start : start + BATCH]])
                parts.append(embed(self.task.model, batch)[modality].numpy())
        return np.concatenate(parts)


def _of(query: Mapping[str, str]) -> list[Modality]:
    """The modalities of a query, in our order."""
    return [m for m in MODALITIES if m in query]


def _rows(source: TrainSource) -> list[Row]:
    """Every text, picture and recording of the training samples once in its group."""
    found: dict[tuple[int, str | Path], Row] = {}
    for sample in source.everything:
        file = sample.image or sample.audio
        caption = sample.captions[0] if sample.captions else file.name if file else ""
        for modality, contents in (("text", sample.captions), ("image", [sample.image]), ("audio", [sample.audio])):
            for content in contents:
                if content is not None:
                    row = Row(sample.set, sample.group, modality, content, caption)  # type: ignore[arg-type]
                    found.setdefault((sample.group, content), row)
    return list(found.values())


def _described(row: Row, name: str) -> dict[str, str | None]:
    """``id``: the data set, and the file's name or the number of the text's group."""
    if isinstance(row.content, str):
        return {"id": f"{name}/{row.group}", "text": row.content, "image": None, "audio": None}
    files = {m: str(row.content.resolve()) if row.modality == m else None for m in ("image", "audio")}
    return {"id": f"{name}/{row.content.name}", "text": row.caption, **files}


def _content(hit: Hit, modality: Modality) -> str:
    value = {"text": hit.text, "image": hit.image, "audio": hit.audio}[modality]
    assert value is not None  # the index lists an item under the modality that it was embedded as
    return value
