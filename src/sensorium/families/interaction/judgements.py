"""Further ways to judge a split, each in a table of its own: re-ranked, in folds, by the names of classes, by labels.

Legend: N rows of the split, Q queries, G items of a gallery, K of them looked at again, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sensorium.data.items import Modality
from sensorium.engine.contract import Batch, Table
from sensorium.families.interaction.data import EvalSource
from sensorium.families.interaction.directions import KS, NOUN, Direction
from sensorium.families.interaction.matching import match_logits
from sensorium.families.interaction.sources import FULL
from sensorium.families.interaction.task import InteractionTask, embed, encode
from sensorium.families.interaction.towers import Encoding
from sensorium.metrics.classification import mean_average_precision
from sensorium.metrics.retrieval import judge, retrieval_of_embeddings, summarise

RERANKED = 20  # of the found items, ordered anew by the match head
ASKED = 200  # queries of that table at most: each costs as many looks
TOP = (1, 5)
FOLD, FOLDS = 1000, 5  # pictures of a fold, and folds
LABELLED = 5000  # pictures shown to the classifier at most
Templates: TypeAlias = Mapping[Modality, str]
Line: TypeAlias = tuple[str | float | int | None, ...]


@dataclass(frozen=True)
class Judged:
    """A split and what the model said of it. ``z`` ``[N, D]`` float32; ``groups`` ``[N]``; ``templates``: what a class
    of pictures or sounds is called in a text; ``batch_size``: rows of one pass."""

    z: np.ndarray
    groups: np.ndarray
    source: EvalSource
    task: InteractionTask
    templates: Templates
    batch_size: int

    def on_device(self, batch: Batch) -> Batch:
        device = next(self.task.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def encoded(self, rows: Sequence[int] | np.ndarray) -> dict[Modality, Encoding]:
        """The towers' answers to some rows, all of one modality."""
        return encode(
            self.task.model, self.on_device(self.source.collate([self.source.example(int(r), 0) for r in rows]))
        )

    @property
    def reads(self) -> bool:
        """Whether anything was trained yet that looks at several modalities together."""
        return self.task.stage in (FULL, None) and bool(self.task.config.stages.full.share)


def tables(judged: Judged, asked: Sequence[Direction]) -> Iterator[Table]:
    """Those that the split and the model have something to say to."""
    if asked and judged.reads and judged.task.config.weights.match:
        yield reranked(judged, asked)
    for found in (in_folds(judged, asked), by_names(judged), by_labels(judged) if judged.reads else None):
        if found is not None:
            yield found


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, spread evenly, in order."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


# --- re-ranked


def reranked(judged: Judged, asked: Sequence[Direction]) -> Table:
    """The best ``RERANKED`` of each query, in the order of the match head's logits."""
    lines: list[Line] = []
    for d in asked:
        chosen = spread(d.asked, ASKED)
        groups_Q, groups_G = judged.groups[chosen], judged.groups[d.stock]
        scores_QG = similarities(judged.z[chosen], judged.z[d.stock])
        right_QG = groups_Q[:, None] == groups_G

        def look(query: int, places: np.ndarray, d: Direction = d, chosen: np.ndarray = chosen) -> np.ndarray:
            one, many = judged.encoded(chosen[query : query + 1]), judged.encoded(d.stock[places])
            return match_logits(judged.task.model, one, many).cpu().numpy()

        before, after = ranks_after_a_look(scores_QG, right_QG, look)
        found = [summarise(ranks, groups_Q, groups_G, KS) for ranks in (before, after)]
        numbers = [result.recall[k] for k in KS for result in found]
        chance = [found[0].chance[k] for k in KS]
        name = judged.source.names[d.set]
        lines.append((name, NOUN[d.query], NOUN[d.gallery], *numbers, *chance, len(chosen), len(d.stock)))
    head = (f"R@{k}{after}" for k in KS for after in ("", " re-ranked"))
    columns = ("set", "query", "finds", *head, *(f"chance R@{k}" for k in KS), "queries", "gallery")
    note = (
        f"The match head looks at each of the best {RERANKED} together with the query, and orders them anew; what is "
        f"not among them stays where it was. At most {ASKED} queries, spread evenly; without re-ranking: the same ones."
    )
    return Table("Re-ranked by the match head", columns, tuple(lines), note)


def similarities(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Dot products as ``metrics.retrieval`` rounds them: ties stay ties."""
    scores: np.ndarray = (queries.astype(np.float64) @ items.T.astype(np.float64)).astype(np.float32)
    return scores


def ranks_after_a_look(
    scores_QG: np.ndarray, right_QG: np.ndarray, look: Callable[[int, np.ndarray], np.ndarray], most: int = RERANKED
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks ``[Q]`` of the best right item before and after the ``most`` best were looked at again.

    ``look(query, places)``: new scores of the items at these places of the gallery. Ties count against the model, both
    times. The rank of a query of which no right item is among those looked at does not change.
    """
    order = np.lexsort((right_QG, -scores_QG))  # of equal scores the wrong ones first
    right = np.take_along_axis(right_QG, order, axis=1)
    before = 1 + right.argmax(axis=1)
    after = before.copy()
    for query in np.flatnonzero(right[:, :most].any(axis=1)):
        logits, mine = look(int(query), order[query, :most]), right[query, :most]
        after[query] = 1 + (~mine & (logits >= logits[mine].max())).sum()
    return before, after


# --- in folds


def in_folds(judged: Judged, asked: Sequence[Direction], size: int = FOLD, count: int = FOLDS) -> Table | None:
    """COCO's 1K protocol, of every set that is large enough: retrieval within each fold, mean over folds."""
    lines: list[Line] = []
    pictures = {d.set: d.asked[: size * count] for d in asked if (d.query, d.gallery) == ("image", "text")}
    for d in asked:
        if {d.query, d.gallery} != {"image", "text"} or len(pictures[d.set]) < size * count:
            continue
        found = []
        for images in np.split(pictures[d.set], count):
            texts = d.asked if d.query == "text" else d.stock
            texts = texts[np.isin(judged.groups[texts], judged.groups[images])]
            query, gallery = (texts, images) if d.query == "text" else (images, texts)
            sides = ((judged.z[rows], judged.groups[rows]) for rows in (query, gallery))
            found.append(retrieval_of_embeddings(*sides, KS))
        recall = [float(np.mean([result.recall[k] for result in found])) for k in KS]
        chance = [float(np.mean([result.chance[k] for result in found])) for k in KS]
        sizes = [round(float(np.mean(n))) for n in ([r.queries for r in found], [r.gallery for r in found])]
        lines.append((judged.source.names[d.set], NOUN[d.query], NOUN[d.gallery], *recall, *chance, *sizes))
    columns = ("set", "query", "finds", *(f"R@{k}" for k in KS), *(f"chance R@{k}" for k in KS), "queries", "gallery")
    note = (
        f"Mean of {count} folds of {size:,} pictures each, the first {size * count:,} in file order (COCO's 1K "
        "protocol). Much easier than the whole gallery, and not to be compared with it."
    )
    return Table(f"In folds of {size:,} pictures", columns, tuple(lines), note) if lines else None


# --- by the names of classes


def by_names(judged: Judged) -> Table | None:
    """Zero-shot: sounds and pictures with labels against sentences that name the classes; also fold by fold, where the
    data set has folds."""
    lines: list[Line] = []
    used: dict[Modality, str] = {}
    for number, name in enumerate(judged.source.names):
        for modality, template in judged.templates.items():
            rows = [int(r) for r in judged.source.numbers(modality, number) if judged.source.rows[r].labels]
            classes = sorted({label for r in rows for label in judged.source.rows[r].labels})
            if len(classes) < 2:
                continue
            used[modality] = template
            scores_NC = similarities(judged.z[rows], _sentences(judged, template, classes))
            right_NC = np.array([[label in judged.source.rows[r].labels for label in classes] for r in rows])
            for fold, mine in _folds([judged.source.rows[r].meta.get("fold") for r in rows]):
                found = judge(scores_NC[mine], right_NC[mine], TOP)
                numbers = (*(found.recall[k] for k in TOP), *(found.chance[k] for k in TOP))
                lines.append((name, NOUN[modality], fold, *numbers, found.queries, found.gallery))
    columns = ("set", "of", "fold", *(f"top-{k}" for k in TOP), *(f"chance top-{k}" for k in TOP), "items", "classes")
    note = (
        "Percent of items with a right class in the top k; ties count against the model. The classes as texts: "
        f"{'; '.join(f'{NOUN[m]}: {template!r}' for m, template in used.items())}."
    )
    return Table("Zero-shot classification", columns, tuple(lines), note) if lines else None


def _sentences(judged: Judged, template: str, classes: Sequence[str]) -> np.ndarray:
    """Embeddings ``[C, D]`` of sentences about the classes."""
    parts = []
    for start in range(0, len(classes), judged.batch_size):
        texts = [template.format(label.replace("_", " ")) for label in classes[start : start + judged.batch_size]]
        vectors = embed(judged.task.model, judged.on_device(judged.source.texts(texts)))["text"]
        parts.append(vectors.float().cpu().numpy())
    return np.concatenate(parts)


def _folds(folds: Sequence[str | None]) -> Iterator[tuple[str, np.ndarray]]:
    """All items, and those of each fold."""
    yield "all", np.ones(len(folds), bool)
    named = sorted({fold for fold in folds if fold is not None})
    for fold in named if len(named) > 1 else ():
        yield fold, np.array([one == fold for one in folds])


# --- by labels


def by_labels(judged: Judged) -> Table | None:
    """The classifier's mean average precision over the labels that it was trained on: of pictures by themselves, and
    together with the first text of their group."""
    task, source = judged.task, judged.source
    if not (task.labels and task.config.weights.classify):
        return None
    lines: list[Line] = []
    for number, name in enumerate(source.names):
        first = {judged.groups[r]: int(r) for r in reversed(source.numbers("text", number))}
        known = [r for r in source.numbers("image", number) if not set(task.labels).isdisjoint(source.rows[r].labels)]
        rows = spread(np.array(known, np.int64), LABELLED) if known else np.array([], np.int64)
        told = np.array([judged.groups[r] in first for r in rows], bool)
        shown = {"picture": rows, "picture and text": rows[told]}
        for kind, mine in shown.items():
            if not len(mine):
                continue
            texts = None if kind == "picture" else np.array([first[judged.groups[r]] for r in mine])
            right_NC = np.array([[label in source.rows[r].labels for label in task.labels] for r in mine])
            found = mean_average_precision(_class_logits(judged, mine, texts), right_NC)
            lines.append((name, kind, found.mean_precision, found.chance, found.items, found.classes))
    columns = ("set", "of", "mAP", "chance mAP", "pictures", "labels")
    note = (
        "Mean average precision, in percent, over the labels that occur; chance: its expectation for a random order. "
        f"Pictures with labels, at most {LABELLED:,} of each set, spread evenly; the text: the first of their group."
    )
    return Table("Classification by labels", columns, tuple(lines), note) if lines else None


def _class_logits(judged: Judged, images: np.ndarray, texts: np.ndarray | None) -> np.ndarray:
    """``[N, C]``: of the labels that were trained, pictures by themselves or with a text each."""
    model, parts = judged.task.model, []
    for start in range(0, len(images), judged.batch_size):
        part = slice(start, start + judged.batch_size)
        encodings = judged.encoded(images[part])
        if texts is not None:
            encodings |= judged.encoded(texts[part])
        logits: Tensor = model.classifier(model.fuse(encodings))
        parts.append(logits[:, : len(judged.task.labels)].float().cpu())
    return torch.cat(parts).numpy()
