"""Runs of several processes without several starts: one program imports torch, and forks the ranks of every run.

``python forked_ranks.py`` reads a job a line, as JSON, and answers each with what its ranks noted.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

SECONDS = 120  # for one job; a rank that waits longer waits for ever


class Rank(NamedTuple):
    """What one process notes. ``seen``: of each forward pass in training its seed and samples; ``steps``: of each step
    done its guard, the digest of weights and buffers and the scale of the loss; ``error``: what ended it."""

    seen: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    error: str | None


class Ranks:
    """The program, from outside."""

    def __init__(self, jobs: TextIO, answers: TextIO) -> None:
        self._jobs, self._answers = jobs, answers

    def train(
        self, run: Path, family: str, changes: Mapping[str, Any], *, processes: int = 2, scale: float | None = None
    ) -> list[Rank]:
        """Train, or continue what is there. ``scale``: of a loss scaler to begin with."""
        job = {"run": str(run), "family": family, "changes": changes, "processes": processes, "scale": scale}
        self._jobs.write(json.dumps(job) + "\n")
        self._jobs.flush()
        return [Rank(**noted) for noted in json.loads(self._answers.readline())]


@contextmanager
def forked_ranks() -> Iterator[Ranks]:
    """Start the program; it ends when its input does."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        yield Ranks(program.stdin, program.stdout)


def _note(job: Mapping[str, Any]) -> Rank:
    """Train as the job says, and note what happens."""
    import torch
    from toy_variants import FAMILIES

    from sensorium import families
    from sensorium.engine import checkpoint, loop, settings
    from sensorium.errors import SensoriumError

    noted = Rank([], [], None)
    toy = FAMILIES.get(job["family"])
    original = toy or families.load(job["family"])

    def watched(config: Any, facts: Any) -> torch.nn.Module:
        task = original.task(config, facts)

        def note(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
            if module.training:
                noted.seen.append({"seed": torch.initial_seed(), "index": given[0]["index"].tolist()})

        task.register_forward_pre_hook(note)
        return task

    step = loop._step

    def noting(run: Any, *rest: Any) -> Any:
        values = step(run, *rest)
        state = {**run.progress.guard.dump(), "digest": checkpoint.digest_of(run.task.state_dict())}
        noted.steps.append({**state, "scale": run.backend.write_state().get("scale")})
        return values

    loop._step = noting
    family = replace(original, task=watched)
    run = Path(job["run"])
    try:
        config = settings.resolve(family, "tiny", job["changes"])
        loop.train(family, config, run, resume=(run / "config.yaml").exists(), quiet=True)
    except (SensoriumError, RuntimeError) as error:  # the latter from torch
        return noted._replace(error=str(error))
    return noted


def _rank(job: Mapping[str, Any], answer: Path) -> None:
    """The whole life of one rank."""
    from toy_variants import scaled

    with scaled(job["scale"]):
        noted = _note(job)
    answer.write_text(json.dumps(noted._asdict()))


def _serve(job: Mapping[str, Any]) -> list[Any]:
    """Fork the ranks of one job, wait for them, and collect what they noted."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    count = job["processes"]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    answers = [Path(job["run"]).with_name(f"{Path(job['run']).name}.rank{rank}") for rank in range(count)]
    ranks = []
    for rank, answer in enumerate(answers):
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os.environ.update({**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            os.dup2(2, 1)
            try:
                _rank(job, answer)
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(0)
        ranks.append(child)
    deadline = time.monotonic() + SECONDS
    while ranks and time.monotonic() < deadline:
        ranks = [child for child in ranks if os.waitpid(child, os.WNOHANG)[0] == 0]
        time.sleep(0.01)
    for child in ranks:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [json.loads(answer.read_text()) for answer in answers]


def _warm_up() -> None:
    """What a run imports on its way is imported once, here, and by no thread that a fork would lose."""
    from accelerate.state import AcceleratorState
    from helpers import TOY, toy_config

    from sensorium.engine import loop

    with tempfile.TemporaryDirectory() as folder:
        loop.train(TOY, toy_config({"train": {"steps": 1}}), Path(folder) / "run", quiet=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _warm_up()
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)
