"""Tables beside the main one: by row, re-ranked, zero-shot classification; each against embeddings made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium import families
from sensorium.engine import settings
from sensorium.engine.contract import Host, Sources
from sensorium.families.thinking import protocols
from sensorium.families.thinking.data import FeatureSource
from sensorium.families.thinking.evaluator import _cards
from sensorium.families.thinking.task import ThinkingTask
from sensorium.metrics.retrieval import judge

FAMILY = families.load("thinking")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSource, ThinkingTask]:
    cache = str(tmp_path_factory.mktemp("features"))
    config = settings.resolve(FAMILY, "tiny", {"data": {"cache": cache}})
    found = FAMILY.sources(config, Host()).test
    assert isinstance(found, FeatureSource)
    task = FAMILY.task(config, FAMILY.facts(config, Sources(found)))
    assert isinstance(task, ThinkingTask)
    return found, task.eval()


def directions_of(vectors: Mapping[str, Tensor]) -> list[tuple]:
    return [("text", "image"), ("image", "text")]


def test_only_the_own_counterpart_counts_by_row(split: tuple[FeatureSource, ThinkingTask]) -> None:
    source, _ = split
    own = torch.eye(len(source))
    table = protocols.by_row({"text": own, "image": own}, source, [("text", "image")])
    assert table.rows[0][2] == 100.0
    assert table.rows[0][-1] == len(source)
    by_group = own[torch.from_numpy(np.unique(source.groups, return_inverse=True)[1])]
    grouped = protocols.by_row({"text": by_group, "image": by_group}, source, [("text", "image")])
    assert grouped.rows[0][2] == 0.0  # rows of one group tie, and ties count against the model


def test_the_match_head_orders_what_was_found(
    split: tuple[FeatureSource, ThinkingTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, task = split
    torch.manual_seed(0)
    collected = {m: torch.nn.functional.normalize(torch.randn(len(source), 8), dim=1) for m in ("text", "image")}
    seen: list[tuple[list[int], list[int]]] = []

    def couples(first: tuple, second: tuple) -> dict[str, Tensor]:
        seen.append((first[1], second[1]))
        return {"a": torch.tensor(first[1]), "b": torch.tensor(second[1])}

    def knows(sign: float) -> None:
        group = torch.from_numpy(source.groups)
        monkeypatch.setattr(task, "match_score", lambda batch: sign * (group[batch["a"]] == group[batch["b"]]).float())

    monkeypatch.setattr(source, "couples", couples)
    found = {}
    for sign in (1.0, -1.0):
        knows(sign)
        found[sign] = protocols.reranked(collected, source, task, directions_of(collected)).rows
    for right, wrong in zip(found[1.0], found[-1.0], strict=True):
        before, after = right[2], right[3]
        assert after > before > wrong[3]  # every right item among the ten comes first; or last
    assert all(len(a) == len(b) for a, b in seen)


def test_ties_count_against_the_model_before_and_after(
    split: tuple[FeatureSource, ThinkingTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, task = split
    monkeypatch.setattr(task, "match_score", lambda batch: torch.zeros(len(batch["has"])))
    same = torch.ones(len(source), 8)
    group = torch.from_numpy(np.unique(source.groups, return_inverse=True)[1])
    for vectors, before in ((same, 0.0), (torch.eye(len(source))[group], 100.0)):
        collected = {"text": vectors, "image": vectors}
        for row in protocols.reranked(collected, source, task, directions_of(collected)).rows:
            assert row[2:4] == (before, 0.0)


def test_what_was_found_is_ordered_in_float32_under_autocast(split: tuple[FeatureSource, ThinkingTask]) -> None:
    """Similarities that differ by less than bfloat16 can tell apart."""
    source, task = split
    torch.manual_seed(0)
    near = {m: torch.nn.functional.normalize(1 + 0.01 * torch.randn(len(source), 8), dim=1) for m in ("text", "image")}
    found = [_found(near, source, task)]
    with torch.autocast("cpu", torch.bfloat16):
        found.append(_found(near, source, task))
    assert found[0] == found[1]
    assert found[0] != _found({m: vectors.bfloat16().float() for m, vectors in near.items()}, source, task)


def _found(collected: Mapping[str, Tensor], source: FeatureSource, task: ThinkingTask) -> list[object]:
    """What the cosine alone decides: recall before re-ranking, and the galleries."""
    table = protocols.reranked(collected, source, task, directions_of(collected))
    cards = [list(_cards(collected, source, *pair)) for pair in directions_of(collected)]
    return [[(row[2], row[4]) for row in table.rows], cards]


def test_couples_are_what_their_rows_hold(split: tuple[FeatureSource, ThinkingTask]) -> None:
    source, _ = split
    batch = source.couples(("text", [0, 3]), ("image", [5, 1]))
    texts, images = source.collate([source.example(i, 0) for i in (0, 3)]), source.collate([source.example(i, 0) for i in (5, 1)])  # fmt: skip  # noqa: E501
    assert batch["text_pooled"].equal(texts["text_pooled"])
    assert batch["image_pooled"].equal(images["image_pooled"])
    assert batch["has"].tolist() == [[True, True, False]] * 2


def test_classes_are_texts(split: tuple[FeatureSource, ThinkingTask]) -> None:
    source, task = split
    with torch.no_grad():
        classes = task.embed(source.prompts(protocols.TEMPLATES["image"]))["text"]
    place = [source.classes.index(item.labels[0]) for item in source.items]
    [row] = protocols.classified({"image": classes[place]}, _only(source, ("text", "image")), task)
    assert row[:2] == ("picture", 100.0)
    assert row[-1] == len(source.classes) > 3
    away = [(p + 1) % len(source.classes) for p in place]
    [row] = protocols.classified({"image": classes[away]}, _only(source, ("text", "image")), task)
    assert row[1] < 100.0


def _only(source: FeatureSource, modalities: tuple[str, ...]) -> FeatureSource:
    numbers = {item.group: number for number, item in enumerate(source.items)}
    return FeatureSource(source.items, {m: source.senses[m] for m in modalities}, numbers, source.classes)


def test_any_right_class_counts_and_ties_do_not() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
    right = np.array([[False, True, True], [True, False, False]])
    found = judge(scores, right, (1, 2))
    assert found.recall == {1: 0.0, 2: 100.0}
    assert found.chance[1] == pytest.approx(50.0)  # two of three, and one of three
    with pytest.raises(ValueError, match=r"query 1 has no right"):
        judge(scores, np.array([[True, False, False], [False, False, False]]), (1, 2))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trained_run_shows_all_tables(tmp_path: Path, precision: str) -> None:
    from sensorium.engine import loop

    train = {"steps": 3, "precision": precision, "device": "cpu"}
    config = settings.resolve(FAMILY, "tiny", {"data": {"cache": str(tmp_path / "cache")}, "train": train})
    result = loop.train(FAMILY, config, tmp_path / "run", quiet=True)
    assert result is not None
    for table in result.tables:  # no number without what guessing would give
        assert any("chance" in column for column in table.columns) or table.rows[-1][0] == "chance", table.title
    titles = [table.title for table in result.tables]
    assert titles[-3:] == [
        "Only the row's own counterpart is right",
        "Re-ranked by the match head",
        "Zero-shot classification",
    ]
