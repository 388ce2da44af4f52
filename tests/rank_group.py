"""Groups of processes that train as one, as a launcher would start them, without an interpreter for each.

One program imports everything once and forks every rank that it is asked for; it has one thread, and so has a new rank.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Reads an object a line: environment, source and the file for the words of one rank, and answers with its pid; or
# nothing of the kind, and answers with [pid, exit code] of those that ended since it was asked last.
NURSERY = """
import gc, json, os, signal, sys, time, traceback
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
import torch, torch._dynamo, accelerate, torch.utils.tensorboard, tensorboard.compat.proto.summary_pb2
from helpers import TOY, ToyEvaluator, ToySource, toy_config, toy_sources
from sensorium import errors
from sensorium.engine import checkpoint, loop, ranks, rundir
from sensorium.engine.backend import Backend
ranks.SILENCE, ranks.BEAT = 2.0, 0.5
# first

def before(module, name, when, do):
    \"\"\"Call do() before the function is called for the when-th time.\"\"\"
    function, calls = getattr(module, name), []
    def wrapped(*arguments, **named):
        calls.append(1)
        if len(calls) == when:
            do()
        return function(*arguments, **named)
    setattr(module, name, wrapped)

def send(number, to=os.getpid):
    return lambda: os.kill(to(), number)

def live(asked):
    os.environ.update(asked["environment"])
    words = os.open(asked["words"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(words, 1), os.dup2(words, 2)
    code = 1
    try:
        errors.shown(lambda: exec(asked["source"], globals() | {"rank": int(os.environ["RANK"])}))
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

def ended():
    found = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        found.append([pid, os.waitstatus_to_exitcode(status)])

assert len(os.listdir("/proc/self/task")) == 1
gc.collect(), gc.freeze()  # nothing of this is looked at again
while line := sys.stdin.readline():
    asked = json.loads(line)
    if not asked:
        print(json.dumps(ended()), flush=True)
        continue
    child = os.fork()
    if not child:
        live(asked)
    print(child, flush=True)
"""


@dataclass
class Group:
    """Processes that were started together; a rank is its place in ``pids``."""

    nursery: Nursery
    words: list[Path]
    pids: list[int]

    def codes(self) -> list[int]:
        """The exit codes of all, in the order of the ranks; waits for their end."""
        self.nursery.wait_for(*self.pids)
        return [self.nursery.ended[pid] for pid in self.pids]

    def said(self, rank: int) -> str:
        """What a rank printed."""
        return self.words[rank].read_text().strip()

    def send(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.pids)):
            os.kill(self.pids[rank], number)


@dataclass
class Nursery:
    """The program that the ranks of all groups are forked from."""

    program: subprocess.Popen[str]
    folder: Path
    ended: dict[int, int] = field(default_factory=dict)

    def train(
        self, run: Path, config: Mapping[str, Any], first: str = "", *, resume: bool = False, world: int = 2
    ) -> Group:
        """Start to train the toy family. ``first``: what each rank, whose number is ``rank``, runs before that; it may
        change ``family``, ``config``, and what lies in the engine."""
        last = "loop.train(family, toy_config(config), run, resume=resume, quiet=True)"
        given = f"family, config, run, resume = TOY, {dict(config)!r}, Path({str(run)!r}), {resume}"
        return self.start("\n".join((given, first, last)), world)

    def start(self, source: str, world: int = 2) -> Group:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        pids, words = [], []
        for rank in range(world):
            words.append(self.folder / f"{port}-{rank}")
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "1"}
            pids.append(self._ask({"source": source, "words": str(words[-1]), "environment": {**shared, **own}}))
        return Group(self, words, pids)

    def wait_for(self, *pids: int) -> None:
        deadline = time.monotonic() + 180  # of what hangs; two groups on a busy machine take more than a minute
        while not set(pids) <= self.ended.keys():
            assert time.monotonic() < deadline
            self.ended.update((pid, code) for pid, code in self._ask({}))
            time.sleep(0.02)

    def _ask(self, what: Mapping[str, Any]) -> Any:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(what) + "\n")
        self.program.stdin.flush()
        return json.loads(self.program.stdout.readline())


@contextmanager
def open_nursery(folder: Path, first: str = "") -> Iterator[Nursery]:
    """For as long as the block lasts; ends every process that it started. ``first``: run before it forks any."""
    command = [sys.executable, "-c", NURSERY.replace("# first", first), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # ours, without torch's own
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, process_group=0) as program:
        try:
            yield Nursery(program, folder)
        finally:
            os.killpg(program.pid, 9)
