"""Further ways to judge retrieval, each in a table of its own: by row, re-ranked, and as classification.

Legend: N rows with both modalities, Q queries, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from sensorium.data.items import Modality
from sensorium.engine.contract import Table
from sensorium.families.thinking.data import TEMPLATES, FeatureSource
from sensorium.families.thinking.task import ThinkingTask
from sensorium.metrics.retrieval import chance_recall, judge, retrieval_of_embeddings

KS, TOP = (1, 5, 10), (1, 5)
NOUN: dict[Modality, str] = {"text": "text", "image": "picture", "audio": "sound"}
RERANKED = 10  # of the found items, ordered anew by the match head
ASKED = 500  # queries of that table at most: each costs as many joint readings
PAIRS_AT_ONCE = 256
Direction = tuple[Modality, Modality]


def tables(
    collected: Mapping[str, Tensor], source: FeatureSource, task: ThinkingTask, directions: Sequence[Direction]
) -> Iterator[Table]:
    """Those that the split and the model have something to say to."""
    yield by_row(collected, source, directions)
    if task.match is not None:
        yield reranked(collected, source, task, directions)
    if source.classes and "text" in source.senses:
        rows = list(classified(collected, source, task))
        if rows:
            templates = ", ".join(f"{m}: {template!r}" for m, template in TEMPLATES.items())
            note = f"Percent of items with a right class in the top k; the classes as texts. Templates: {templates}."
            columns = ("of", *(f"top-{k}" for k in TOP), *(f"chance top-{k}" for k in TOP), "items", "classes")
            yield Table("Zero-shot classification", columns, tuple(rows), note)


def _holding(source: FeatureSource, modalities: Sequence[Modality]) -> np.ndarray:
    """Rows that hold all of some modalities."""
    keys = [source.keys[modality] for modality in modalities]
    return np.array([row for row in range(len(source)) if all(key[row] is not None for key in keys)], np.int64)


def by_row(collected: Mapping[str, Tensor], source: FeatureSource, directions: Sequence[Direction]) -> Table:
    """Every row against every row, and only its own counterpart is right."""
    lines = []
    for query, gallery in directions:
        rows = _holding(source, (query, gallery))
        if len(rows):
            asked, stock = ((collected[m][rows].numpy(), np.arange(len(rows))) for m in (query, gallery))
            found = retrieval_of_embeddings(asked, stock, KS)
            numbers = (*(found.recall[k] for k in KS), *(found.chance[k] for k in KS))
            lines.append((NOUN[query], NOUN[gallery], *numbers, found.queries))
    columns = ("query", "finds", *(f"R@{k}" for k in KS), *(f"chance R@{k}" for k in KS), "rows")
    note = (
        "The diagonal protocol: other rows of the same group count as wrong, so that several captions of one picture "
        "are each other's rivals. Between text and sound: exactly the row's own recording. Not comparable to the table "
        "above."
    )
    return Table("Only the row's own counterpart is right", columns, tuple(lines), note)


def reranked(
    collected: Mapping[str, Tensor], source: FeatureSource, task: ThinkingTask, directions: Sequence[Direction]
) -> Table:
    """The best ``RERANKED`` of each query, in the order of the match head's logits."""
    lines = []
    for query, gallery in directions:
        stock = source.distinct(gallery)
        asked = source.distinct(query)
        asked = asked[np.isin(source.groups[asked], source.groups[stock])]
        asked = asked[np.linspace(0, len(asked) - 1, min(ASKED, len(asked))).round().astype(int)]
        scores_QG = collected[query][asked].numpy() @ collected[gallery][stock].numpy().T  # never autocast
        right_QG = source.groups[stock] == source.groups[asked][:, None]  # ties count against the model
        best_QK = stock[np.lexsort((right_QG, -scores_QG))[:, :RERANKED]]
        right_QK = source.groups[best_QK] == source.groups[asked][:, None]
        logits_QK = _logits(source, task, (query, np.repeat(asked, best_QK.shape[1])), (gallery, best_QK.reshape(-1)))
        order = np.lexsort((right_QK, -logits_QK.reshape(best_QK.shape)))
        after_QK = np.take_along_axis(right_QK, order, axis=1)
        numbers = [100 * float(right[:, :k].any(axis=1).mean()) for k in TOP for right in (right_QK, after_QK)]
        chance = (chance_recall(source.groups[asked], source.groups[stock], k) for k in TOP)
        lines.append((NOUN[query], NOUN[gallery], *numbers, *chance, len(asked), len(stock)))
    found = (f"R@{k}{after}" for k in TOP for after in ("", " re-ranked"))
    columns = ("query", "finds", *found, *(f"chance R@{k}" for k in TOP), "queries", "gallery")
    note = (
        f"The match head looks at the best {RERANKED} together with the query; at most {ASKED} queries, spread evenly."
    )
    return Table("Re-ranked by the match head", columns, tuple(lines), note)


def _logits(
    source: FeatureSource, task: ThinkingTask, first: tuple[Modality, np.ndarray], second: tuple[Modality, np.ndarray]
) -> np.ndarray:
    device = next(task.parameters()).device
    parts = []
    for start in range(0, len(first[1]), PAIRS_AT_ONCE):
        a, b = ((m, rows[start : start + PAIRS_AT_ONCE].tolist()) for m, rows in (first, second))
        batch = {name: tensor.to(device) for name, tensor in source.couples(a, b).items()}
        parts.append(task.match_score(batch).detach().float().cpu().numpy())
    return np.concatenate(parts)


def classified(
    collected: Mapping[str, Tensor], source: FeatureSource, task: ThinkingTask
) -> Iterator[tuple[str | float | int, ...]]:
    """A row a modality: its items with labels against all classes, of which each of an item's labels is right."""
    device = next(task.parameters()).device
    for modality, template in TEMPLATES.items():
        if modality not in source.senses:
            continue
        rows = np.array([row for row in source.distinct(modality) if source.items[row].labels], np.int64)
        if not len(rows):
            continue
        batch = {name: tensor.to(device) for name, tensor in source.prompts(template).items()}
        class_CD = task.embed(batch)["text"].detach().float().cpu()
        scores_NC = collected[modality][rows].numpy() @ class_CD.numpy().T
        right_NC = np.array([[label in source.items[row].labels for label in source.classes] for row in rows])
        found = judge(scores_NC, right_NC, TOP)
        numbers = (*(found.recall[k] for k in TOP), *(found.chance[k] for k in TOP))
        yield (NOUN[modality], *numbers, found.queries, found.gallery)
