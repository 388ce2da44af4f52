"""Retrieval of videos by captions and of captions by videos, beside chance.

Legend: V videos, C captions, each encoded once, Q queries (a caption of a video), E shared space, N rows of a batch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.engine.contract import Batch, Card, Evaluation, Gallery, Shown, Source, Table
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.video_retrieval.data import Clip, EvalSource
from sensorium.families.video_retrieval.localise import overlap, timeline
from sensorium.families.video_retrieval.pictures import look_at, traced
from sensorium.families.video_retrieval.task import VideoRetrievalTask, sections
from sensorium.metrics.rescoring import dual_softmax, querybank_norm
from sensorium.metrics.retrieval import RetrievalResult, judge, products

KS = (1, 5, 10, 50)
SUMMED = (1, 5, 10)
BEST_R_SUM = 2 * 100 * len(SUMMED)
LOSS_ROWS = 128  # of a chunk of the validation loss
CARDS, SHOWN, DRAWN = 6, 5, 2
OVERLAPS = (0.3, 0.5, 0.7)
NAMES: Mapping[str, tuple[str, str]] = {"t2v": ("text", "video"), "v2t": ("video", "text")}
Results = Mapping[str, RetrievalResult]


class VideoEvaluator:
    """Each video and each caption is encoded once. ``final`` adds tables and galleries."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.settings = sections(config)[1].evaluation
        self.protocol = sections(config)[1].protocol

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        """``video`` and ``text`` ``[N, E]``: the vectors of the rows that are one, or have one; else 0."""
        del final
        assert isinstance(task, VideoRetrievalTask)
        model, index = task.model, batch["index"]
        size = (len(index), model.clip.shape.embed)
        found = {name: torch.zeros(size, device=index.device) for name in ("video", "text")}
        everything = torch.arange(len(index), device=index.device)
        if "video" in batch:
            vectors = model.encode_video(batch["video"], batch["video_mask"]).video
            found["video"][batch.get("video_rows", everything)] = vectors.to(found["video"])
        if "input_ids" in batch:
            vectors = model.encode_text(batch["input_ids"], batch["attention_mask"])
            found["text"][batch.get("text_rows", everything)] = vectors.to(found["text"])
        return found

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        if not isinstance(source, EvalSource):
            raise DataError("the training split holds pairs, not single videos to rank; evaluate val or test")
        assert isinstance(task, VideoRetrievalTask)
        videos = collected["video"][: len(source.videos)].numpy()
        captions = collected["text"][len(source.videos) :].numpy()
        scores_VC = products(videos, captions)
        results = _results(scores_VC, scores_VC.T, source)
        metrics = {"loss": self._loss(videos, captions, source, task), **_flat(results)}
        if not final:
            return Evaluation(metrics)
        rows = {"cosine": results}
        if self.settings.dsl:
            rows["+ DSL"] = _results(dual_softmax(scores_VC), dual_softmax(scores_VC.T), source)
        if self.settings.qb_norm:
            rows["+ QB-Norm"] = {"t2v": _t2v(querybank_norm(scores_VC.T, self._bank(videos, source, task)), source)}
        tables = [_table(rows, source)]
        if self.settings.localise:
            tables += _localisation(source, task)
        pictures, drawn = _merging(source, task)
        warnings = list(_warnings(metrics))
        if self.protocol == "paper":
            warnings.append("selected on test (data.protocol=paper): these numbers say nothing of other videos")
        galleries = (*_galleries(scores_VC, source), *drawn)
        return Evaluation(metrics, tuple(tables), galleries, tuple(warnings), pictures=pictures)

    @torch.no_grad()
    def _loss(self, videos: np.ndarray, captions: np.ndarray, source: EvalSource, task: VideoRetrievalTask) -> float:
        """InfoNCE of each query with its video, so many of them at a time, in file order."""
        device = task.model.clip.temperature.log_scale.device
        total = 0.0
        for start in range(0, len(source.queries), LOSS_ROWS):
            numbers = slice(start, start + LOSS_ROWS)
            video, text = (
                torch.from_numpy(part).to(device)
                for part in (videos[source.video_of[numbers]], captions[source.caption_of[numbers]])
            )
            groups = torch.from_numpy(source.video_of[numbers]).to(device)
            total += float(task.model.contrast(video, text, groups)) * len(text)
        return total / len(source.queries)

    def _bank(self, videos: np.ndarray, source: EvalSource, task: VideoRetrievalTask) -> np.ndarray:
        """Scores of training captions with the videos."""
        device = task.model.clip.temperature.log_scale.device
        parts = []
        for start in range(0, len(source.bank), LOSS_ROWS):
            ids, mask = source.media.words.encode(source.bank[start : start + LOSS_ROWS])
            parts.append(task.model.encode_text(ids.to(device), mask.to(device)).float().cpu().numpy())
        return products(np.concatenate(parts), videos)


def _t2v(scores_CV: np.ndarray, source: EvalSource) -> RetrievalResult:
    """Each query among the videos: its own is right."""
    right_QV = source.video_of[:, None] == np.arange(scores_CV.shape[1])
    return judge(scores_CV[source.caption_of], right_QV, KS)


def _results(scores_VC: np.ndarray, scores_CV: np.ndarray, source: EvalSource) -> Results:
    """Both directions. Of a video all its captions are right, and the best of them counts."""
    right_VC = np.zeros(scores_VC.shape, np.bool_)
    right_VC[source.video_of, source.caption_of] = True
    asked = right_VC.any(axis=1)
    return {"t2v": _t2v(scores_CV, source), "v2t": judge(scores_VC[asked], right_VC[asked], KS)}


def _flat(results: Results) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, found in results.items():
        metrics |= {f"{name}/R@{k}": found.recall[k] for k in KS}
        metrics |= {f"chance/{name}/R@{k}": found.chance[k] for k in KS}
        metrics |= {f"{name}/MdR": found.median_rank, f"{name}/MnR": found.mean_rank}
    metrics["r_sum"] = sum(found.recall[k] for found in results.values() for k in SUMMED)
    metrics["chance/r_sum"] = sum(found.chance[k] for found in results.values() for k in SUMMED)
    return metrics


def _table(rows: Mapping[str, Results], source: EvalSource) -> Table:
    columns = ("query", "finds", "scores", *(f"R@{k}" for k in KS), "MdR", "MnR", "R-Sum")
    columns = (*columns, *(f"chance R@{k}" for k in KS), "queries", "gallery")
    lines = []
    for scores, results in rows.items():
        for name, found in results.items():
            recalls, chances = ([part[k] for k in KS] for part in (found.recall, found.chance))
            ranks = (found.median_rank, found.mean_rank, sum(found.recall[k] for k in SUMMED))
            lines.append((*NAMES[name], scores, *recalls, *ranks, *chances, found.queries, found.gallery))
    note = (
        "Percent of queries with a right item in the top k; ties count against the model. MdR, MnR: median and mean "
        "rank of the best right item; R-Sum: R@1 + R@5 + R@10. Of a video the best of its captions counts."
    )
    if "+ DSL" in rows:
        note += " DSL looks at all test queries at once, which a search cannot."
    if "+ QB-Norm" in rows:
        note += f" QB-Norm knows {len(source.bank):,} training captions."
    return Table("Retrieval" + (f": {source.note}" if source.note else ""), columns, tuple(lines), note)


def _localisation(source: EvalSource, task: VideoRetrievalTask) -> Iterator[Table]:
    """How well the segment of a caption is found in its own video; nothing where no times are known."""
    found: list[float] = []
    device = task.model.clip.temperature.log_scale.device
    told = [clip for clip in source.videos if clip.moments]
    for clip in told:
        seen = timeline(task.model, source.media.reader, clip.stretch)
        ids, mask = source.media.words.encode([moment.text for moment in clip.moments])
        texts = task.model.encode_text(ids.to(device), mask.to(device)).float().cpu().numpy()
        for moment, text in zip(clip.moments, texts, strict=True):
            event = seen.event(text, 1)
            found.append(overlap((event.start_s, event.end_s), (moment.start, moment.end)))
    if found:
        shares = [100 * float(np.mean([value >= least for value in found])) for least in OVERLAPS]
        whole = [overlap(_ends(clip), (m.start, m.end)) for clip in told for m in clip.moments]
        chance = [100 * float(np.mean([value >= least for value in whole])) for least in OVERLAPS]
        columns = ("", *(f"IoU >= {least:g}" for least in OVERLAPS), "moments", "videos")
        lines = (
            ("best segment", *shares, len(found), len(told)),
            ("all that is told of the video", *chance, len(found), len(told)),
        )
        note = "Percent of captions whose best segment overlaps with the told one so far. Not trained for localisation."
        yield Table("Segments", columns, lines, note)


def _ends(clip: Clip) -> tuple[float, float]:
    """From the first to the last told second of a video: the answer that needs no model."""
    return min(m.start for m in clip.moments), max(m.end for m in clip.moments)


def _warnings(metrics: Mapping[str, float]) -> Iterator[str]:
    found, chance = metrics["r_sum"], metrics["chance/r_sum"]
    if found - chance < 0.1 * (BEST_R_SUM - chance):
        yield f"R-Sum {found:.1f} is hardly above chance ({chance:.1f}): the model has not learned"


def _galleries(scores_VC: np.ndarray, source: EvalSource) -> Iterator[Gallery]:
    """Queries spread evenly over the split, in file order: not chosen by success."""
    queries = np.linspace(0, len(source.queries) - 1, min(CARDS, len(source.queries))).round().astype(int)
    cards = []
    for query in queries.tolist():
        text, right = source.queries[query]
        scores = scores_VC[:, source.caption_of[query]]
        best = np.argsort(-scores, kind="stable")[:SHOWN].tolist()
        found = tuple(_show(source.videos[v], v == right, float(scores[v])) for v in best)
        cards.append(Card(Shown(text), found))
    yield Gallery("text finds video", tuple(cards))
    cards = []
    for video in np.linspace(0, len(source.videos) - 1, min(CARDS, len(source.videos))).round().astype(int).tolist():
        scores = scores_VC[video]
        right = set(source.caption_of[source.video_of == video].tolist())
        best = np.argsort(-scores, kind="stable")[:SHOWN].tolist()
        found = tuple(Shown(source.captions[c], right=c in right, score=float(scores[c])) for c in best)
        cards.append(Card(_show(source.videos[video]), found))
    yield Gallery("video finds text", tuple(cards))


def _merging(source: EvalSource, task: VideoRetrievalTask) -> tuple[dict[str, bytes], list[Gallery]]:
    """What becomes of the patches of some videos, as pictures by file name and the gallery that shows them; nothing
    where nothing is merged."""
    if not task.model.on.merge:
        return {}, []
    pictures, cards, media = {}, [], source.media
    numbers = np.linspace(0, len(source.videos) - 1, min(DRAWN, len(source.videos))).round().astype(int)
    for place, clip in enumerate(source.videos[number] for number in numbers):
        packed, seen = io.BytesIO(), look_at(clip.stretch, media.reader, media.rule, media.frames)
        traced(seen, task.model).save(packed, "PNG", compress_level=1)
        pictures[f"merging-{place}.png"] = packed.getvalue()
        cards.append(Card(Shown(f"{clip.text} ({seen.name})", image=f"merging-{place}.png"), ()))
    note = "Rows are frames, columns what blocks leave. Patches of one outline are one token, in whichever frames."
    return pictures, [Gallery("what is merged", tuple(cards), note, large=True)]


def _show(clip: Clip, right: bool | None = None, score: float | None = None) -> Shown:
    path = str(clip.stretch.path.absolute())
    if clip.stretch.still:
        return Shown(clip.text, image=path, right=right, score=score)
    return Shown(clip.text, video=path, right=right, score=score)
