"""Two processes: a resume is exact, another number of them says what it cannot be, and both skip the same steps."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from forked_ranks import Rank, Ranks, forked_ranks
from helpers import TOY, lines, toy_config
from test_guard import STEEP, assert_left_as_it_was, expected_scales
from test_resume import EACH_STEP, assert_equal_runs, cut, state_of

from sensorium import families
from sensorium.data import readers
from sensorium.data.manage import write_tree
from sensorium.engine import checkpoint, loop, rundir
from sensorium.engine.order import Order

TANGLED: Mapping[str, Any] = {  # dropout, two stages, epochs that end within a step, steps skipped for one rank's sake
    **EACH_STEP,
    "train": {"micro_batches": 2},
    "data": {"length": 30, "explode_at": [5], "torn_at": [11]},
    "schedule": {"name": "cosine", "warmup_steps": 2},
}
PLAIN: Mapping[str, Any] = {**EACH_STEP, "model": {"dropout": 0.0}}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with forked_ranks() as program:
        yield program


def test_resumes_of_two_are_bit_for_bit(tmp_path: Path, ranks: Ranks) -> None:
    """Three resumes in one run: within an epoch, at the border of the stages, at the border of two epochs."""
    whole = before = tmp_path / "whole"
    noted = ranks.train(whole, "fragile in stages", TANGLED)
    assert 2 <= noted[0].steps[-1]["skipped"] <= 7
    for step in (3, 6, 10):
        after = tmp_path / f"resumed{step}"
        cut(before, after, step)
        again = ranks.train(after, "fragile in stages", TANGLED)
        assert_equal_runs(whole, after)
        for first, second in zip(noted, again, strict=True):
            assert second.steps == first.steps[step:]
        before = after
    files = state_of(before)
    assert [rank.steps for rank in ranks.train(before, "fragile in stages", TANGLED)] == [[], []]
    assert state_of(before) == files


@pytest.mark.parametrize("family", families.names())
def test_a_resume_of_two_is_bit_for_bit_for_every_family(tmp_path: Path, ranks: Ranks, family: str) -> None:
    changes = {"train": {"steps": 4}, "checkpoint": {"every_steps": 1, "keep": 50}, "evaluate": {"every_steps": 2}}
    assert [rank.error for rank in ranks.train(tmp_path / "whole", family, changes)] == [None, None]
    cut(tmp_path / "whole", tmp_path / "part", 2)
    ranks.train(tmp_path / "part", family, changes)
    assert_equal_runs(tmp_path / "whole", tmp_path / "part")


def test_two_share_steps_of_all_kinds_of_samples(tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows each, so that often one of them has pictures alone and the other sound alone; together they find the
    losses and gradients that one process finds. Without the match head, whose wrong pairs each draws for itself."""
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    shapes = readers.read("synthetic", options={"variants": 1})
    sets: dict[str, Any] = {"shapes": None}
    for form in ("coco", "clotho"):
        write_tree(shapes, tmp_path / form, form, copy=False)
        sets[form] = {"reader": form, "root": str(tmp_path / form)}
    changes = {
        "model": {"stages": {"unimodal": {"share": 0}}, "weights": {"match": 0.0}},
        "train": {"steps": 10, "batch_size": 4},
        "data": {"batches": "mixed", "sets": sets, "cache": str(tmp_path / "cache")},
        "checkpoint": {"every_steps": 1, "keep": 50},
        "evaluate": {"every_steps": 5},
    }
    noted = ranks.train(tmp_path / "whole", "interaction", changes)
    assert [(rank.error, len(rank.steps)) for rank in noted] == [(None, 10), (None, 10)]
    cut(tmp_path / "whole", tmp_path / "part", 8)
    ranks.train(tmp_path / "part", "interaction", changes)
    assert_equal_runs(tmp_path / "whole", tmp_path / "part")
    ranks.train(tmp_path / "alone", "interaction", changes, processes=1)
    joint, alone = (lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "alone"))
    assert any("align/text-audio" in line and "align/text-image" in line and "recon" in line for line in alone)
    for found, expected in zip(joint, alone, strict=True):
        if expected["kind"] == "train":
            numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
            assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=2e-3, abs=1e-6)


def test_each_rank_has_its_own_draws(tmp_path: Path, ranks: Ranks) -> None:
    noted = ranks.train(tmp_path / "run", "toy", {"train": {"micro_batches": 2}})
    seeds = [seen["seed"] for rank in noted for seen in rank.seen]
    assert len(set(seeds)) == len(seeds) == 12 * 2 * 2
    assert [seen["seed"] for seen in noted[1].seen] != [seen["seed"] for seen in noted[0].seen]


def samples(noted: list[Rank], micro_batches: int = 1) -> list[list[int]]:
    """The sample numbers of each step, in the order of the stream."""
    passes = len(noted[0].seen)
    return [
        [i for micro in range(first, first + micro_batches) for rank in noted for i in rank.seen[micro]["index"]]
        for first in range(0, passes, micro_batches)
    ]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_and_says_so(tmp_path: Path, ranks: Ranks, before: int, after: int) -> None:
    """Without dropout the runs differ by float32 rounding alone: 6e-8 of a gradient, which AdamW's division by its
    running norm can enlarge. Measured over six seeds, after six steps: at most 7e-8 of the loss; allowed: 1e-6."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    changes = {**PLAIN, "train": {"micro_batches": 2}}
    first = samples(ranks.train(whole, "toy", changes, processes=before), 2)
    cut(whole, part, 6)
    second = samples(ranks.train(part, "toy", changes, processes=after), 2)
    stream = Order(20, 0)
    assert first == [[stream.sample(position) for position in range(8 * step, 8 * step + 8)] for step in range(12)]
    assert second == first[6:]
    one, other = (lines(run / "metrics.jsonl") for run in (whole, part))
    assert [line["kind"] for line in one] == [line["kind"] for line in other]
    for a, b in zip(one, other, strict=True):
        if a["kind"] == "train":
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
    said = (part / "train.log").read_text()
    assert f"Processes: {before} until now, {after} from here: the same samples at each step, but floating" in said
    states = [rundir.read_json(checkpoint.folder_of(part, step) / checkpoint.STATE) for step in (6, 7)]
    assert [state["processes"] for state in states] == [before, after]


def test_the_same_number_of_processes_says_nothing(tmp_path: Path) -> None:
    """Negative twin."""
    loop.train(TOY, toy_config(PLAIN), tmp_path / "whole", quiet=True)
    cut(tmp_path / "whole", tmp_path / "part", 6)
    loop.train(TOY, toy_config(PLAIN), tmp_path / "part", resume=True, quiet=True)
    said = (tmp_path / "part/train.log").read_text()
    assert "Resumed at step 6" in said
    assert "Processes:" not in said


def samples_of(rank: int, step: int) -> list[int]:
    """What one of two processes sees in a step of eight rows, of data so long that no sample comes twice."""
    stream, first = Order(200, 0), 8 * step + 4 * rank
    return [stream.sample(position) for position in range(first, first + 4)]


@pytest.mark.parametrize("what", ["explode_at", "nan_at", "steep_at", "torn_at"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_finite_on_one_rank_is_skipped_by_both(tmp_path: Path, ranks: Ranks, what: str, rank: int) -> None:
    """The third step: an infinite or no loss, an infinite or no gradient."""
    data = {"length": 200, what: samples_of(rank, 2)[-1:]}
    changes = {"train": {"steps": 4, "micro_batches": 2}, "data": data, "checkpoint": EACH_STEP["checkpoint"]}
    noted = ranks.train(tmp_path / "run", "fragile", changes)
    for one in noted:
        assert one.error is None
        assert [step["skipped"] for step in one.steps] == [0, 0, 1, 1]
        assert [step["in_a_row"] for step in one.steps] == [0, 0, 1, 0]
    assert noted[0].steps[2]["digest"] == noted[1].steps[2]["digest"]  # buffers, too: those of the first process
    assert noted[0].steps[3]["digest"] != noted[1].steps[3]["digest"]  # negative twin: each has its own elsewhere
    assert_left_as_it_was(tmp_path / "run", 3)


def test_both_give_up_at_the_same_step_also_when_resumed(tmp_path: Path, ranks: Ranks) -> None:
    """Three steps in a row, each for the second rank's sake."""
    data = {"length": 200, "torn_at": [samples_of(1, step)[0] for step in (3, 4, 5)]}
    changes = {**EACH_STEP, "data": data, "guard": {"max_skipped": 3}}
    noted = ranks.train(tmp_path / "run", "fragile", changes)
    shutil.rmtree(checkpoint.folder_of(tmp_path / "run", 5))
    again = ranks.train(tmp_path / "run", "fragile", changes)
    last = f"Last good checkpoint: {checkpoint.folder_of(tmp_path / 'run', 5)}"
    for one in (*noted, *again):
        assert one.error is not None
        assert one.error.startswith(f"step 6: the gradient is not finite, 3 steps in a row; stopped. {last}")
    assert [len(one.steps) for one in (*noted, *again)] == [5, 5, 1, 1]


def test_a_scale_that_overflows_is_lowered_on_both(tmp_path: Path, ranks: Ranks) -> None:
    changes = {**EACH_STEP, **STEEP, "guard": {"max_skipped": 20}}
    noted = ranks.train(tmp_path / "run", "toy", changes, scale=2.0**127)
    counts = [step["skipped"] for step in noted[0].steps]
    scales = [step["scale"] for step in noted[0].steps]
    assert [(step["skipped"], step["scale"]) for step in noted[1].steps] == list(zip(counts, scales, strict=True))
    assert scales == expected_scales(2.0**127, counts)
    skipped = [step for step, (before, now) in enumerate(itertools.pairwise([0, *counts]), start=1) if before < now]
    assert skipped[:2] == [1, 2]
    assert len(skipped) < 8
    for step in skipped[1:]:
        assert_left_as_it_was(tmp_path / "run", step)


def test_what_has_no_gradient_ends_a_run_where_all_must_have_one(tmp_path: Path, ranks: Ranks) -> None:
    """`video_retrieval` says so of itself: a part that is silently dead is found by two processes, too."""
    assert families.load("video_retrieval").whole_gradient
    assert [rank.error for rank in ranks.train(tmp_path / "idle", "idle", {})] == [None, None]
    found = ranks.train(tmp_path / "forbidden", "idle and forbidden", {})
    assert all("did not receive grad" in (rank.error or "") or "reduction" in (rank.error or "") for rank in found)
