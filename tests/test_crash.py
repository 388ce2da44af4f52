"""``kill -9`` at any moment loses no more than the steps since the last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers import TOY, toy_config
from test_resume import assert_equal_runs

from sensorium.engine import checkpoint, loop, rundir
from sensorium.errors import CheckpointError, ConfigError, DataError

CHILD = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from helpers import TOY, toy_config
    from sensorium.engine import loop
    config = toy_config({"train": {"steps": 400}, "checkpoint": {"every_steps": 5}})
    loop.train(TOY, config, Path(sys.argv[2]), quiet=True)
    """
)
CONFIG = {"train": {"steps": 400}, "checkpoint": {"every_steps": 5}}


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    part = tmp_path / "part"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(Path(__file__).parent), str(part)]) as child:
        deadline = time.monotonic() + 60
        while not checkpoint.folder_of(part, 40).exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    loop.train(TOY, toy_config(CONFIG), part, resume=True, quiet=True)
    loop.train(TOY, toy_config(CONFIG), tmp_path / "whole", quiet=True)
    assert_equal_runs(tmp_path / "whole", part)


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    with rundir.locked(tmp_path / "run"), pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
        loop.train(TOY, toy_config(), tmp_path / "run", quiet=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    loop.train(TOY, toy_config(), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        loop.train(TOY, toy_config(), tmp_path / "run", quiet=True)


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data"), rundir.locked(tmp_path / "run"):
        raise DataError("no data")
    assert not (tmp_path / "run").exists()


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The child of the owner lives until its input ends, and is there when the owner is killed."""
    program = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from sensorium.engine import rundir
        with rundir.locked(Path(sys.argv[1])):
            if os.fork():
                os.wait()
            print("forked", flush=True)
            sys.stdin.read()
            os._exit(0)
        """
    )
    run = tmp_path / "run"
    command = [sys.executable, "-c", program, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "forked\n"
        with pytest.raises(CheckpointError, match=f"in use by process {owner.pid}"), rundir.locked(run):
            pass
        owner.kill()
        owner.wait()
        with rundir.locked(run):
            pass


def test_what_a_kill_left_goes_when_no_save_follows(tmp_path: Path) -> None:
    """As after a kill within the pruning of the last checkpoint."""
    run = tmp_path / "run"
    loop.train(TOY, toy_config(), run, quiet=True)
    left = checkpoint.folder_of(run, 12).with_name(".step_00000004.old")
    left.mkdir()
    (run / "summary.json").unlink()
    loop.train(TOY, toy_config(), run, resume=True, quiet=True)
    assert not left.exists()
    assert (run / "summary.json").exists()
