"""Several processes without a launcher: one run, one voice, no process left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from helpers import TOY, lines, toy_config

from sensorium.engine import checkpoint, launch, loop
from sensorium.errors import ConfigError, Interrupted, RunError, Stopped

FOLDER = Path(__file__).parent
# The command line with the toy family.
PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv.pop(1))
    from helpers import TOY
    from sensorium import cli, families
    families.load = lambda name: TOY
    cli.main()
    """
)
LONG = {"train": {"steps": 1_000_000}, "checkpoint": {"every_epochs": None}, "evaluate": {"every_epochs": None}}


def start(*words: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, which starts two others; PyTorch's own warnings are left out."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(FOLDER), *words, "train.processes=2", "track.tensorboard=false"],
        env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(of: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
        if int(fields[1]) == of:
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(processes: list[int]) -> bool:
    return not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def trains_after(run: Path, step: int) -> bool:
    return lines(run / "metrics.jsonl")[-1]["step"] > step


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    still = ["model.dropout=0", "train.steps=6", "checkpoint.every_steps=2"]
    with start("train", "toy", "--run", str(tmp_path / "two"), *still) as child:
        out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert out.splitlines()[0].startswith("Processes: 2, on the CPU, OMP_NUM_THREADS=")
    assert out.count("Device: cpu, 2 processes, fp32") == 1
    assert out.count("Report: ") == 1
    config = toy_config({"model": {"dropout": 0.0}, "train": {"steps": 6}, "checkpoint": {"every_steps": 2}})
    loop.train(TOY, config, tmp_path / "one", quiet=True)
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["kind"] for line in one] == [line["kind"] for line in two]
    for a, b in zip(one, two, strict=True):
        if a["kind"] == "train":
            # The sums are taken in another order: fp32 rounding, carried through six steps of AdamW.
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_a_sample_that_one_process_cannot_read(tmp_path: Path) -> None:
    """The other process fails only for want of the first one, and is not heard."""
    with start("train", "toy", "--run", str(tmp_path / "run"), "data.broken=[5]") as child:
        _, err = child.communicate(timeout=120)
    assert child.returncode == 2
    assert err == "error: toy sample 5: broken on purpose; mend or remove it, or set loader.bad_samples=skip\n"


def test_signals_reach_all(tmp_path: Path) -> None:
    """SIGUSR1 saves, also when it comes before a rank can hear it; SIGTERM saves and stops."""
    run = tmp_path / "run"
    words = ["train.steps=1000000", "checkpoint.every_epochs=null", "evaluate.every_epochs=null"]
    with start("train", "toy", "--run", str(run), *words) as child:
        wait_for(lambda: len(children(child.pid)) == 2)
        child.send_signal(signal.SIGUSR1)
        wait_for(lambda: bool(checkpoint.complete(run)[0]) or child.poll() is not None)
        ranks = children(child.pid)
        assert len(ranks) == 2
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert gone(ranks)
    step = int(err.removeprefix("stopped at step ").partition(";")[0])
    assert err == f"stopped at step {step}; saved. `sensorium resume {run}` continues\n"
    assert [folder.name for folder in checkpoint.complete(run)[0]] == ["step_00000001", f"step_{step:08}"]
    with start("resume", str(run)) as child:
        wait_for(lambda: trains_after(run, step) or child.poll() is not None)
        os.kill(children(child.pid)[1], signal.SIGKILL)
        _, err = child.communicate(timeout=60)
    memory = "(by hand, or by the system for want of memory)"
    told = rf"error: rank [01] of 2 processes was killed by SIGKILL {re.escape(memory)}; the others were stopped\n"
    assert (child.returncode, bool(re.fullmatch(told, err))) == (1, True), err
    longer = toy_config({**LONG, "train": {"steps": step + 2}})
    loop.train(TOY, longer, run, resume=True, quiet=True)
    assert checkpoint.folder_of(run, step).is_dir()
    assert checkpoint.folder_of(run, step + 2).is_dir()


# What follows tries the launcher alone, with processes that do not train.


def launched(program: str, count: int = 2) -> int:
    environment = {**os.environ, "WORLD_SIZE": str(count)}
    return launch._run(
        [sys.executable, "-c", f"import os, sys, time\nrank = os.environ['RANK']\n{program}"], environment, count
    )


def test_one_voice(capfd: pytest.CaptureFixture[str]) -> None:
    assert launched("print('out', rank)\nprint('warning', rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("out 0\n", "warning 0\n")


def test_the_last_words_of_a_process_that_went_on_are_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    assert launched("print('Traceback (most recent call last):\\n  logged only', file=sys.stderr)") == 0
    assert capfd.readouterr().err == "Traceback (most recent call last):\n  logged only\n"


@pytest.mark.parametrize("code", [1, 2, 130])
def test_what_all_say_is_said_once(code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert launched(f"print('error: too few\\n  1. stars', file=sys.stderr)\nsys.exit({code})", 3) == code
    assert capfd.readouterr().err == "error: too few\n  1. stars\n"


def test_a_bug_is_shown_with_the_process_that_met_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Rank 1 fails first, rank 0 for want of it."""
    program = "time.sleep(0.3 * (rank == '0'))\nraise ZeroDivisionError(f'in {rank}')"
    with pytest.raises(RunError, match=r"rank 1 of 2 processes ended with exit code 1; the others were stopped"):
        launched(program)
    err = capfd.readouterr().err
    assert (err.count("Traceback"), err.count("in 1"), err.count("in 0")) == (1, 1, 0)


def test_a_killed_process_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that waits for it for ever and does not mind SIGTERM."""
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    before = set(children(os.getpid()))  # other tests leave multiprocessing's own
    begun = time.monotonic()
    with pytest.raises(
        RunError, match=r"^rank 1 of 3 processes was killed by SIGKILL \(.*\); the others were stopped$"
    ):
        launched(deaf + "time.sleep(0.3)\nos.kill(os.getpid(), 9) if rank == '1' else time.sleep(100)", 3)
    assert time.monotonic() - begun < 50
    assert set(children(os.getpid())) <= before


def test_ctrl_c_reaches_each_process_once(capfd: pytest.CaptureFixture[str]) -> None:
    program = """
        import signal
        seen = []
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        print('ready', file=sys.stderr, flush=True)
        while not seen:
            time.sleep(0.02)
        time.sleep(0.2)
        print(f'error: stopped after {len(seen)}', file=sys.stderr)
        sys.exit(1)
    """
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert launched(textwrap.dedent(program)) == 1
    assert capfd.readouterr().err == "ready\nerror: stopped after 1\n"


def test_death_by_the_signal_that_was_handed_on() -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM; the last checkpoint"):
        launched("time.sleep(100)")


def test_ctrl_c_twice_ends_those_that_cannot_hear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    for seconds in (0.6, 0.9):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    deaf = "import signal\nfor number in (2, 15): signal.signal(number, signal.SIG_IGN)\n"
    with pytest.raises(Interrupted, match=r"^stopped at once; the last checkpoint"):
        launched(deaf + "time.sleep(100)")


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    program = f"""
        import sys
        from sensorium.engine import launch, signals
        from helpers import toy_config
        if launch.spread(toy_config({{"train": {{"processes": 2}}}}).train) is None:
            with signals.noted(insist=True) as stop:
                open({str(tmp_path)!r} + f"/{{__import__('os').environ['RANK']}}", "w")
                while not stop.received:
                    __import__("time").sleep(0.02)
    """
    words = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as child:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        ranks = children(child.pid)
        assert len(ranks) == 2
        child.kill()
    wait_for(lambda: gone(ranks), 20)


NO_SPREAD: dict[str, Mapping[str, str]] = {
    "torchrun": {"RANK": "0", "WORLD_SIZE": "1"},
    "accelerate": {"ACCELERATE_MIXED_PRECISION": "no"},
}


@pytest.mark.parametrize("variables", NO_SPREAD.values(), ids=NO_SPREAD)
def test_under_a_launcher_nothing_is_started(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.spread(toy_config({"train": {"processes": 2}}).train) is None


def test_a_launcher_that_started_too_few_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process it starts."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match=r"started one, as it does on a CPU; .* train\.processes, or use torchrun"):
        launch.spread(toy_config().train)


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**train: object) -> int:
        return launch.processes(toy_config({"train": train}).train)

    assert count() == 1
    assert count(processes=3) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (count(), count(device="cpu"), count(processes=2)) == (4, 1, 2)
    with pytest.raises(ConfigError, match=r"train\.processes is 5; visible GPUs: 4"):
        count(processes=5)


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_starts() -> None:
    settings = toy_config({"train": {"processes": 3}}).train
    with pytest.raises(ConfigError, match=r"batch_size is 8; it must be a multiple of 3 .*; or set train\.processes"):
        launch.spread(settings)
    assert launch.divided(settings, 2).rows == 4
