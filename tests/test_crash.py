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


def test_killed_at_every_file_operation_of_a_save(tmp_path: Path) -> None:
    """A child kills itself before call n of fsync or rename within a save, for all n."""
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import torch
        from sensorium.engine import checkpoint
        run, fatal, calls = Path(sys.argv[1]), int(sys.argv[2]), 0
        def content(step):
            return checkpoint.Content({"w": torch.full((4,), float(step))}, {"w/exp": torch.ones(4)}, {"step": step})
        checkpoint.save(run, "toy", 1, content(1))
        checkpoint.save(run, "toy", 2, content(2))
        def deadly(function):
            def wrapped(*arguments):
                global calls
                calls += 1
                if calls == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)
            return wrapped
        os.fsync, os.rename, os.replace = deadly(os.fsync), deadly(os.rename), deadly(os.replace)
        checkpoint.save(run, "toy", 3, content(3))
        checkpoint.prune(run, 2, None, 3)
        print(calls)
        """
    )
    whole = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "all"), "0"], capture_output=True, text=True, check=True
    )
    calls = int(whole.stdout)
    assert calls >= 8
    for fatal in range(1, calls + 1):
        run = tmp_path / str(fatal)
        done = subprocess.run([sys.executable, "-c", program, str(run), str(fatal)], check=False)
        assert done.returncode == -signal.SIGKILL
        _, content = next(checkpoint.newest(run, "toy"))
        assert not isinstance(content, str)
        step = content.state["step"]
        assert step in (2, 3)
        assert content.weights["w"].tolist() == [float(step)] * 4
        checkpoint.save(run, "toy", 4, content)
        assert not list((run / "checkpoints").glob(".*"))


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
