"""What SIGTERM, SIGUSR1 and Ctrl-C do in each part of a run; a loader worker that dies; a clock that jumps."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import TOY, ToyData, ToySource, lines, toy_config, toy_sources
from test_resume import assert_equal_runs
from torch.utils.data import get_worker_info

from sensorium import errors
from sensorium.engine import checkpoint, finish, loop, ranks, signals
from sensorium.engine import evaluate as evaluation
from sensorium.engine.contract import Family, Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import Interrupted, RunError, Stopped

SPARSE = {"checkpoint": {"every_epochs": None, "keep": 50}, "track": {"tensorboard": False}}
ENDS = {signal.SIGTERM: Stopped, signal.SIGINT: Interrupted}
both_ends = pytest.mark.parametrize("number", ENDS)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def train(folder: Path, family: Family = TOY, *, resume: bool = False, **sections: Mapping[str, Any]) -> None:
    loop.train(family, toy_config({**SPARSE, **sections}), folder, resume=resume, quiet=True)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``before(module, name, when, do)``: run ``do`` before the function is called for the ``when``-th time."""

    def install(module: Any, name: str, when: int, do: Callable[[], object]) -> None:
        function, calls = getattr(module, name), []

        def wrapped(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == when:
                do()
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, wrapped)

    return install


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("signals") / "whole"
    train(folder)
    return folder


def steps(run: Path) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in checkpoint.complete(run)[0]]


@both_ends
def test_in_a_step(number: int, tmp_path: Path, whole: Path, before: Callable[..., None]) -> None:
    run = tmp_path / "run"
    before(loop, "_step", 5, send(number))
    with pytest.raises(ENDS[number], match=rf"^stopped at step 5; saved\. `sensorium resume {run}` continues$"):
        train(run)
    assert steps(run)[-1] == 5
    train(run, resume=True)
    assert_equal_runs(whole, run)


def test_in_the_last_step(tmp_path: Path, whole: Path, before: Callable[..., None]) -> None:
    run = tmp_path / "run"
    before(loop, "_step", 12, send(signal.SIGTERM))
    with pytest.raises(Stopped, match=r"^stopped at step 12; saved"):
        train(run)
    assert not (run / "summary.json").exists()
    train(run, resume=True)
    assert_equal_runs(whole, run)


def test_sigusr1_saves_and_goes_on(tmp_path: Path, whole: Path, before: Callable[..., None]) -> None:
    run = tmp_path / "run"
    before(loop, "_step", 6, send(signal.SIGUSR1))
    train(run)
    assert_equal_runs(whole, run)
    assert sorted(set(steps(run)) - set(steps(whole))) == [6]  # once, not from there on
    assert "Saved at step 6, as SIGUSR1 asked" in (run / "train.log").read_text()


def test_ctrl_c_twice(tmp_path: Path, whole: Path, before: Callable[..., None]) -> None:
    run = tmp_path / "run"

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.1 * signals.TWICE)
        os.kill(os.getpid(), signal.SIGINT)

    before(loop, "_step", 6, twice)
    with pytest.raises(Interrupted, match=r"^stopped at once; the last checkpoint stays\. `sensorium resume .* contin"):
        train(run, checkpoint={"every_steps": 3, "keep": 50})
    assert steps(run) == [3, 5]
    train(run, resume=True)
    assert_equal_runs(whole, run)


def test_ctrl_c_that_came_over_two_ways_is_one(tmp_path: Path, before: Callable[..., None]) -> None:
    before(loop, "_step", 6, lambda: [send(signal.SIGINT)() for _ in range(3)])
    with pytest.raises(Interrupted, match=r"^stopped at step 6; saved"):
        train(tmp_path / "run")


def test_sigterm_twice_still_waits(tmp_path: Path, before: Callable[..., None]) -> None:
    before(loop, "_step", 6, lambda: (send(signal.SIGTERM)(), time.sleep(1.1 * signals.TWICE), send(signal.SIGTERM)()))
    with pytest.raises(Stopped, match=r"^stopped at step 6; saved"):
        train(tmp_path / "run")


def preparing(do: Callable[[], object]) -> Family:
    """The toy family, whose data take their time."""

    def sources(config: RunConfig, host: Host) -> Sources:
        do()
        return toy_sources(config, host)

    return replace(TOY, sources=sources)


@both_ends
def test_while_data_are_prepared(number: int, tmp_path: Path) -> None:
    unreachable: list[int] = []
    family = preparing(lambda: (send(number)(), unreachable.append(1)))
    with pytest.raises(ENDS[number], match=r"^stopped before any step; nothing of the run is there yet, the same comm"):
        train(tmp_path / "run", family)
    assert not unreachable
    assert not (tmp_path / "run").exists()


def test_while_data_of_a_resumed_run_are_prepared(tmp_path: Path, whole: Path, before: Callable[..., None]) -> None:
    run = tmp_path / "run"
    before(loop, "_step", 5, send(signal.SIGTERM))
    with pytest.raises(Stopped):
        train(run)
    with pytest.raises(Stopped, match=rf"^stopped before any step; `sensorium resume {run}` continues$"):
        train(run, preparing(send(signal.SIGTERM)), resume=True)
    train(run, resume=True)
    assert_equal_runs(whole, run)


def test_sigusr1_while_data_are_prepared_saves_after_the_first_step(tmp_path: Path, whole: Path) -> None:
    train(tmp_path / "run", preparing(send(signal.SIGUSR1)))
    assert steps(tmp_path / "run")[0] == 1
    assert_equal_runs(whole, tmp_path / "run")


@both_ends
def test_a_validation_is_brought_to_its_end(
    number: int, tmp_path: Path, whole: Path, before: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    before(evaluation, "collect", 1, send(number))
    with pytest.raises(ENDS[number], match=r"^stopped at step 3; saved"):
        train(run)
    assert lines(run / "metrics.jsonl")[-1]["kind"] == "val"
    train(run, resume=True)
    assert_equal_runs(whole, run)


def judged_by(number: int) -> Family:
    """The toy family, whose evaluation is interrupted: the last one, on the test split."""
    made = TOY.evaluator(toy_config())

    class Evaluator:
        collect = made.collect

        def score(self, collected: Any, source: Any, task: Any, *, final: bool) -> Any:
            if final:
                os.kill(os.getpid(), number)
            return made.score(collected, source, task, final=final)

    return replace(TOY, evaluator=lambda config: Evaluator())


@both_ends
def test_in_the_last_evaluation(number: int, tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ENDS[number], match=r"^stopped after the last step; all is saved\. `sensorium .* with the"):
        train(run, judged_by(number))
    assert steps(run)[-1] == 12
    train(run, resume=True)
    assert_equal_runs(whole, run)


def test_sigusr1_in_the_last_evaluation_has_nothing_to_save(tmp_path: Path, whole: Path) -> None:
    train(tmp_path / "run", judged_by(signal.SIGUSR1))
    assert_equal_runs(whole, tmp_path / "run")
    assert steps(tmp_path / "run") == steps(whole)


@both_ends
def test_while_the_report_is_written(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    before(finish, "write_report", 1, send(number))
    with pytest.raises(ENDS[number], match=r"^stopped; the run is complete$"):
        train(run)
    assert (run / "report.html").exists()
    loop.train(TOY, toy_config(SPARSE), run, resume=True)
    assert "All 12 steps are done" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(Stopped, 0), (Interrupted, 130)])
def test_a_stop_is_shown_without_the_word_error(
    error: type[Stopped], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise error("stopped at step 5; saved")

    with pytest.raises(SystemExit) as left:
        errors.shown(stop)
    assert (left.value.code, *capsys.readouterr()) == (code, "", "stopped at step 5; saved\n")


def test_handlers_are_those_of_before_again(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    train(tmp_path / "run", train={"steps": 1})
    assert [signal.getsignal(number) for number in numbers] == handlers


def test_a_signal_to_all_processes_of_a_job(tmp_path: Path, whole: Path, before: Callable[..., None]) -> None:
    """A scheduler asks loader workers, too; the step that is finished needs them."""

    def all_of_them() -> None:
        workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid]
        assert len(workers) == 2
        everyone = " ".join(map(str, (*workers, os.getpid())))
        subprocess.run(["sh", "-c", f"kill -USR1 {everyone}; kill -TERM {everyone}"], check=True)
        time.sleep(0.2)  # were they to die of it, this would be found out here

    run = tmp_path / "run"
    before(loop, "_step", 5, all_of_them)
    with pytest.raises(Stopped, match=r"^stopped at step 5; saved"):
        train(run, loader={"workers": 2})
    train(run, resume=True)
    assert_equal_runs(whole, run)


class Deadly(ToySource):
    """Its sample 3 kills the loader worker that prepares it, as the system does for want of memory."""

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        if index == 3 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().example(index, seed)


def test_a_loader_worker_that_is_killed(tmp_path: Path) -> None:
    def sources(config: RunConfig, host: Host) -> Sources:
        assert isinstance(config.data, ToyData)
        return replace(toy_sources(config, host), train=Deadly(config.data, 0))

    run, still = tmp_path / "run", {"every_epochs": None}
    with pytest.raises(RunError) as raised:
        train(run, replace(TOY, sources=sources), loader={"workers": 1}, evaluate=still)
    first, _, rest = str(raised.value).partition("; want of memory is the usual reason, ")
    assert re.fullmatch(r"loader worker \d+ (was killed \(Killed\)|ended unexpectedly)", first)
    assert rest == f"fewer loader.workers need less; `sensorium resume {run}` continues"
    train(run, resume=True, evaluate=still)
    train(tmp_path / "whole", evaluate=still)
    assert_equal_runs(tmp_path / "whole", run)


def test_the_words_for_a_dead_worker() -> None:
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ...")
    noticed = RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")
    noticed.__cause__ = killed
    assert str(ranks.dead_worker(noticed, "")).startswith("loader worker 12 was killed (Bus); ")
    noticed.__cause__ = None
    assert str(ranks.dead_worker(noticed, "")).startswith("loader worker 12, 13 ended unexpectedly; ")
    assert ranks.dead_worker(RuntimeError("a bug"), "") is None


@pytest.mark.parametrize("jumps", [(86_400.0,), (-86_400.0,), (86_400.0, -2 * 86_400.0)], ids=["on", "back", "both"])
def test_a_clock_that_jumps(
    jumps: Sequence[float], tmp_path: Path, whole: Path, before: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run that is stopped later, and once more before it goes on."""
    run, now, ahead = tmp_path / "run", time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + sum(ahead))
    monkeypatch.setattr(time, "time_ns", lambda: int((now() + sum(ahead)) * 1e9))
    before(loop, "_step", 3, lambda: ahead.append(jumps[0]))
    before(loop, "_step", 8, send(signal.SIGTERM))
    before(loop, "_step", 9, send(signal.SIGTERM))
    with pytest.raises(Stopped):
        train(run, checkpoint={"every_steps": 2, "keep": 2})
    assert {6, 8} <= set(steps(run)) <= {3, 5, 6, 8}  # the newest two, and the best
    ahead.extend(jumps[1:])
    for number, folder in enumerate(sorted((run / "checkpoints").iterdir())):  # and their ages say the contrary
        os.utime(folder, (now() - 1000 * number,) * 2)
    with pytest.raises(Stopped):
        train(run, resume=True, checkpoint={"every_steps": 2, "keep": 2})
    assert {8, 9} <= set(steps(run)) <= {3, 5, 8, 9}
    train(run, resume=True, checkpoint={"every_steps": 2, "keep": 2})
    assert_equal_runs(whole, run)
