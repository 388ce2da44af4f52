"""Honest retrieval: unimodal read-outs only, every direction, beside chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.data.items import MODALITIES, Item, Modality
from sensorium.engine.contract import Batch, Card, Evaluation, Gallery, Shown, Source, Table
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.thinking import protocols
from sensorium.families.thinking.config import ModelConfig
from sensorium.families.thinking.data import FeatureSource
from sensorium.families.thinking.protocols import NOUN
from sensorium.families.thinking.task import ThinkingTask
from sensorium.metrics.retrieval import RetrievalResult, retrieval_of_embeddings

KS = (1, 5, 10)
STEPS = (0, 1, 2, 4)  # thinking steps of the table "more or less thinking"
LETTER: dict[Modality, str] = {"text": "t", "image": "i", "audio": "a"}
BEST_R_SUM = 600.0
CARDS = 6  # queries shown in a gallery
SHOWN = 5  # results shown for each


def _fused(task: ThinkingTask, batch: Batch, like: Tensor) -> Tensor:
    """Joint read-outs of text and sound, ``[B, D]``; zeros in rows that lack one of them."""
    both = batch["has"][:, MODALITIES.index("text")] & batch["has"][:, MODALITIES.index("audio")]
    fused = torch.zeros_like(like)
    if both.any():
        rows = {name: tensor[both] for name, tensor in batch.items() if tensor.ndim}
        fused[both] = task.embed_joint(rows, ("text", "audio")).float()
    return fused


def direction(query: Modality, gallery: Modality) -> str:
    """``t2i`` for text queries over pictures."""
    return f"{LETTER[query]}2{LETTER[gallery]}"


class RetrievalEvaluator:
    """Embeds every row once and ranks distinct queries against distinct gallery items."""

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.model, ModelConfig)
        self.model = config.model

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        assert isinstance(task, ThinkingTask)
        output = task(batch)
        rows = len(batch["index"])
        found: dict[str, Tensor] = {"loss": output.loss.expand(rows)}
        found |= {str(m): e.float() for m, e in task.embed(batch).items()}
        if final and self.model.kind == "slots":
            for steps in STEPS if task.model.can_think else ():
                found |= {f"{m}@{steps}": e.float() for m, e in task.embed(batch, think_steps=steps).items()}
            if {"text", "image", "audio"} <= found.keys():
                found["text+audio"] = _fused(task, batch, found["text"])
        return found

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        assert isinstance(source, FeatureSource)
        assert isinstance(task, ThinkingTask)
        results = {(q, g): self._rank(collected, source, q, g) for q, g in _pairs(source)}
        metrics = {"loss": float(collected["loss"].mean())}
        for (query, gallery), result in results.items():
            name = direction(query, gallery)
            metrics |= {f"{name}/R@{k}": result.recall[k] for k in KS}
            metrics |= {f"chance/{name}/R@{k}": result.chance[k] for k in KS}
        metrics["r_sum"] = _r_sum(results)
        metrics["chance/r_sum"] = _chance_sum(results)
        if not final:
            return Evaluation(metrics)
        tables = [_recall_table(results), *self._extra_tables(collected, source)]
        tables += protocols.tables(collected, source, task, list(results))
        return Evaluation(metrics, tuple(tables), tuple(_galleries(collected, source)), tuple(_warnings(metrics)))

    def _rank(
        self,
        collected: Mapping[str, Tensor],
        source: FeatureSource,
        query: Modality,
        gallery: Modality,
        suffix: str = "",
    ) -> RetrievalResult:
        asked, stock = source.distinct(query), source.distinct(gallery)
        return _judge(source, (collected[query + suffix], asked), (collected[gallery + suffix], stock))

    def _extra_tables(self, collected: Mapping[str, Tensor], source: FeatureSource) -> Iterator[Table]:
        present = [steps for steps in STEPS if f"text@{steps}" in collected or f"image@{steps}" in collected]
        if present:
            rows = []
            for steps in present:
                found = {p: self._rank(collected, source, *p, suffix=f"@{steps}") for p in _pairs(source)}
                mark = " (as trained)" if steps == self.model.think_steps else ""
                rows.append((f"K = {steps}{mark}", *(r.recall[1] for r in found.values()), _r_sum(found)))
            rows.append(("chance", *(r.chance[1] for r in found.values()), _chance_sum(found)))
            columns = ("thinking steps", *(f"{direction(*p)} R@1" for p in _pairs(source)), "R-Sum")
            yield Table(
                "More or less thinking",
                columns,
                tuple(rows),
                "The same weights with another number of steps K; queries and gallery as above.",
            )
        if "text+audio" in collected:
            stock = source.distinct("image")
            asked = np.intersect1d(source.distinct("text"), _rows_with(source, "audio"))
            if not np.isin(source.groups[asked], source.groups[stock]).any():
                return  # nothing that is both written and spoken has a picture
            found_by = {
                name: _judge(source, (collected[name], asked), (collected["image"], stock))
                for name in ("text", "audio", "text+audio")
            }
            rows = [
                (name, *(r.recall[k] for k in KS), *(r.chance[k] for k in KS), r.queries, r.gallery)
                for name, r in found_by.items()
            ]
            columns = ("query", *(f"R@{k}" for k in KS), *(f"chance R@{k}" for k in KS), "queries", "gallery")
            yield Table(
                "One query, several senses: finding pictures", columns, tuple(rows), "Fused query: joint read-out."
            )


def _judge(
    source: FeatureSource, query: tuple[Tensor, np.ndarray], gallery: tuple[Tensor, np.ndarray]
) -> RetrievalResult:
    """Retrieval between rows of the split: (embeddings of all rows, the rows that count) of both sides.

    Queries without any right item in the gallery (a picture nobody has spoken of) are left out, as the count shows.
    """
    rows = query[1][np.isin(source.groups[query[1]], source.groups[gallery[1]])]
    asked, stock = ((e[r].numpy(), source.groups[r]) for e, r in ((query[0], rows), gallery))
    return retrieval_of_embeddings(asked, stock, KS)


def _pairs(source: FeatureSource) -> list[tuple[Modality, Modality]]:
    """The directions that the split can judge: some group has both modalities.

    Raises DataError when there is none.
    """
    groups = {m: set(source.groups[source.distinct(m)].tolist()) for m in source.senses}
    found = [(a, b) for a, b in permutations(source.senses, 2) if groups[a] & groups[b]]
    if not found:
        raise DataError("the split cannot be evaluated: no group has items of two modalities")
    return found


def _rows_with(source: FeatureSource, modality: Modality) -> np.ndarray:
    return np.array([row for row, key in enumerate(source.keys[modality]) if key is not None], np.int64)


def _r_sum(results: Mapping[tuple[Modality, Modality], RetrievalResult]) -> float:
    """Mean over the pairs of modalities of R@1 + R@5 + R@10, summed over both directions; at most 600."""
    return 2 * sum(sum(result.recall[k] for k in KS) for result in results.values()) / len(results)


def _chance_sum(results: Mapping[tuple[Modality, Modality], RetrievalResult]) -> float:
    """R-Sum of a random order."""
    return 2 * sum(sum(result.chance[k] for k in KS) for result in results.values()) / len(results)


def _recall_table(results: Mapping[tuple[Modality, Modality], RetrievalResult]) -> Table:
    columns = (
        "query",
        "finds",
        *(f"R@{k}" for k in KS),
        "MdR",
        "MnR",
        *(f"chance R@{k}" for k in KS),
        "queries",
        "gallery",
    )
    rows = tuple(
        (
            NOUN[query],
            NOUN[gallery],
            *(result.recall[k] for k in KS),
            result.median_rank,
            result.mean_rank,
            *(result.chance[k] for k in KS),
            result.queries,
            result.gallery,
        )
        for (query, gallery), result in results.items()
    )
    note = (
        "Percent of queries with at least one right item in the top k; ties count against the model. "
        "MdR, MnR: median and mean rank of the best right item."
    )
    return Table("Retrieval", columns, rows, note)


def _warnings(metrics: Mapping[str, float]) -> Iterator[str]:
    found, chance = metrics["r_sum"], metrics["chance/r_sum"]
    if found - chance < 0.1 * (BEST_R_SUM - chance):
        yield f"R-Sum {found:.1f} is hardly above chance ({chance:.1f}): the model has not learned"


def _galleries(collected: Mapping[str, Tensor], source: FeatureSource) -> Iterator[Gallery]:
    for query, gallery in _pairs(source):
        if gallery == "audio" and query == "text":
            continue  # text to sound says no more than sound to text, and six galleries tire the reader
        yield Gallery(
            f"{NOUN[query].capitalize()} finds {NOUN[gallery]}", tuple(_cards(collected, source, query, gallery))
        )


def _cards(
    collected: Mapping[str, Tensor], source: FeatureSource, query: Modality, gallery: Modality
) -> Iterator[Card]:
    """Queries spread evenly over the split, in file order: not chosen by success."""
    asked, stock = source.distinct(query), source.distinct(gallery)
    chosen = asked[np.linspace(0, len(asked) - 1, min(CARDS, len(asked))).round().astype(int)]
    scores = torch.from_numpy(collected[query][chosen].numpy() @ collected[gallery][stock].numpy().T)  # never autocast
    best = torch.topk(scores, min(SHOWN, len(stock)), dim=1)
    for row, values, places in zip(chosen, best.values.tolist(), best.indices.tolist(), strict=True):
        found = []
        for value, place in zip(values, places, strict=True):
            number = stock[place]
            right = bool(source.groups[number] == source.groups[row])
            found.append(show(source.items[number], gallery, right=right, score=value))
        yield Card(show(source.items[row], query), tuple(found))


def show(item: Item, modality: Modality, *, right: bool | None = None, score: float | None = None) -> Shown:
    """What the report shows of an item: its text, and the picture or sound when that is what is meant."""
    image = str(item.image.absolute()) if modality == "image" and item.image else None
    audio = str(item.audio.absolute()) if modality == "audio" and item.audio else None
    return Shown(item.text or item.id, image, audio, right, score)
