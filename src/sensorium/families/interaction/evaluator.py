"""Retrieval in all pairs of modalities, set by set, beside chance; and the stage's own loss.

Legend: N rows of the split, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch, Card, Evaluation, Gallery, Shown, Source, Table
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.interaction import judgements, losses, speakers
from sensorium.families.interaction.data import DataConfig, EvalSource
from sensorium.families.interaction.directions import KS, NOUN, Direction, directions
from sensorium.families.interaction.judgements import Judged
from sensorium.families.interaction.samples import MOST_TEXTS, Row
from sensorium.families.interaction.sources import UNIMODAL
from sensorium.families.interaction.task import InteractionTask, encode
from sensorium.metrics.retrieval import RetrievalResult, retrieval_of_embeddings

BEST_R_SUM = 600.0
CARDS, SHOWN = 6, 5  # queries of a gallery, results of each


Results: TypeAlias = Mapping[tuple[str, str], RetrievalResult]


class InteractionEvaluator:
    """Embeds every text, picture and recording once."""

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, DataConfig)
        self.batch_size, self.seed = config.evaluate.batch_size, config.seed
        self.templates: judgements.Templates = {
            "audio": config.data.zero_shot_sound,
            "image": config.data.zero_shot_picture,
        }

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        del final
        assert isinstance(task, InteractionTask)
        encodings = encode(task.model, batch)
        z = torch.stack([task.model.embed(m, encoding.pooled) for m, encoding in encodings.items()]).sum(dim=0)
        found = {"z": z.float()}
        if task.stage == UNIMODAL:
            rows = task.unimodal_losses(batch)
            there = [name for name in ("image", "audio") if name in rows]
            zero = torch.zeros(len(z), device=z.device)
            found["own"] = torch.stack([zero, *(rows[name] for name in there)]).sum(dim=0)
            found["own/used"] = torch.stack([zero.bool(), *(rows[f"{name}/used"] for name in there)]).any(dim=0)
        return found

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        if not isinstance(source, EvalSource):
            raise DataError("the training split holds pairs, not single things to rank; evaluate val or test")
        assert isinstance(task, InteractionTask)
        asked = list(directions(source))
        z, groups = collected["z"].numpy(), np.array([row.group for row in source.rows], np.int64)
        further: list[Table] = []
        if final:
            judged = Judged(z, groups, source, task, self.templates, self.batch_size)
            further = [*judgements.tables(judged, asked), *speakers.tables(z, source, self.seed)]
        if not asked and not further:
            raise DataError("the split cannot be evaluated: no group has items of two modalities")
        results = {
            (source.names[d.set], d.short): retrieval_of_embeddings(
                (z[d.asked], groups[d.asked]), (z[d.stock], groups[d.stock]), KS
            )
            for d in asked
        }
        metrics = self._metrics(collected, source, task, results)
        if not final:
            return Evaluation(metrics)
        tables = (_recall_table(source, asked, results), *further) if asked else tuple(further)
        trials = speakers.lists(source, self.seed)
        details = {"speaker-trials": trials} if trials else {}
        return Evaluation(metrics, tables, tuple(_galleries(z, source, asked)), tuple(_warnings(metrics)), details)

    def _metrics(
        self, collected: Mapping[str, Tensor], source: EvalSource, task: InteractionTask, results: Results
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if results or task.stage == UNIMODAL:
            metrics["loss"] = self._loss(collected, source, task)
        for (name, short), result in results.items():
            metrics |= {f"{name}/{short}/R@{k}": result.recall[k] for k in KS}
            metrics |= {f"chance/{name}/{short}/R@{k}": result.chance[k] for k in KS}
        if results:
            metrics |= {"r_sum": r_sum(results), "chance/r_sum": r_sum(results, chance=True)}
        return metrics

    @torch.no_grad()
    def _loss(self, collected: Mapping[str, Tensor], source: EvalSource, task: InteractionTask) -> float:
        """Of the first stage the towers' own, NaN where no row has one; of the others the contrastive one,
        ``evaluate.batch_size`` pairs at a time."""
        if task.stage == UNIMODAL:
            kinds = [torch.tensor([row.modality == m for row in source.rows]) for m in ("image", "audio")]
            used = [kind & collected["own/used"] for kind in kinds]
            own = [float(collected["own"][rows].mean()) for rows in used if bool(rows.any())]
            return sum(own) if own else math.nan
        values: dict[str, list[tuple[float, int]]] = {}
        temperatures = task.model.temperatures
        device = next(temperatures.parameters()).device
        for a, b, pairs in _true_pairs(source):
            for start in range(0, len(pairs), self.batch_size):
                rows = torch.from_numpy(pairs[start : start + self.batch_size])
                z = {m: collected["z"][rows[:, i]].to(device) for i, m in enumerate((a, b))}
                here = torch.ones(len(rows), dtype=torch.bool, device=device)
                groups = torch.arange(len(rows), device=device)
                found = losses.contrast(z, {a: here, b: here}, groups, temperatures, everywhere=False)
                values.setdefault(f"{a}-{b}", []).append((float(found[f"{a}-{b}"]), len(rows)))
        means = [sum(v * n for v, n in parts) / sum(n for _, n in parts) for parts in values.values()]
        return sum(means)


def _true_pairs(source: EvalSource) -> Iterator[tuple[Modality, Modality, np.ndarray]]:
    """Of each set and pair of modalities the rows ``[P, 2]`` that belong together: the first of each group."""
    for number in range(len(source.names)):
        first = {
            m: {source.rows[row].group: int(row) for row in reversed(source.numbers(m, number))} for m in MODALITIES
        }
        for a, b in combinations(MODALITIES, 2):
            shared = [group for group in sorted(first[a]) if group in first[b]]
            if shared:
                yield a, b, np.array([(first[a][group], first[b][group]) for group in shared], np.int64)


def r_sum(results: Results, *, chance: bool = False) -> float:
    """Mean over sets and pairs of modalities of R@1 + R@5 + R@10, summed over both directions; at most 600."""
    sums = [sum((result.chance if chance else result.recall)[k] for k in KS) for result in results.values()]
    return 2 * sum(sums) / len(sums)


def _recall_table(source: EvalSource, asked: list[Direction], results: Results) -> Table:
    head = ("set", "query", "finds", *(f"R@{k}" for k in KS), "MdR", "MnR")
    columns = (*head, *(f"chance R@{k}" for k in KS), "queries", "gallery")
    lines = []
    for d in asked:
        name = source.names[d.set]
        found = results[name, d.short]
        recalls, chances = ([part[k] for k in KS] for part in (found.recall, found.chance))
        ranks = (found.median_rank, found.mean_rank)
        lines.append((name, NOUN[d.query], NOUN[d.gallery], *recalls, *ranks, *chances, found.queries, found.gallery))
    note = (
        "Percent of queries with at least one right item in the top k; ties count against the model. MdR, MnR: median "
        f"and mean rank of the best right item. Of each picture or sound the first {MOST_TEXTS} texts."
    )
    sizes: dict[str, dict[str, None]] = {}  # what is really there
    for d in asked:
        sizes.setdefault(source.names[d.set], {})[f"{len(d.stock):,} {NOUN[d.gallery]}s"] = None
    there = ", ".join(f"{name} ({', '.join(counts)})" for name, counts in sizes.items())
    return Table(f"Retrieval: {there}", columns, tuple(lines), " ".join([note, *(f"{n}." for n in source.notes)]))


def _warnings(metrics: Mapping[str, float]) -> Iterator[str]:
    found, chance = metrics.get("r_sum", BEST_R_SUM), metrics.get("chance/r_sum", 0.0)
    if found - chance < 0.1 * (BEST_R_SUM - chance):
        yield f"R-Sum {found:.1f} is hardly above chance ({chance:.1f}): the model has not learned"


def _galleries(z: np.ndarray, source: EvalSource, asked: list[Direction]) -> Iterator[Gallery]:
    """Queries spread evenly over the split, in file order: not chosen by success."""
    for d in asked:
        if (d.query, d.gallery) == ("text", "audio"):
            continue  # it says no more than sound to text, and many galleries tire the reader
        chosen = d.asked[np.linspace(0, len(d.asked) - 1, min(CARDS, len(d.asked))).round().astype(int)]
        scores = torch.from_numpy(z[chosen] @ z[d.stock].T)
        best = torch.topk(scores, min(SHOWN, len(d.stock)), dim=1)
        cards = []
        for number, values, places in zip(chosen, best.values.tolist(), best.indices.tolist(), strict=True):
            query = source.rows[number]
            answers = [source.rows[d.stock[place]] for place in places]
            found = tuple(
                show(row, right=row.group == query.group, score=value)
                for row, value in zip(answers, values, strict=True)
            )
            cards.append(Card(show(query), found))
        title = f"{source.names[d.set]}: {NOUN[d.query]} finds {NOUN[d.gallery]}"
        yield Gallery(title, tuple(cards))


def show(row: Row, *, right: bool | None = None, score: float | None = None) -> Shown:
    """What the report shows of a row: its words, its picture, or its sound to be played."""
    if isinstance(row.content, str):
        return Shown(row.content, None, None, right, score)
    image, audio = (str(row.content.absolute()) if row.modality == m else None for m in ("image", "audio"))
    return Shown(row.caption, image, audio, right, score)
