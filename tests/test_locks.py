"""One process group owns a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TOY, toy_config

from sensorium import cli, families
from sensorium.engine import loop, rundir
from sensorium.errors import ConfigError

Command = Callable[..., tuple[object, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code of a command line, and what it wrote to standard error."""

    def call(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["sensorium", *words])
        monkeypatch.setattr(families, "load", lambda name: TOY)
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, capsys.readouterr().err

    return call


def test_a_second_start_is_refused(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    in_use = (
        f"error: {run}: in use by process {os.getpid()} on {platform.node()}; wait for it or choose another folder\n"
    )
    with rundir.locked(run):
        assert command("train", "toy", "--run", str(run)) == (2, in_use)
    loop.train(TOY, toy_config(), run, quiet=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    with rundir.locked(run):
        assert command("resume", str(run), "train.steps=20") == (2, in_use)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert command("resume", str(run), "train.steps=14")[0] == 0


def test_what_a_dead_owner_left_is_taken_over(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("process 1 on elsewhere, and more that is longer than what replaces it " * 3)
    assert command("train", "toy", "--run", str(run), "train.steps=1") == (0, "")
    assert (run / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"run: this file system cannot lock files \(No locks available\); take a"):
        loop.train(TOY, toy_config(), tmp_path / "run", quiet=True)
