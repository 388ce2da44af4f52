"""Every number of the evaluation against one worked by hand or by brute force; beside chance, and honest about ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium import families
from sensorium.data.items import DataSet, Item, Modality
from sensorium.engine import settings
from sensorium.engine.contract import Evaluation, Host, Sources, Table
from sensorium.errors import ConfigError, DataError
from sensorium.families.interaction import judgements, samples, speakers
from sensorium.families.interaction.data import EvalSource
from sensorium.families.interaction.directions import directions
from sensorium.families.interaction.evaluator import InteractionEvaluator, show
from sensorium.families.interaction.judgements import Judged, ranks_after_a_look
from sensorium.families.interaction.samples import Row
from sensorium.families.interaction.sources import ALIGN, FULL, UNIMODAL
from sensorium.families.interaction.task import InteractionTask, normalised
from sensorium.metrics.classification import mean_average_precision
from sensorium.metrics.retrieval import retrieval_of_embeddings

FAMILY = families.load("interaction")
TEMPLATES = {"audio": "the sound of {}", "image": "a picture of {}"}
Prepared = tuple[Sources, InteractionTask]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The shapes and an untrained model."""
    config = settings.resolve(FAMILY, "tiny", {"data": {"cache": str(tmp_path_factory.mktemp("features"))}})
    found = FAMILY.sources(config, Host())
    torch.manual_seed(0)
    task = FAMILY.task(config, FAMILY.facts(config, found))
    assert isinstance(task, InteractionTask)
    return found, task.eval()


@pytest.fixture
def source(prepared: Prepared) -> EvalSource:
    test = prepared[0].test
    assert isinstance(test, EvalSource)
    return test


@pytest.fixture
def task(prepared: Prepared) -> InteractionTask:
    return prepared[1]


def groups_of(source: EvalSource) -> np.ndarray:
    return np.array([row.group for row in source.rows])


def judged(source: EvalSource, task: InteractionTask, z: np.ndarray | None = None) -> Judged:
    """With random embeddings, or those given."""
    if z is None:
        z = np.random.default_rng(0).normal(size=(len(source), 32)).astype(np.float32)
    return Judged(z, groups_of(source), source, task, TEMPLATES, 7)


def evaluator() -> InteractionEvaluator:
    return InteractionEvaluator(settings.resolve(FAMILY, "tiny", {}))


@torch.no_grad()
def score(source: EvalSource, task: InteractionTask, z: np.ndarray, *, final: bool = True) -> Evaluation:
    return evaluator().score({"z": torch.from_numpy(z)}, source, task, final=final)


def column(table: Table, name: str) -> list[object]:
    return [row[table.columns.index(name)] for row in table.rows]


def other_rows(source: EvalSource, rows: Sequence[Row], names: Sequence[str] = ("people",)) -> EvalSource:
    """A split of rows whose files nobody opens."""
    keys = {row.content: f"key of {row.content}" for row in rows if isinstance(row.content, Path)}
    return EvalSource(rows, replace(source.media, keys=keys), names)


# --- re-ranked


def by_hand(scores: np.ndarray, right: np.ndarray, logits: np.ndarray, most: int) -> tuple[int, int]:
    """The lists written out: ranks of the first right item."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], right[place]))
    again = sorted(order[:most], key=lambda place: (-logits[place], right[place])) + order[most:]
    return tuple(next(rank for rank, place in enumerate(found, 1) if right[place]) for found in (order, again))


def test_ranks_after_a_look_equal_lists_written_out() -> None:
    rng = np.random.default_rng(0)
    kinds = Counter[str]()
    for _ in range(300):
        queries, items, most = int(rng.integers(1, 5)), int(rng.integers(2, 12)), int(rng.integers(1, 6))
        scores, logits = (rng.integers(0, 6, (queries, items)).astype(np.float32) for _ in range(2))
        right = rng.random((queries, items)) < 0.25
        right[:, 0] |= ~right.any(axis=1)
        before, after = ranks_after_a_look(scores, right, lambda q, places, x=logits: x[q, places], most)
        for query in range(queries):
            expected = by_hand(scores[query], right[query], logits[query], most)
            assert (before[query], after[query]) == expected
            if before[query] > most:
                assert after[query] == before[query]  # what is outside stays where it was
                kinds["outside"] += 1
            else:
                assert after[query] <= most
                kinds["changed"] += after[query] != before[query]
    assert min(kinds["outside"], kinds["changed"]) > 100


def test_the_match_head_sees_the_query_and_the_item(source: EvalSource, task: InteractionTask) -> None:
    """Its logits are those of the model's own call with both, item by item."""
    there = judged(source, task)
    texts, pictures = source.numbers("text", 0)[:1], source.numbers("image", 0)[:5]
    with torch.no_grad():
        found = judgements.match_logits(task.model, there.encoded(texts), there.encoded(pictures))
        for place, picture in enumerate(pictures):
            batch = source.together(texts, [picture])
            expected = task.model(
                images=normalised(task.model, batch["pixels"]), input_ids=batch["ids"], attention_mask=batch["ids_mask"]
            )
            torch.testing.assert_close(found[place : place + 1], expected["match_logits"], rtol=1e-5, atol=1e-5)
    assert len(set(found.tolist())) == 5


def test_re_ranking_follows_the_match_head(
    source: EvalSource, task: InteractionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, asked, groups = judged(source, task), list(directions(source)), groups_of(source)
    monkeypatch.setattr(Judged, "encoded", lambda self, rows: groups[np.asarray(rows)])
    found = {}
    for sign in (1.0, -1.0, 0.0):
        monkeypatch.setattr(
            judgements, "match_logits", lambda model, one, many, s=sign: torch.from_numpy(s * (many == one))
        )
        found[sign] = judgements.reranked(there, asked)
    for place, d in enumerate(asked):
        scores = judgements.similarities(there.z[d.asked], there.z[d.stock])
        right = groups[d.asked][:, None] == groups[d.stock]
        best = np.argsort(-scores, axis=1)[:, : judgements.RERANKED]
        reachable = 100 * np.take_along_axis(right, best, axis=1).any(axis=1).mean()
        assert column(found[1.0], "R@1 re-ranked")[place] == pytest.approx(reachable)
        assert column(found[1.0], "R@1")[place] < reachable
    assert set(column(found[0.0], "R@1 re-ranked")) == {0.0}  # ties count against the model
    assert set(column(found[-1.0], "R@1 re-ranked")) == {0.0}


def test_what_was_never_trained_does_not_judge(source: EvalSource, task: InteractionTask) -> None:
    def titles(stage: str | None = None, **changes: object) -> list[str]:
        config = task.config.model_copy(update=changes)
        other = InteractionTask(config, {"labels": task.labels, "teachers": {}, "by_labels": True}, 1).eval()
        other.stage = stage
        with torch.no_grad():
            return [table.title for table in judgements.tables(judged(source, other), list(directions(source)))]

    stages, weights = task.config.stages, task.config.weights
    everything = ["Re-ranked by the match head", "Zero-shot classification", "Classification by labels"]
    assert titles() == titles(FULL) == everything
    assert titles(ALIGN) == titles(UNIMODAL) == ["Zero-shot classification"]  # a checkpoint of an earlier stage
    assert titles(weights=weights.model_copy(update={"match": 0.0, "classify": 0.0})) == ["Zero-shot classification"]
    no_full = stages.model_copy(update={"full": stages.full.model_copy(update={"share": 0.0})})
    assert titles(stages=no_full) == ["Zero-shot classification"]


# --- in folds


def test_folds_are_means_over_their_own_galleries(source: EvalSource, task: InteractionTask) -> None:
    there, asked, groups = judged(source, task), list(directions(source)), groups_of(source)
    table = judgements.in_folds(there, asked, size=10, count=4)
    assert table is not None
    assert table.title == "In folds of 10 pictures"
    assert "Mean of 4 folds of 10 pictures" in table.note
    for line, (query, gallery) in zip(table.rows, (("text", "image"), ("image", "text")), strict=True):
        found = []
        for first in range(0, 40, 10):
            pictures = source.numbers("image", 0)[first : first + 10]
            sides = {"image": pictures, "text": [r for r in source.numbers("text", 0) if groups[r] in groups[pictures]]}
            rows = [np.array(sides[m]) for m in (query, gallery)]
            found.append(retrieval_of_embeddings(*((there.z[r], groups[r]) for r in rows)))
        assert line[3:6] == pytest.approx([np.mean([r.recall[k] for r in found]) for k in (1, 5, 10)])
        assert line[6:9] == pytest.approx([np.mean([r.chance[k] for r in found]) for k in (1, 5, 10)])
    assert judgements.in_folds(there, asked, size=10, count=5) is None  # 48 pictures
    assert (judgements.FOLD, judgements.FOLDS) == (1000, 5)


# --- by the names of classes


def sounds(source: EvalSource, labels: Sequence[str], folds: Sequence[str]) -> EvalSource:
    """Sounds of one label each, in folds."""
    rows = [
        Row(0, i, "audio", Path(f"{i}.wav"), str(i), (label,), {"fold": fold})
        for i, (label, fold) in enumerate(zip(labels, folds, strict=True))
    ]
    return other_rows(source, rows, ("esc",))


def test_sounds_are_classified_by_sentences_fold_by_fold(
    source: EvalSource, task: InteractionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["crying_baby", "dog", "rain", "rain"]
    split = sounds(source, labels, "1122")
    asked: list[str] = []
    vectors = {"the sound of crying baby": 0, "the sound of dog": 1, "the sound of rain": 2}

    def texts(self: EvalSource, given: Sequence[str]) -> dict[str, torch.Tensor]:
        asked.extend(given)
        return {"here": torch.tensor([vectors[text] for text in given])}

    monkeypatch.setattr(EvalSource, "texts", texts)
    monkeypatch.setattr(judgements, "embed", lambda model, batch: {"text": torch.eye(3)[batch["here"]]})
    z = np.eye(3, dtype=np.float32)[[0, 2, 2, 1]]  # the dog is taken for rain, and one rain for a dog
    table = judgements.by_names(judged(split, task, z))
    assert table is not None
    assert asked == list(vectors)
    assert table.rows == (
        ("esc", "sound", "all", 50.0, 100.0, pytest.approx(100 / 3), pytest.approx(100.0), 4, 3),
        ("esc", "sound", "1", 50.0, 100.0, pytest.approx(100 / 3), pytest.approx(100.0), 2, 3),
        ("esc", "sound", "2", 50.0, 100.0, pytest.approx(100 / 3), pytest.approx(100.0), 2, 3),
    )
    assert "sound: 'the sound of {}'" in table.note
    tied = judgements.by_names(judged(split, task, np.ones((4, 3), np.float32)))
    assert tied is not None
    assert set(column(tied, "top-1")) == {0.0}
    assert judgements.by_names(judged(sounds(source, ["dog"] * 4, "1122"), task, z)) is None  # one class: no question


@pytest.mark.parametrize("template", ["the sound", "{} and {}", "{label}"])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(ConfigError, match="zero_shot_sound"):
        settings.resolve(FAMILY, "tiny", {"data": {"zero_shot_sound": template}})


# --- by labels


def test_labels_are_judged_from_pictures_and_with_their_first_text(source: EvalSource, task: InteractionTask) -> None:
    with torch.no_grad():
        table = judgements.by_labels(judged(source, task))
    assert table is not None
    pictures, groups = source.numbers("image", 0), groups_of(source)
    texts = [next(r for r in source.numbers("text", 0) if groups[r] == groups[p]) for p in pictures]
    right = np.array([[label in source.rows[p].labels for label in task.labels] for p in pictures])
    for line, with_text in zip(table.rows, (False, True), strict=True):
        logits = []
        for picture, text in zip(pictures, texts, strict=True):
            batch = source.together([picture], [text])
            words = {"input_ids": batch["ids"], "attention_mask": batch["ids_mask"]} if with_text else {}
            with torch.no_grad():
                logits.append(
                    task.model(images=normalised(task.model, batch["pixels"]), **words)["logits"][0, : len(task.labels)]
                )
        expected = mean_average_precision(torch.stack(logits).numpy(), right)
        assert line[2:] == pytest.approx((expected.mean_precision, expected.chance, 48, 18))
    assert table.rows[0][2] != table.rows[1][2]


# --- voices and faces

GENDERS = {"ann": "f", "bea": "f", "cora": "f", "dan": "m", "ed": "m"}


def people(source: EvalSource, genders: dict[str, str] = GENDERS, *, told: bool = True) -> EvalSource:
    """Three voices and two faces of each; and somebody who is only heard."""
    rows = []
    for group, (name, gender) in enumerate({**genders, "unseen": "m"}.items()):
        meta = {"speaker": name, "gender": gender} if told else {"speaker": name}
        rows += [Row(0, group, "audio", Path(f"{name}{n}.wav"), name, (), meta) for n in range(3)]
        if name != "unseen":
            rows += [Row(0, group, "image", Path(f"{name}{n}.jpg"), name, (), meta) for n in range(2)]
    return other_rows(source, rows)


def trials_of(split: EvalSource, seed: int = 0) -> speakers.Trials:
    found = speakers.speakers(split, 0)
    assert found is not None
    return speakers.trials(found, "people", seed)


def test_trials_hold_one_right_candidate_and_rivals_of_the_kind_they_name(source: EvalSource) -> None:
    split = people(source)
    who = [row.meta["speaker"] for row in split.rows]
    found = trials_of(split)
    assert len(found.matching) == 4
    for (query, gallery, kind), lists in found.matching.items():
        assert len(lists) == speakers.TRIALS
        turns = Counter(who[trial[0]] for trial in lists)
        assert set(turns) == set(GENDERS)
        assert max(turns.values()) - min(turns.values()) <= 1
        for probe, right, *wrong in lists:
            assert split.rows[probe].modality == query
            assert {split.rows[r].modality for r in (right, *wrong)} == {gallery}
            assert who[right] == who[probe]
            assert who[probe] not in [who[r] for r in wrong]  # nobody is their own rival
            assert len({who[r] for r in wrong}) == len(wrong)
            if kind == speakers.SAME_GENDER:
                assert {GENDERS[who[r]] for r in wrong} == {GENDERS[who[probe]]}
                assert len(wrong) == (2 if GENDERS[who[probe]] == "f" else 1)
            else:
                assert len(wrong) == 4
    for kind, pairs in found.pairs.items():
        assert len(pairs) == speakers.PAIRS
        assert sum(same for *_, same in pairs) == speakers.PAIRS // 2
        for voice, face, same in pairs:
            assert [split.rows[r].modality for r in (voice, face)] == ["audio", "image"]
            assert (who[voice] == who[face]) == same
            assert kind == speakers.ANYONE or GENDERS[who[voice]] == GENDERS[who[face]]


def test_trials_follow_from_the_seed_alone(source: EvalSource) -> None:
    split = people(source)
    assert trials_of(split) == trials_of(people(source))
    assert trials_of(split).digest(split) == trials_of(people(source)).digest(split)
    one, other = trials_of(split), trials_of(split, seed=1)
    assert one.digest(split) != other.digest(split)
    assert all(lists != other.matching[kind] for kind, lists in one.matching.items())
    assert all(pairs != other.pairs[kind] for kind, pairs in one.pairs.items())


def test_the_lists_of_trials_are_kept_by_the_names_of_the_files(source: EvalSource) -> None:
    split = people(source)
    kept, found = (
        speakers.lists(split, 0)[split.names[0]],
        speakers.trials(speakers.speakers(split, 0), split.names[0], 0),
    )
    assert [tuple(kind) for *kind, _ in kept["matching"]] == list(found.matching)
    for *kind, lists in kept["matching"]:
        trials = found.matching[tuple(kind)]
        assert lists == [[str(split.rows[row].content) for row in trial] for trial in trials]
    assert [(kind, len(pairs)) for kind, pairs in kept["pairs"]] == [(k, len(p)) for k, p in found.pairs.items()]
    assert speakers.lists(source, 0) == {}


def test_without_genders_there_are_no_rivals_of_the_same(source: EvalSource) -> None:
    assert {kind for *_, kind in trials_of(people(source, told=False)).matching} == {speakers.ANYONE}
    assert speakers.speakers(people(source, {"ann": "f"}), 0) is None


def spoken(split: EvalSource, kind: str) -> np.ndarray:
    """One direction for each speaker; or for each gender; or for all."""
    names = {"speaker": [*sorted(GENDERS), "unseen"], "gender": ["f", "m"]}.get(kind)
    place = [0 if names is None else names.index(row.meta[kind]) for row in split.rows]
    return np.eye(8, dtype=np.float32)[place]


def test_voices_and_faces_by_hand(source: EvalSource) -> None:
    split = people(source)
    tables = {kind: list(speakers.tables(spoken(split, kind), split, 0)) for kind in ("speaker", "gender", "nothing")}
    matching, verification = tables["speaker"]
    assert matching.rows[0][:4] == ("people", "voice", "face", "anyone")
    assert matching.rows[0][4:] == (100.0, 100.0, None, None, None, 1000, 5)
    assert [row[1:4] for row in matching.rows[1:4]] == [
        ("face", "voice", "anyone"),
        ("voice", "face", "same gender"),
        ("face", "voice", "same gender"),
    ]
    assert matching.rows[-1] == ("chance", "", "", "", 50.0, 25.0, pytest.approx(100 / 6), 12.5, 10.0, None, None)
    assert {row[2:4] for row in verification.rows} == {(0.0, 100.0)}
    assert {row[4:6] for row in verification.rows} == {(50.0, 50.0)}
    matching, verification = tables["nothing"]
    assert {row[4] for row in matching.rows[:-1]} == {0.0}  # ties count against the model
    assert {row[2:4] for row in verification.rows} == {(50.0, 50.0)}
    matching, verification = tables["gender"]
    assert {row[4] for row in matching.rows[:-1] if row[3] == "same gender"} == {0.0}
    for row in matching.rows[:-1]:
        if row[3] == "anyone":
            assert 45 < row[4] < 75  # 3/5 of the people have 2 of 4 others of the other gender, 2/5 have 3 of 4
    by_kind = {row[1]: row[2:4] for row in verification.rows}
    assert by_kind["same gender"] == (50.0, 50.0)
    assert by_kind["anyone"][1] > 70
    assert trials_of(split).digest(split) in matching.note
    assert trials_of(split).digest(split) in verification.note


def test_accuracy_is_that_of_the_first_candidates(source: EvalSource) -> None:
    z = np.array([[1.0, 0], [0.9, 0], [0.8, 0], [0.95, 0]], np.float32)
    lists = [[0, 1, 2, 3], [0, 1, 2], [0, 2, 1]]
    assert speakers.accuracy(z, lists, 2) == pytest.approx(100 * 2 / 3)
    assert speakers.accuracy(z, lists, 3) == 0.0  # one trial is long enough, and its last candidate wins
    assert speakers.accuracy(z, lists, 4) is None


# --- all together


def test_a_collapsed_model_finds_nothing(source: EvalSource, task: InteractionTask) -> None:
    result = score(source, task, np.full((len(source), 32), 32**-0.5, np.float32))
    table = result.tables[0]
    assert set(column(table, "R@1")) == {0.0}
    assert min(column(table, "chance R@1")) > 5
    assert result.warnings
    assert {v for name, v in result.metrics.items() if name.endswith("R@1") and not name.startswith("chance/")} == {0.0}


def test_what_is_missing_stands_beside_the_numbers(source: EvalSource, task: InteractionTask) -> None:
    split = EvalSource(source.rows, source.media, source.names, ("clips: 957 of 975 test clips are there",))
    result = score(split, task, judged(source, task).z)
    table = result.tables[0]
    assert table.title == "Retrieval: shapes (48 pictures, 48 sounds, 48 texts)"
    assert table.note.endswith("clips: 957 of 975 test clips are there.")
    for one in result.tables:  # no number without what guessing would give
        assert any("chance" in name for name in one.columns) or one.rows[-1][0] == "chance", one.title


def test_a_split_without_pairs_is_judged_by_what_it_has(source: EvalSource, task: InteractionTask) -> None:
    split = sounds(source, ["dog", "rain", "dog", "rain"], "1212")
    z = np.random.default_rng(0).normal(size=(4, task.config.embedding)).astype(np.float32)
    result = score(split, task, z)
    assert [table.title for table in result.tables] == ["Zero-shot classification"]
    assert result.metrics == {}
    with pytest.raises(DataError, match="no group has items of two modalities"):
        score(split, task, z, final=False)
    bare = other_rows(source, [replace(row, labels=()) for row in split.rows])
    with pytest.raises(DataError, match="no group has items of two modalities"):
        score(bare, task, z)


def test_the_training_split_is_no_table(prepared: Prepared, task: InteractionTask) -> None:
    with pytest.raises(DataError, match="evaluate val or test"):
        evaluator().score({"z": torch.zeros(288, 32)}, prepared[0].train, task, final=True)


def test_of_each_picture_the_first_five_texts_are_asked_for() -> None:
    items = [Item(f"{p}{n}", p, "test", f"{p} {n}", Path(f"{p}.jpg")) for p in ("cat", "dog") for n in range(7)]
    items += [Item("x", "dog", "test", "another dog", Path("other.jpg")), Item("y", "dog", "test", "only words")]
    one = DataSet("x", Path(), "", tuple(items))
    found = samples.rows([one], samples.group_numbers([one]), "test")
    texts = [row.content for row in found if row.modality == "text"]
    assert texts == [f"{p} {n}" for p in ("cat", "dog") for n in range(5)] + ["another dog", "only words"]


def test_directions_leave_out_queries_without_an_answer(source: EvalSource) -> None:
    def row(group: int, modality: Modality) -> Row:
        return Row(0, group, modality, Path(f"{modality}{group}"), "")

    split = other_rows(source, [row(0, "image"), row(1, "image"), row(0, "audio"), row(2, "audio")])
    found = {(d.query, d.gallery): (d.asked.tolist(), d.stock.tolist()) for d in directions(split)}
    assert found == {("image", "audio"): ([0], [2, 3]), ("audio", "image"): ([2], [0, 1])}


def test_what_is_shown_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set may lie at a path from here; the report asks from the run's folder."""
    monkeypatch.chdir(tmp_path)
    for modality, kept in (("image", "image"), ("audio", "audio")):
        shown = show(Row(0, 0, modality, Path("data/one"), "one", (), {}))
        assert getattr(shown, kept) == str(tmp_path / "data/one")
