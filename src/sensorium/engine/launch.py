"""Several processes on one machine without a launcher: one a visible GPU, or as many as ``train.processes`` says.

``spread`` starts the command that was typed once for each process, with the variables that torchrun would set, and
stays beside them: it hands signals on, shows the words of the process that failed first and of no other, and leaves no
process behind. Under torchrun, ``accelerate launch`` or another launcher it does nothing. Only the command line calls
it: who calls ``loop.train`` from Python starts the processes himself.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sensorium.engine import signals
from sensorium.engine.order import Share
from sensorium.engine.settings import Train
from sensorium.errors import ConfigError, Interrupted, RunError

LAUNCHED = "SENSORIUM_LAUNCHED"  # marks the processes that `spread` started
LAUNCHERS = ("RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # set by torchrun; the last by accelerate alone
OURS = re.compile(rb"error: |interrupted\b|stopped\b")  # what `errors.shown` prints for what is no bug
LAST_WORDS = re.compile(OURS.pattern + rb"|(\[rank\d+\]: )?Traceback \(most recent call last\)")
PATIENCE = 10.0  # seconds for the others to end by themselves after one failed, and again before they are killed
REFUSED = 2  # exit code of bad input: nothing is left to be written, the others need no patience


def spread(settings: Train, *, training: bool = True) -> int | None:
    """Run this command in several processes; returns its exit code, or None where this process does the work alone.

    ``training``: the batch must divide by the processes. Raises ConfigError when it does not or when there are fewer
    GPUs than ``train.processes``, RunError naming the process that died or met a bug, Stopped or Interrupted where a
    signal ended the processes before they could say so themselves.
    """
    if LAUNCHED in os.environ:
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        return None
    if any(name in os.environ for name in LAUNCHERS):
        _believe_the_launcher()
        return None
    count = processes(settings)
    if training:
        divided(settings, count)
    if count == 1:
        return None
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    environment = _environment(count, cpu)
    where = f"on the CPU, OMP_NUM_THREADS={environment['OMP_NUM_THREADS']}" if cpu else "one a GPU"
    print(f"Processes: {count}, {where}; train.processes sets another number", flush=True)
    return _run([sys.executable, *sys.orig_argv[1:]], environment, count)


def processes(settings: Train) -> int:
    """How many processes a command line of this configuration uses on this machine."""
    gpus = 0 if settings.device == "cpu" else torch.cuda.device_count()
    if settings.processes is None:
        return max(1, gpus)
    if gpus and settings.processes > gpus:
        raise ConfigError(f"train.processes is {settings.processes}; visible GPUs: {gpus}, each takes one process")
    return settings.processes


def divided(settings: Train, count: int) -> Share:
    """The share of each of ``count`` processes. Raises ConfigError when the batch cannot be divided by them."""
    try:
        return Share(settings.batch_size, 1, count)  # whether micro-batches divide it, too, is the family's business
    except ConfigError as error:
        raise ConfigError(f"{error}; or set train.processes") from None


def is_main() -> bool:
    """Whether this process is the one that speaks, under whatever launcher."""
    return os.environ.get("RANK", "0") == "0"


def alone() -> bool:
    """Whether this process is the only one of its run."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _believe_the_launcher() -> None:
    # On a CPU `accelerate launch --num_processes 2` prepares for two processes and starts one.
    if "WORLD_SIZE" not in os.environ and "MASTER_PORT" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does on a CPU; "
            "leave it out and set train.processes, or use torchrun"
        )


def _end_with_the_parent() -> None:
    """Save and stop when the starting process is gone: its end of this process's standard input closes with it."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _environment(count: int, cpu: bool) -> dict[str, str]:
    """What all processes share of the variables that torchrun sets."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns each time that a step happens to use all parameters
    }
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", LAUNCHED: "1"}
    # As under torchrun the meeting point belongs to the starting process: no port is free now and taken a moment later.
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return {**defaults, **os.environ, **shared, **({"ACCELERATE_USE_CPU": "1"} if cpu else {})}


class _Process:
    """One of the processes. Rank 0 writes to our standard output itself; what the others write is kept, not shown.

    From the first of its last words on, also what rank 0 writes to standard error is kept: an error that all
    processes meet is shown once, and one that follows from another process's end is not shown at all.
    """

    def __init__(self, rank: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.rank = rank
        self.spoke_at: float | None = None
        self.ended_at: float | None = None
        self.stopped = False  # by us, because another one failed
        self.words: deque[bytes] = deque(maxlen=20)  # later: all of the last words
        self.child = subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,  # never written to, see _end_with_the_parent
            stdout=subprocess.PIPE if rank else None,
            stderr=subprocess.STDOUT if rank else subprocess.PIPE,
            process_group=0,  # Ctrl-C reaches us alone, and each of them once
        )
        stream = self.child.stdout if rank else self.child.stderr
        assert stream is not None
        self._stream = stream
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stream:
            if self.spoke_at is None and LAST_WORDS.match(line):
                self.spoke_at, self.words = time.monotonic(), deque()
            if self.rank or self.spoke_at is not None:
                self.words.append(line)
            else:
                _show([line])

    @property
    def code(self) -> int:
        """Exit code; the number of a deadly signal is negative. 0 while it runs."""
        return self.child.returncode or 0

    def runs(self) -> bool:
        if self.child.poll() is None:
            return True
        self.ended_at = self.ended_at or time.monotonic()
        return False

    def send(self, number: int) -> None:
        if self.child.poll() is None:
            self.child.send_signal(number)

    def close(self) -> None:
        """Let nothing remain of it."""
        self.send(signal.SIGKILL)
        self.child.wait()
        self._reader.join(PATIENCE)  # its loader workers may hold the pipe for a moment
        if not self._reader.is_alive():
            self._stream.close()
        if self.child.stdin is not None:
            self.child.stdin.close()


def _show(lines: Sequence[bytes] | deque[bytes]) -> None:
    sys.stderr.buffer.writelines(lines)
    sys.stderr.flush()


def _run(command: Sequence[str], environment: dict[str, str], count: int) -> int:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {**environment, "MASTER_PORT": str(store.port)}
    started: list[_Process] = []
    with signals.noted(insist=False) as noted:
        try:
            # A process that has just begun would be ended by this one; blocked, it waits until there is a handler.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            for rank in range(count):
                started.append(_Process(rank, command, environment))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            _watch(started, noted.received)
        finally:
            for process in started:
                process.close()
    return _verdict(started, noted.received)


def _watch(started: Sequence[_Process], received: Sequence[int]) -> None:
    """Hand signals on until all have ended; once one has failed, see to it that the others end too."""
    handed_on = 0
    ways = [signal.SIGTERM, signal.SIGKILL]  # to end the others, in this order
    deadline = float("inf")
    while sum(process.runs() for process in started):  # no any(): each is asked, to learn when it ended
        for number in received[handed_on:]:
            handed_on += 1
            for process in started:
                process.send(number)
            if number == signal.SIGINT and received.count(number) > 1:  # also those that cannot hear it must end
                deadline = min(deadline, time.monotonic() + PATIENCE)
        failed = [process.code for process in started if process.code]
        now = time.monotonic()
        if failed and deadline == float("inf"):
            deadline = now + (PATIENCE / 10 if REFUSED in failed else PATIENCE)
        if now > deadline and ways:
            way = ways.pop(0)
            for process in started:
                process.stopped |= process.runs()
                process.send(way)
            deadline = now + PATIENCE
        time.sleep(0.02)


def _verdict(started: Sequence[_Process], received: Sequence[int]) -> int:
    """Show what the first one to fail said; the exit code of all."""
    failed = [process for process in started if process.code and not process.stopped]
    if not failed:
        _show(started[0].words)
        if any(process.stopped for process in started):  # after Ctrl-C twice: nothing else failed
            raise Interrupted("stopped at once; the last checkpoint, if there is one, stays")
        return 0
    # Death by a signal comes first: the others then fail for want of it, and may say so before it was noticed here.
    culprit = min(failed, key=lambda p: (p.code > 0, p.spoke_at or p.ended_at or 0.0))
    name = signal.Signals(-culprit.code).name if culprit.code < 0 else ""
    if -culprit.code in set(received) - {signal.SIGUSR1}:
        raise signals.stopped(-culprit.code, f"stopped by {name}; the last checkpoint, if there is one, stays")
    _show(culprit.words)
    if culprit.words and OURS.match(culprit.words[0]):
        return culprit.code
    memory = " (by hand, or by the system for want of memory)" if name == "SIGKILL" else ""
    how = f"was killed by {name}{memory}" if name else f"ended with exit code {culprit.code}"
    raise RunError(f"rank {culprit.rank} of {len(started)} processes {how}; the others were stopped")
