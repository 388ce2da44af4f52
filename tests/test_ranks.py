"""Several processes train as one: same order, same gradient, one writer; and when one of them leaves, all end well."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import TOY, lines, toy_config
from rank_group import Nursery, open_nursery
from test_resume import assert_equal_runs
from torch.distributed import TCPStore

from sensorium.engine import checkpoint, loop, ranks, rundir
from sensorium.errors import RunError

QUIET = {"tensorboard": False}
STILL = {"model": {"dropout": 0.0}, "train": {"steps": 6}, "checkpoint": {"every_steps": 2}, "track": QUIET}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with open_nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


def test_two_ranks_are_one(tmp_path: Path, nursery: Nursery) -> None:
    assert nursery.train(tmp_path / "two", STILL).codes() == [0, 0]
    loop.train(TOY, toy_config(STILL), tmp_path / "one", quiet=True)
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["kind"] for line in one] == [line["kind"] for line in two]
    for a, b in zip(one, two, strict=True):
        if a["kind"] == "train":
            # The sums are taken in another order: fp32 rounding, carried through six steps of AdamW.
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    longer = {**STILL, "train": {"steps": 8}}
    assert nursery.train(tmp_path / "two", longer, resume=True).codes() == [0, 0]
    assert nursery.train(tmp_path / "eight", longer).codes() == [0, 0]
    resumed, whole = (
        [line for line in lines(tmp_path / name / "metrics.jsonl") if line["kind"] == "train"]
        for name in ("two", "eight")
    )
    assert resumed == whole


def test_bad_samples_are_counted_over_all_ranks(tmp_path: Path, nursery: Nursery) -> None:
    bad = {"train": {"steps": 5}, "data": {"broken": [1, 2, 3, 4]}, "evaluate": {"every_epochs": None, "test": False}}
    skipping = {**bad, "loader": {"bad_samples": "skip", "max_bad": 99}, "track": QUIET}
    assert nursery.train(tmp_path / "two", skipping).codes() == [0, 0]
    loop.train(TOY, toy_config(skipping), tmp_path / "one", quiet=True)
    one, two = (rundir.read_json(tmp_path / name / "summary.json")["replaced_samples"] for name in ("one", "two"))
    assert one == two > 4


# Each scene is a run of two or three ranks to which something happens. They are played side by side: most of their
# time is spent waiting.

EACH = {"train": {"steps": 12, "timeout_minutes": 5.0}, "checkpoint": {"every_steps": 2, "keep": 50}, "track": QUIET}
SOON = {**EACH["train"], "timeout_minutes": 0.1}  # as long as a busy machine may need for a step, and more
IMPATIENT = {**EACH, "train": SOON}
CONTINUES = "; `sensorium resume {run}` continues"
GONE = "error: rank {rank} of {world} is gone: killed, hung or cut off" + CONTINUES
ANYTHING = None


@dataclass(frozen=True)
class Scene:
    """``first``: what the ranks run before they train, see ``Nursery.train``. ``codes``, ``said``: how each rank ends,
    what it prints. ``goes_on``: the next start must give the same run as one that nothing happened to."""

    first: str
    codes: tuple[int, ...]
    said: tuple[str | None, ...]
    config: Mapping[str, Any] = field(default_factory=lambda: EACH)
    goes_on: bool = False


def gone(rank: int, world: int = 2) -> str:
    return GONE.replace("{rank}", str(rank)).replace("{world}", str(world))


def both(text: str) -> tuple[str, str]:
    return text, text


FULL = "def full(): raise errors.CheckpointError('no space')\n"
BUG = "def bug(): 1 / 0\n"
FOUND = "the traceback is in its own output"
MET = "error: rank {rank} of 2 met a bug (ZeroDivisionError: division by zero); its own output has the traceback"
IN_A_SAVE = "if rank == 0: before(checkpoint, 'save', 3, lambda: before(os, 'fsync', 3, send(9)))"
LATE = "error: rank 0 of 2 kept the others waiting for more than 0.1 minutes (train.timeout_minutes)" + CONTINUES
AT_4 = "stopped at step 4; saved. `sensorium resume {run}` continues"
PREPARING = """
def sources(config, host):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return toy_sources(config, host)
family = replace(TOY, sources=sources)
"""
OTHER_DATA = """
def sources(config, host):
    found = toy_sources(config, host)
    found.val.fingerprint += f"-{min(rank, 1)}"
    return found
family = replace(TOY, sources=sources)
"""
TWICE = "def twice(): send(2)(), time.sleep(0.6), send(2)()\nbefore(loop, '_step', 4, twice)"
STEP_4 = "before(loop, '_step', 4, {})"
SCENES = {
    # The slow ones first.
    "rank 1 hangs": Scene(
        f"if rank == 1: {STEP_4.format('send(19)')}", (1, -9), (gone(1), ANYTHING), IMPATIENT, goes_on=True
    ),
    "rank 0 hangs": Scene(f"if rank == 0: {STEP_4.format('send(19)')}", (-9, 1), (ANYTHING, gone(0)), IMPATIENT),
    "rank 0 is late": Scene(f"if rank == 0: {STEP_4.format('lambda: time.sleep(9)')}", (1, 1), both(LATE), IMPATIENT),
    "rank 1 never comes": Scene("if rank == 1: os._exit(0)", (1, 0), (ANYTHING, ""), IMPATIENT),
    "rank 1 killed in a step": Scene(
        f"if rank == 1: {STEP_4.format('send(9)')}",
        (1, -9),
        (gone(1), ""),
        {**EACH, "loader": {"workers": 1}},
        goes_on=True,
    ),
    "rank 0 killed in a step": Scene(f"if rank == 0: {STEP_4.format('send(9)')}", (-9, 1), ("", gone(0)), goes_on=True),
    "rank 0 killed in a save": Scene(IN_A_SAVE, (-9, 1), ("", gone(0)), goes_on=True),
    "rank 1 killed while rank 0 saves": Scene(
        "if rank == 1: before(Backend, 'barrier', 3, send(9))", (1, -9), (gone(1), ""), goes_on=True
    ),
    "rank 2 killed, the others wait for each other": Scene(
        f"if rank == 2: {STEP_4.format('send(9)')}",
        (1, 1, -9),
        (gone(2, 3), gone(2, 3), ""),
        {**EACH, "train": {**EACH["train"], "batch_size": 9}},
    ),
    "rank 0 stops with an error in a save": Scene(
        f"{FULL}if rank == 0: before(checkpoint, 'save', 2, full)",
        (2, 2),
        ("error: no space", "error: rank 0 of 2: no space"),
        goes_on=True,
    ),
    "rank 1 stops with an error": Scene(
        f"{FULL}if rank == 1: {STEP_4.format('full')}",
        (2, 2),
        ("error: rank 1 of 2: no space", "error: no space"),
    ),
    "rank 0 meets a bug": Scene(
        f"{BUG}if rank == 0: {STEP_4.format('bug')}", (1, 1), ("Traceback", MET.replace("{rank}", "0"))
    ),
    "rank 1 meets a bug": Scene(
        f"{BUG}if rank == 1: {STEP_4.format('bug')}", (1, 1), (MET.replace("{rank}", "1"), "Traceback")
    ),
    "nobody is missing": Scene(
        "def broken(): raise RuntimeError('[gloo/pair.cc:1] made up')\n" + STEP_4.format("broken"),
        (1, 1),
        ("Traceback", "Traceback"),
    ),
    "SIGTERM to all": Scene(STEP_4.format("send(15)"), (0, 0), both(AT_4)),
    "SIGTERM to one": Scene(f"if rank == 1: {STEP_4.format('send(15)')}", (0, 0), both(AT_4), goes_on=True),
    "Ctrl-C to one": Scene(f"if rank == 1: {STEP_4.format('send(2)')}", (130, 130), both(AT_4)),
    "Ctrl-C twice": Scene(
        TWICE, (130, 130), both("stopped at once; the last checkpoint stays. `sensorium resume {run}` continues")
    ),
    "Ctrl-C to one while data are prepared": Scene(
        PREPARING,
        (130, 130),
        both("stopped before any step; nothing of the run is there yet, the same command begins again"),
    ),
    "SIGUSR1 to one": Scene("if rank == 1: before(loop, '_step', 7, send(10))", (0, 0), both(""), goes_on=True),
    "other configurations": Scene(
        "if rank: config = {**config, 'optim': {'lr': 0.5}, 'seed': rank}",
        (2, 2, 2),
        (
            "error: the processes do not agree on the configuration (start all with the same command): ranks 1, 2 of 3 "
            "differ from rank 0: on rank 1 optim.lr is 0.5, on rank 0 0.01; seed is 1, on rank 0 0",
        )
        * 3,
        {**EACH, "train": {**EACH["train"], "batch_size": 9}},
    ),
    "other data": Scene(
        OTHER_DATA,
        (2, 2),
        both(
            "error: the processes do not agree on the data: rank 1 of 2 differs from rank 0: on rank 1 val is "
            "'toy-20-1000-1', on rank 0 'toy-20-1000-0'"
        ),
    ),
}


@dataclass(frozen=True)
class Played:
    run: Path
    codes: list[int]
    said: list[str]


@pytest.fixture(scope="module")
def played(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """All scenes, three at a time besides those that take long."""
    folder = tmp_path_factory.mktemp("scenes")
    runs = {name: folder / name.replace(" ", "-").replace(",", "") for name in SCENES}
    groups = {}
    for number, (name, scene) in enumerate(SCENES.items()):
        if number >= 7:
            list(groups.values())[number - 3].codes()
        groups[name] = nursery.train(runs[name], scene.config, scene.first, world=len(scene.codes))
    for name, scene in SCENES.items():  # a rank that hangs outlives the others
        if "hangs" in name:
            hung = scene.codes.index(-9)
            nursery.wait_for(groups[name].pids[1 - hung])
            groups[name].send(signal.SIGKILL, hung)
    return {n: Played(runs[n], g.codes(), [g.said(r) for r in range(len(g.pids))]) for n, g in groups.items()}


@pytest.mark.parametrize("name", SCENES)
def test_how_all_end_when_something_happens_to_one(name: str, played: Mapping[str, Played]) -> None:
    scene, what = SCENES[name], played[name]
    assert tuple(what.codes) == scene.codes, what.said
    for expected, said in zip(scene.said, what.said, strict=True):
        if expected == "Traceback":
            assert said.startswith("Traceback (most recent call last)")
            assert said.count("Traceback") == 1
        elif expected is not ANYTHING:
            assert said == expected.replace("{run}", str(what.run))


@pytest.fixture(scope="module")
def resumed(nursery: Nursery, played: Mapping[str, Played]) -> Path:
    """Starts every run of two ranks again, two at a time; the run that nothing happened to."""
    whole = next(iter(played.values())).run.with_name("whole")
    groups = [nursery.train(whole, EACH)]
    for name, what in played.items():
        if SCENES[name].goes_on and not (what.run / "summary.json").exists():
            groups.append(nursery.train(what.run, SCENES[name].config, resume=True, world=len(what.codes)))
            groups[-2].codes()
    for group in groups:
        assert set(group.codes()) == {0}, group.said(0)
    return whole


@pytest.mark.parametrize("name", [name for name, scene in SCENES.items() if scene.goes_on])
def test_the_next_start_recovers(name: str, played: Mapping[str, Played], resumed: Path) -> None:
    assert_equal_runs(resumed, played[name].run)


def test_the_scene_of_a_kill_in_a_save_was_one(tmp_path: Path, nursery: Nursery) -> None:
    nursery.train(tmp_path / "run", EACH, IN_A_SAVE).codes()
    good, _ = checkpoint.complete(tmp_path / "run")
    left = [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path not in good]
    assert left == [".step_00000004.tmp"]


def test_the_save_that_sigusr1_asked_for(played: Mapping[str, Played]) -> None:
    assert "Saved at step 7, as SIGUSR1 asked" in (played["SIGUSR1 to one"].run / "train.log").read_text()


def test_a_rank_that_never_comes(played: Mapping[str, Played]) -> None:
    last = played["rank 1 never comes"].said[0].splitlines()[-1]
    assert last.startswith(
        "error: the 2 processes that the launcher asked for did not find each other within 0.1 minut"
    )


def test_ranks_that_stand_elsewhere(tmp_path: Path, nursery: Nursery) -> None:
    """One of them sees another folder, as nodes do that share none; nothing is left of the run. Twin: ``resumed``."""
    run = tmp_path / "run"
    group = nursery.train(run, STILL, f"if rank == 1: run = Path({str(tmp_path)!r}) / 'elsewhere'")
    assert group.codes() == [2, 2]
    told = r"error: the processes do not agree on the run folder \(all must see one\): rank 1 of 2 differs from rank 0"
    whose = r": on rank 1 its lock is None, on rank 0 \d+"
    assert all(re.fullmatch(told + whose, group.said(rank)) for rank in (0, 1))
    assert not run.exists()


def test_loader_workers_do_not_outlive_a_trainer_that_is_killed(tmp_path: Path, nursery: Nursery) -> None:
    """Their copies of its connections would keep the other ranks waiting; torch's own look for it takes 5 s."""
    told = tmp_path / "workers"
    die = f"""
import multiprocessing
def die():
    Path({str(told)!r}).write_text(" ".join(str(worker.pid) for worker in multiprocessing.active_children()))
    send(9)()
before(loop, "_step", 2, die)
"""
    group = nursery.train(tmp_path / "run", {**EACH, "loader": {"workers": 2}}, die, world=1)
    assert group.codes() == [-9]
    workers = [Path("/proc", pid) for pid in told.read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 2.5
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_store_whose_host_is_gone_is_left_alone() -> None:
    """Torch would print a page for each look at it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        assert not ranks._closed(ours)
        theirs.close()
        assert ranks._closed(ours)


def test_what_differs_is_named() -> None:
    same = {"a": 1, "b": {"c": 2}}
    assert ranks.disagreement([same, dict(same), dict(same)]) is None
    many = {"a": 2, "b": 3, "c": 4, "d": 5}
    assert ranks.disagreement([same, same, many, many]) == (
        "ranks 2, 3 of 4 differ from rank 0: on rank 2 a is 2, on rank 0 1; b is 3, on rank 0 {'c': 2}; "
        "c is 4, on rank 0 None; and 1 more"
    )


def test_the_first_process_waits_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the store of a launcher, as `spread` and torchrun have one."""
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(host.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {**launched, "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "_meetings", itertools.repeat(0))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RunError, match=r"did not find each other within 0.01 minutes \(1 came\)"), ranks.met(0.01):
        pytest.fail("the other one has not come")
    monkeypatch.setattr(ranks, "_meetings", itertools.repeat(1))
    monkeypatch.setenv("RANK", "1")
    with ranks.met(0.01):
        pass  # it waits for nobody
    monkeypatch.setenv("RANK", "0")
    with ranks.met(0.01):
        pass
    for name, value in (("WORLD_SIZE", "1"), ("MASTER_PORT", "")):
        monkeypatch.setenv(name, value)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with ranks.met(0.0):
            pass
