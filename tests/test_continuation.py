"""Going on from a ``.pt`` file: exactly, as a branch, or with the weights alone; and nothing is ever lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, lines, toy_config
from test_resume import assert_equal_runs

from sensorium.engine import checkpoint, continuation, loop, portable, rundir
from sensorium.engine.continuation import Start, continue_from
from sensorium.engine.listener import Saved
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, DataError

OLD, NEW = frozenset({"step_00000005", "step_00000010"}), frozenset({"step_00000005"})
# Twenty samples, five steps an epoch; the learning rate lets the loss of each epoch be better than the last.
EPOCHS: dict[str, Any] = {"train": {"epochs": 2, "batch_size": 4}, "checkpoint": {"keep": 2}}


@dataclass(frozen=True)
class Files:
    """One file a checkpoint, and the last one, as guides have them."""

    folder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.folder / "best.pt", self.folder / "last.pt")

    def write(self, saved: Saved) -> None:
        for path in (*self.paths[0 if saved.better else 1 :], self.folder / f"step_{saved.step}.pt"):
            portable.write_pt(saved, path)


class Quiet:
    """A listener that only writes the files."""

    def __init__(self, folder: Path) -> None:
        self.files = Files(folder)

    def begun(self, config: RunConfig, sources: Any, device: torch.device, precision: str) -> None:
        pass

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        pass

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        pass

    def saved(self, saved: Saved) -> None:
        self.files.write(saved)


def config(**changes: Any) -> RunConfig:
    """Two epochs, or what ``changes`` says of ``train``."""
    return toy_config({**EPOCHS, "train": {**EPOCHS["train"], **changes}})


def train(start: Start) -> None:
    listener = Quiet(start.run.parent)
    continuation.train(TOY, start, listener, listener.files)


def anew(folder: Path, **changes: Any) -> Path:
    train(Start(config(**changes), folder / "run"))
    return folder / "run"


def go_on(path: Path, changes: Mapping[str, Any] | None = None, run: Path | None = None) -> Start:
    start = continue_from(TOY, path, changes or {}, run)
    assert start.done is None
    train(start)
    return start


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return anew(tmp_path / "whole")


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return anew(tmp_path / "part", epochs=1)


def test_in_place_is_exact(whole: Path, part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}})
    assert f"Continuing {part} exactly at step 5 (epoch 1)" in capsys.readouterr().out
    assert_equal_runs(whole, part)
    assert not rundir.asides(part)
    assert rundir.stored_config(part)["train"]["epochs"] == 2  # the next one goes on from there


def test_another_learning_rate_is_another_run_and_said(
    whole: Path, part: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative twin."""
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}, "optim": {"lr": 0.005}})
    assert "Not bit-exact from here: learning rate 0.01, now 0.005" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        assert_equal_runs(whole, part)


def test_a_moved_end_of_a_schedule_is_said(tmp_path: Path) -> None:
    cosine = toy_config({**EPOCHS, "schedule": {"name": "cosine"}})
    train(Start(cosine, tmp_path / "run"))
    start = continue_from(TOY, tmp_path / "last.pt", {"train": {"epochs": 3}})
    assert start.notes == ("Not bit-exact from here: the cosine schedule ends elsewhere",)


def test_an_earlier_point_is_a_branch(whole: Path, part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}})
    before = {path: path.read_bytes() for path in part.rglob("*") if path.is_file() and path.name != ".lock"}
    best = (part.parent / "best.pt").read_bytes()
    go_on(part.parent / "step_5.pt", {"train": {"epochs": 2}})
    said = capsys.readouterr().out
    aside = part.with_name("run.1")
    assert (
        f"Continuing {part} exactly at step 5 (epoch 1), as a branch in {part}; what was there is kept as {aside}"
        in said
    )
    assert_equal_runs(whole, part)
    assert {aside / path.relative_to(part): data for path, data in before.items()}.items() <= {
        path: path.read_bytes() for path in aside.rglob("*") if path.is_file()
    }.items()
    assert (aside / "best.pt").read_bytes() == best


def test_in_another_folder_the_run_is_copied(whole: Path, part: Path, tmp_path: Path) -> None:
    before = checkpoint.complete(part)[0]
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}}, tmp_path / "new" / "run")
    assert_equal_runs(whole, tmp_path / "new/run")
    assert checkpoint.complete(part)[0] == before
    names = [path.name for path in (tmp_path / "new").iterdir()]
    assert sorted(names) == ["best.pt", "last.pt", "run", "step_10.pt", "step_5.pt"]


def test_a_branch_takes_the_best_so_far_with_it(part: Path) -> None:
    """The run gets worse after its first epoch: the branch from its end must still know the best."""
    worse = {"train": {"epochs": 2}, "optim": {"lr": 9.0}}
    go_on(part.parent / "last.pt", worse)
    state = checkpoint.load(checkpoint.folder_of(part, 10), "toy").state
    assert state["best"]["step"] == 5
    run = part.parents[1] / "new/run"
    go_on(part.parent / "last.pt", {"train": {"epochs": 3}}, run)
    assert checkpoint.folder_of(run, 5).is_dir()
    assert portable.read_pt(run.parent / "best.pt").head.step == 5
    assert rundir.read_json(run / "summary.json")["best"]["step"] == 5


def test_a_best_that_is_gone_is_chosen_anew(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}, "optim": {"lr": 9.0}})
    shutil.rmtree(checkpoint.folder_of(part, 5))
    go_on(part.parent / "last.pt", {"train": {"epochs": 3}})
    assert "The best checkpoint so far, of step 5, is gone: best is chosen anew" in capsys.readouterr().out
    assert rundir.read_json(part / "summary.json")["best"]["step"] == 15


def test_what_is_done_is_said(part: Path) -> None:
    def done(changes: Mapping[str, Any]) -> str | None:
        return continue_from(TOY, part.parent / "last.pt", changes).done

    assert done({}) == "1 of 1 epochs are done; give --epochs 2 to go on"
    assert done({"train": {"epochs": 0.5}}) == "1 of 0.5 epochs are done; give --epochs 2 to go on"
    assert done({"train": {"epochs": 0.4}}) == "1 of 0.4 epochs are done; give --epochs 2 to go on"
    assert done({"train": {"steps": 5}}) == "5 of 5 steps are done; give --set train.steps=10 to go on"
    assert done({"train": {"epochs": 2}}) is None


def test_what_is_advised_leads_on_also_within_the_first_epoch(tmp_path: Path) -> None:
    """A step of four of twenty samples: 0.2 epochs."""
    few = toy_config({**EPOCHS, "train": {"epochs": 0.6, "batch_size": 4}})
    loop.train(TOY, few, tmp_path / "run", quiet=True, listener=Quiet(tmp_path))
    done = [continue_from(TOY, tmp_path / "step_3.pt", {"train": {"epochs": asked}}).done for asked in (0.6, 0.5, 0.2)]
    assert done == [
        "0.6 of 0.6 epochs are done; give --epochs 1.2 to go on",
        "0.5 of 0.5 epochs are done; give --epochs 1 to go on",
        "0.6 of 0.2 epochs are done; give --epochs 1.2 to go on",
    ]


def test_a_run_killed_before_its_evaluation_is_finished(part: Path) -> None:
    (part / "summary.json").unlink()
    shutil.rmtree(part / "evaluation")
    go_on(part.parent / "last.pt")
    assert (part / "evaluation/test.json").is_file()


def test_a_longer_run_killed_before_its_evaluation_is_finished(part: Path) -> None:
    """The summary of the shorter run is there, but does not count."""
    summary = (part / "summary.json").read_bytes()
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}})
    (part / "summary.json").write_bytes(summary)
    go_on(part.parent / "last.pt")
    assert rundir.read_json(part / "summary.json")["steps"] == 10


@pytest.mark.parametrize("damage", [False, True])
def test_without_native_checkpoint_only_the_weights_are_used(
    part: Path, damage: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = portable.read_pt(part.parent / "last.pt").weights
    native = checkpoint.folder_of(part, 5)
    if damage:
        (native / checkpoint.OPTIMIZER).write_bytes(b"x" * (native / checkpoint.OPTIMIZER).stat().st_size)
    else:
        shutil.rmtree(native)
    start = continue_from(TOY, part.parent / "last.pt", {"train": {"epochs": 2}, "optim": {"lr": 1e-9}})
    assert start.config.train.warm_start == str(part.parent / "last.pt")
    assert start.run == part
    assert start.point is None
    (part.parent / "last.pt").rename(part.parent / "kept.pt")
    train(continue_from(TOY, part.parent / "kept.pt", {"train": {"epochs": 2}, "optim": {"lr": 1e-9}}))
    said = capsys.readouterr().out
    reason = "optimizer.safetensors is damaged" if damage else "is gone"
    assert f"The native checkpoint of {part.parent / 'kept.pt'} " in said
    assert reason in said
    assert f"Weights of {part.parent / 'kept.pt'}; optimizer and position start anew" in said
    assert [line["step"] for line in lines(part / "metrics.jsonl") if line["kind"] == "train"] == list(range(1, 11))
    now = portable.read_pt(part.parent / "last.pt").weights
    assert all(torch.allclose(now[name], weights[name], atol=1e-6) for name in weights if name != "seen")
    assert part.with_name("run.1").is_dir()


def test_every_forbidden_change_is_listed(part: Path) -> None:
    changes = {"train": {"batch_size": 8, "epochs": 3}, "model": {"width": 9}, "optim": {"lr": 0.5}}
    with pytest.raises(ConfigError) as caught:
        continue_from(TOY, part.parent / "last.pt", changes)
    said = str(caught.value)
    assert "model.width: 8 in the run, 9 asked for" in said
    assert "train.batch_size: 4 in the run, 8 asked for" in said
    assert "train.epochs:" not in said
    assert f"train.warm_start={part.parent / 'last.pt'}" in said


def test_a_second_run_keeps_the_first(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = (part.parent / "best.pt").read_bytes()
    anew(part.parent, epochs=1)
    aside = part.with_name("run.1")
    assert f"The earlier run is kept as {aside}" in capsys.readouterr().out
    assert (aside / "best.pt").read_bytes() == best
    assert portable.find_native(portable.read_pt(aside / "best.pt")) == checkpoint.folder_of(aside, 5)


def test_a_run_that_cannot_begin_leaves_all_as_it_was(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def no_data(*_: object) -> Any:
        raise DataError("no data")

    before = {path: path.stat().st_ino for path in part.parent.rglob("*")}
    listener = Quiet(part.parent)
    for run in (part, part.parent / "far/away/run"):
        with pytest.raises(DataError):
            continuation.train(replace(TOY, sources=no_data), Start(config(), run), listener, listener.files)
    assert f"No new run was begun: {part.with_name('run.1')} is {part} again" in capsys.readouterr().out
    assert {path: path.stat().st_ino for path in part.parent.rglob("*")} == before


def test_a_run_in_use_is_not_set_aside(part: Path) -> None:
    with rundir.locked(part), pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
        anew(part.parent, epochs=1)
    with rundir.locked(part), pytest.raises(CheckpointError, match="in use"):
        go_on(part.parent / "last.pt", {"train": {"epochs": 2}})


CHILDREN = textwrap.dedent(
    """
    import os, shutil, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from helpers import TOY
    from sensorium.engine import continuation
    from test_continuation import Files
    origin, target, calls, fatal = Path(sys.argv[2]), Path(sys.argv[3]), 0, 0
    def deadly(function):
        def wrapped(*arguments):
            global calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return wrapped
    os.fsync, os.rename, os.replace = deadly(os.fsync), deadly(os.rename), deadly(os.replace)
    def branch(folder):
        start = continuation.continue_from(TOY, folder / "step_5.pt", {"train": {"epochs": 2}})
        continuation._stand_at(TOY, start.point, start.run, Files(folder))
    shutil.copytree(origin, target / "0")
    branch(target / "0")
    last, calls = calls, 0
    # The two great renames and the files after them one by one; every third of the copies before them.
    for fatal in sorted({*range(1, last - 20, 3), *range(max(1, last - 20), last + 1)}):
        shutil.copytree(origin, target / str(fatal))
        if not (child := os.fork()):
            branch(target / str(fatal))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    """
)


def test_killed_at_every_file_operation_of_a_branch(part: Path, tmp_path: Path) -> None:
    """A child kills itself before call n of fsync or rename within a branch; the same command then carries it out."""
    go_on(part.parent / "last.pt", {"train": {"epochs": 2}})
    target = tmp_path / "killed"
    words = [sys.executable, "-c", CHILDREN, str(Path(__file__).parent), str(part.parent), str(target)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    states = set()
    for folder in target.iterdir():
        runs = {run.name: frozenset(path.name for path in checkpoint.complete(run)[0]) for run in folder.glob("run*")}
        assert OLD in runs.values()
        assert runs.get("run", NEW) in (OLD, NEW)
        state = tuple(sorted(runs.items()))
        if state not in states:  # once for each state that a kill can leave
            go_on(folder / "step_5.pt", {"train": {"epochs": 2}})
            assert_equal_runs(part, folder / "run")
        states.add(state)
    assert len(states) == 3  # before, between the renames, after


def test_warm_start_is_strict(part: Path, tmp_path: Path) -> None:
    path = part.parent / "best.pt"

    def begin(name: str, changes: dict[str, Any]) -> None:
        loop.train(TOY, toy_config(changes), tmp_path / name, quiet=True)

    for number, origin in enumerate((path, checkpoint.folder_of(part, 5))):
        begin(f"good{number}", {"train": {"steps": 1, "warm_start": str(origin)}})
    one, two = (tmp_path / f"good{number}/metrics.jsonl" for number in (0, 1))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(CheckpointError, match=r"does not fit the model of this configuration, for example at 'body"):
        begin("wide", {"model": {"width": 9}, "train": {"steps": 1, "warm_start": str(path)}})
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be read"):
        begin("none", {"train": {"steps": 1, "warm_start": str(tmp_path / "none.pt")}})
    with pytest.raises(CheckpointError, match=r"is a run; train\.warm_start takes one checkpoint of it, .*step_"):
        begin("none", {"train": {"steps": 1, "warm_start": str(part)}})
    assert not (tmp_path / "none").exists()
    content = torch.load(path, weights_only=True)
    checksum = (
        portable.read_pt(path).head.model_copy(update={"family": "twin"}).checksum(content["config"], content["facts"])
    )
    torch.save({**content, "family": "twin", "checksum": checksum}, tmp_path / "twin.pt")
    with pytest.raises(CheckpointError, match="weights of family 'twin', not 'toy'"):
        begin("twin", {"train": {"steps": 1, "warm_start": str(tmp_path / "twin.pt")}})


def test_warm_start_counts_only_until_there_is_a_checkpoint(part: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "train": {"steps": 4, "warm_start": str(part.parent / "best.pt")},
        "checkpoint": {"every_steps": 1},
    }
    changes["evaluate"] = {"every_epochs": None}
    loop.train(TOY, toy_config(changes), tmp_path / "whole", quiet=True)
    loop.train(TOY, toy_config({**changes, "train": {**changes["train"], "steps": 2}}), tmp_path / "cut", quiet=True)
    (part.parent / "best.pt").unlink()
    loop.train(TOY, toy_config(changes), tmp_path / "cut", resume=True, quiet=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("data", [True, False])
def test_files_of_a_run_whose_folder_is_gone_are_kept(part: Path, data: bool) -> None:
    def no_data(*_: object) -> Any:
        raise DataError("no data")

    shutil.rmtree(part)
    before = {path.name: path.read_bytes() for path in part.parent.iterdir()}
    if data:
        anew(part.parent, epochs=1, batch_size=5)
        kept = {path.name: path.read_bytes() for path in part.with_name("run.1").glob("*.pt")}
        assert kept == {name: before[name] for name in ("best.pt", "last.pt")}
        assert (part.parent / "last.pt").read_bytes() != before["last.pt"]
        return
    listener = Quiet(part.parent)
    with pytest.raises(DataError):
        continuation.train(replace(TOY, sources=no_data), Start(config(), part), listener, listener.files)
    assert {path.name: path.read_bytes() for path in part.parent.iterdir()} == before
