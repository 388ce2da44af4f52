"""What is made of the vectors of videos and captions, against loops that anybody can follow."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium import families
from sensorium.data.items import Moment
from sensorium.engine import loop, settings
from sensorium.engine.contract import Evaluation, Host, Sources
from sensorium.errors import DataError
from sensorium.families.video_retrieval.data import EvalSource, TrainSource
from sensorium.families.video_retrieval.evaluator import VideoEvaluator
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.task import VideoRetrievalTask

FAMILY = families.load("video_retrieval")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[settings.RunConfig, Sources]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = settings.resolve(FAMILY, "tiny")
        yield config, FAMILY.sources(config, Host())


@pytest.fixture(scope="module")
def task(prepared: tuple[settings.RunConfig, Sources]) -> VideoRetrievalTask:
    torch.manual_seed(0)
    task = FAMILY.task(prepared[0], {}).eval()
    assert isinstance(task, VideoRetrievalTask)
    return task


@pytest.fixture
def source(prepared: tuple[settings.RunConfig, Sources]) -> EvalSource:
    """Four videos, six questions: a video has two captions, one caption belongs to two videos."""
    whole = prepared[1].test
    assert isinstance(whole, EvalSource)
    queries = [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("a", 3), ("e", 3)]
    return replace(whole, videos=whole.videos[:4], queries=queries)


def judged(
    config: settings.RunConfig, source: EvalSource, task: VideoRetrievalTask, z: np.ndarray, *, final: bool = True
) -> Evaluation:
    """The evaluation of vectors ``z``: of the videos, then of the captions."""
    video, text = np.zeros_like(z), np.zeros_like(z)
    video[: len(source.videos)], text[len(source.videos) :] = z[: len(source.videos)], z[len(source.videos) :]
    collected = {"video": torch.from_numpy(video), "text": torch.from_numpy(text)}
    with torch.no_grad():
        return VideoEvaluator(config).score(collected, source, task, final=final)


def drawn(source: EvalSource, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).standard_normal((len(source), 64))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def naive(scores: Mapping[tuple[int, int], float], source: EvalSource) -> dict[str, list[int]]:
    """Ranks by two loops; ties count against the model."""
    t2v, v2t = [], []
    for text, video in source.queries:
        caption = source.captions.index(text)
        own = scores[video, caption]
        t2v.append(1 + sum(scores[v, caption] >= own for v in range(len(source.videos)) if v != video))
    for video in range(len(source.videos)):
        mine = {source.captions.index(text) for text, owner in source.queries if owner == video}
        best = max(scores[video, c] for c in mine)
        v2t.append(1 + sum(scores[video, c] >= best for c in range(len(source.captions)) if c not in mine))
    return {"t2v": t2v, "v2t": v2t}


def test_both_directions_against_a_double_loop(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    for seed in range(20):
        z = drawn(source, seed)
        if seed % 3 == 0:
            z[1] = z[0]  # ties
        count = len(source.videos)
        products = (z[:count].astype(np.float64) @ z[count:].astype(np.float64).T).astype(np.float32)
        scores = {(v, c): float(products[v, c]) for v in range(count) for c in range(len(source.captions))}
        metrics = judged(prepared[0], source, task, z, final=False).metrics
        for way, ranks in naive(scores, source).items():
            assert metrics[f"{way}/MdR"] == np.median(ranks)
            assert metrics[f"{way}/MnR"] == pytest.approx(np.mean(ranks))
            for k in (1, 5, 10, 50):
                assert metrics[f"{way}/R@{k}"] == pytest.approx(100 * np.mean([rank <= k for rank in ranks]))
        total = sum(metrics[f"{way}/R@{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10))
        assert metrics["r_sum"] == pytest.approx(total)


def test_a_collapsed_model_is_the_worst(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    z = np.tile(drawn(source)[:1], (len(source), 1))
    found = judged(prepared[0], source, task, z)
    assert found.metrics["t2v/R@1"] == found.metrics["v2t/R@1"] == 0.0
    assert found.metrics["t2v/MdR"] == len(source.videos)
    assert any("hardly above chance" in warning for warning in found.warnings)


def test_a_model_that_knows_is_the_best(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    """But for the caption of two videos, which cannot tell them apart."""
    z = np.zeros((len(source), 64), np.float32)
    z[np.arange(4), np.arange(4)] = 1
    for text, video in source.queries:
        z[4 + source.captions.index(text), video] = 1
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    metrics = judged(prepared[0], source, task, z).metrics
    assert metrics["t2v/R@1"] == pytest.approx(100 * 4 / 6)
    assert metrics["t2v/R@5"] == 100.0
    assert metrics["v2t/R@1"] == 100.0


def test_options_are_rows_of_their_own(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    changes = {"data": {"evaluation": {"dsl": True, "qb_norm": True}}}
    config = settings.resolve(FAMILY, "tiny", changes)
    split = replace(source, bank=("a red disc moves", "a blue bar"), there=(4, 5))
    found = judged(config, split, task, drawn(split))
    [table] = found.tables
    assert table.title == "Retrieval: 4 of 5 videos"
    assert [row[:3] for row in table.rows] == [
        ("text", "video", "cosine"),
        ("video", "text", "cosine"),
        ("text", "video", "+ DSL"),
        ("video", "text", "+ DSL"),
        ("text", "video", "+ QB-Norm"),
    ]
    assert "2 training captions" in table.note
    assert found.metrics == judged(prepared[0], source, task, drawn(source)).metrics  # the headline stays raw
    assert len(judged(prepared[0], source, task, drawn(source)).tables[0].rows) == 2


def test_the_loss_is_that_of_pairs_in_the_order_of_the_file(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    z = drawn(source)
    videos, captions = (torch.from_numpy(part) for part in (z[:4], z[4:]))
    video, text = videos[source.video_of], captions[source.caption_of]
    groups = torch.from_numpy(source.video_of)
    logits = 100 * video @ text.T
    same = (groups[:, None] == groups).float()
    target = same / same.sum(dim=1, keepdim=True)
    loss = -((target * logits.log_softmax(1)).sum(1) + (target * logits.T.log_softmax(1)).sum(1)).mean() / 2
    assert judged(prepared[0], source, task, z).metrics["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_segments_are_judged_where_times_are_known(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    config = settings.resolve(FAMILY, "tiny", {"data": {"evaluation": {"localise": True}}})
    assert len(judged(config, source, task, drawn(source)).tables) == 1  # no times, no table
    clips = [replace(source.videos[0], moments=(Moment(0.0, 1.0, "a"), Moment(0.0, 0.01, "b"))), *source.videos[1:]]
    table = judged(config, replace(source, videos=clips), task, drawn(source)).tables[1]
    assert (table.title, table.rows[1][1:]) == ("Segments", (50.0, 50.0, 50.0, 2, 1))
    assert "Not trained for localisation" in table.note


def test_the_training_split_cannot_be_ranked(
    prepared: tuple[settings.RunConfig, Sources], task: VideoRetrievalTask
) -> None:
    train = prepared[1].train
    assert isinstance(train, TrainSource)
    with pytest.raises(DataError, match="evaluate val or test"):
        VideoEvaluator(prepared[0]).score({}, train, task, final=True)


def test_the_test_part_stays_closed_while_training(tmp_path: Path) -> None:
    """And is opened once for each of its videos at the end; `paper` says that it looks all the time."""
    opened: list[int] = []

    def train(changes: dict[str, Any], folder: Path) -> Evaluation | None:
        config = settings.resolve(FAMILY, "tiny", {"train": {"steps": 2}, "evaluate": {"every_steps": 1}}, changes)
        found: list[EvalSource] = []

        def sources(config: settings.RunConfig, host: Host) -> Sources:
            parts = FAMILY.sources(config, host)
            assert isinstance(parts.test, EvalSource)
            found.append(parts.test)
            return parts

        result = loop.train(replace(FAMILY, sources=sources), config, folder, quiet=True)
        opened.append(found[0].opened)
        return result

    train({"evaluate": {"test": False}}, tmp_path / "closed")
    train({}, tmp_path / "once")
    assert opened == [0, 16]
    result = train({"data": {"protocol": "paper"}}, tmp_path / "paper")
    assert result is not None
    assert any("selected on test" in warning for warning in result.warnings)


def test_what_is_merged_is_drawn(
    prepared: tuple[settings.RunConfig, Sources], source: EvalSource, task: VideoRetrievalTask
) -> None:
    """The last gallery shows the pictures that are stored with the result; without merging there are none."""
    found = judged(prepared[0], source, task, drawn(source))
    last = found.galleries[-1]
    assert (last.title, last.large) == ("what is merged", True)
    assert [card.query.image for card in last.cards] == list(found.pictures) == ["merging-0.png", "merging-1.png"]
    assert last.cards[1].query.caption.startswith(source.videos[-1].text)
    with Image.open(io.BytesIO(found.pictures["merging-0.png"])) as picture:
        assert picture.width > picture.height // 2 > 500
    assert judged(prepared[0], source, task, drawn(source), final=False).pictures == {}
    plain = VideoRetrievalTask(UnifiedTempMeSTOPModel(prepared[0].model.model_copy(update={"kind": "lora"})), 1).eval()
    assert judged(prepared[0], source, plain, drawn(source)).pictures == {}
