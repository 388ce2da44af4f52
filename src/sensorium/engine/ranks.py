"""What the processes of a run know of each other beside the tensors they exchange: who is there, and why one left.

When one of several processes ends, the others learn no more than that a connection was closed. So each of them keeps
three entries in the store through which they found each other (the launcher's or torchrun's, else that of rank 0): a
count that goes up while it lives, the reason for which it leaves, and whose reasons it has read.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from sensorium.errors import Interrupted, RunError, SensoriumError, Stopped

BEAT = 1.0  # seconds between two signs of life
SILENCE = 5.0  # seconds without one after which a process counts as gone
QUICK = 0.1  # seconds between two looks at the store once this process leaves
PAUSE = 0.3  # seconds before the first of them: the connections of a killed process close one after the other
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited)")
_meetings = itertools.count()  # of this process, as of all others
_numbers = itertools.count()  # of the rolls of this process: all processes of a run open the same ones


@dataclass(frozen=True)
class Word:
    """Why a process leaves.

    ``kind``: an error of ours (or a stop that was asked for), a bug, a collective operation that failed, for which
    another process must be the reason, or that reason, found out later.
    """

    kind: Literal["bug", "cut", "found", "ours"]
    text: str
    code: int = 1


def word_of(error: BaseException) -> Word:
    """What the others are told about ``error``."""
    if isinstance(error, SensoriumError):
        return Word("ours", str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Word("ours", "interrupted", Interrupted.exit_code)
    # Gloo's errors are plain RuntimeErrors that begin with a place in its source; those of NCCL have a class.
    cut = isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    return Word("cut" if cut else "bug", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


@contextmanager
def met(minutes: float) -> Iterator[None]:
    """A block that the main process enters when all processes of the launcher have come to it, the others at once.

    It keeps the store through which they met, which is rank 0's own where no launcher holds one. Raises RunError when
    they do not come.
    """
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if os.environ.get("WORLD_SIZE", "1") == "1" or not all(name in os.environ for name in needed):
        yield  # alone; or the process group will say what is missing
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deadline = time.monotonic() + 60 * minutes
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=minutes)))
        come = (here := PrefixStore(f"sensorium/meeting/{next(_meetings)}", store)).add("come", 1)
        while rank == 0 and come < world and time.monotonic() < deadline:
            time.sleep(QUICK)
            come = here.add("come", 0)
    except torch.distributed.DistError as error:
        come, reason = 0, str(error).partition("\n")[0]
    else:
        reason = f"{come} came"
    if not come or (come < world and rank == 0):
        raise RunError(
            f"the {world} processes that the launcher asked for did not find each other within {minutes:g} minutes "
            f"({reason})"
        )
    yield


def dead_worker(error: BaseException | None, advice: str) -> RunError | None:
    """One line for what torch raises when a loader worker was killed; None for every other error."""
    line = None
    while isinstance(error, RuntimeError):  # torch may say first which one died, and behind it by which signal
        found = _WORKER.search(str(error))
        if found is not None:
            line = f"loader worker {found[1]} {f'was killed ({found[2]})' if found[2] else 'ended unexpectedly'}"
        error = error.__cause__
    if line is None:
        return None
    return RunError(f"{line}; want of memory is the usual reason, fewer loader.workers need less{advice}")


def disagreement(values: Sequence[Mapping[str, Any]]) -> str | None:
    """How the values of the ranks (in their order) differ from those of rank 0; None when they do not.

    The example is that of the first rank that differs, with at most three keys.
    """
    different = [rank for rank, value in enumerate(values) if value != values[0]]
    if not different:
        return None
    first, other = values[0], values[different[0]]
    keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
    shown = "; ".join(f"{key} is {other.get(key)!r}, on rank 0 {first.get(key)!r}" for key in keys[:3])
    more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
    verb = "differs" if len(different) == 1 else "differ"
    return f"{_named(different, len(values))} {verb} from rank 0: on rank {different[0]} {shown}{more}"


class Roll:
    """The entries of one process. All traffic is in a thread of its own: a store whose host hangs never answers."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.others = [other for other in range(world) if other != rank]
        self.left: dict[int, Word] = {}
        self.lost = False  # the host of the store is gone
        self._leavers = 0
        self._counts: dict[int, int] = {}  # of the others, when this process began to leave
        self._beating: set[int] = set()  # those whose count went up since then
        self._readers: set[int] = set()  # those who have read why this process leaves
        self._word: Word | None = None
        self._told, self._wake, self._done = threading.Event(), threading.Event(), threading.Event()
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=SILENCE)
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
        self._store: Any = PrefixStore(f"sensorium/{next(_numbers)}", store)
        # Torch prints a page for each call to a store whose host is gone; an idle connection tells it before.
        self._idle = socket.create_connection((host, port), SILENCE)
        self._idle.setblocking(False)
        self._thread = threading.Thread(target=self._keep, name="roll", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give no more signs of life."""
        self._done.set()
        self._wake.set()
        self._thread.join(2 * BEAT)
        self._idle.close()

    def leave(self, error: BaseException, patience: str, advice: str) -> SensoriumError | None:
        """Tell the others why this process leaves. Returns what stands behind ``error``, where that is another one.

        Takes a moment, and up to ``SILENCE`` seconds where it must be found out who is missing. ``patience``: how long
        a collective operation waits, in words. ``advice``: what to do, for the end of a line.
        """
        word, found = word_of(error), None
        if word.kind == "cut":
            time.sleep(PAUSE)
        self._tell(word)
        if word.kind == "cut":
            self._wait(lambda: len(self.left) == len(self.others) or any(w.kind != "cut" for w in self.left.values()))
            found = self._verdict(word, patience, advice)
        if found is not None:
            self._tell(Word("found", str(found), found.exit_code))  # for one that comes later
        if self.rank == 0 and not _hosted_elsewhere():  # the store goes with this process: let them read it first
            there = self._beating | self.left.keys() if word.kind == "cut" else set(self.others)
            self._wait(lambda: self._readers >= there)
        return found

    def _tell(self, word: Word) -> None:
        self._told.clear()
        self._word = word
        self._wake.set()
        self._wait(self._told.is_set)

    def _wait(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SILENCE
        while not enough() and not self.lost and time.monotonic() < deadline:
            time.sleep(QUICK / 2)

    def _verdict(self, word: Word, patience: str, advice: str) -> SensoriumError | None:
        reasons = [(w.kind, rank, w) for rank, w in self.left.items() if w.kind != "cut"]
        if reasons:
            kind, rank, reason = min(reasons)  # a bug before what follows from it
            where = _named([rank], self.world)
            if kind == "bug":
                return RunError(f"{where} met a bug ({reason.text}); its own output has the traceback")
            return _again(reason, where)
        silent = set(self.others) - self.left.keys() - self._beating
        if (self.lost or not self._told.is_set()) and 0 not in self.left:
            if _hosted_elsewhere():
                return RunError(f"the process that started this one is gone{advice}")
            silent = {0}
        if silent:
            verb = "is" if len(silent) == 1 else "are"
            return RunError(f"{_named(silent, self.world)} {verb} gone: killed, hung or cut off{advice}")
        busy = set(self.others) - self.left.keys()
        if busy and "timed out" in word.text.lower():
            where = _named(busy, self.world)
            return RunError(f"{where} kept the others waiting for more than {patience} (train.timeout_minutes){advice}")
        return None

    def _keep(self) -> None:
        """The thread."""
        beat = 0
        try:
            while not self._done.is_set():
                beat += 1
                self._look(beat)
                if self._word is None:
                    self._wake.wait(BEAT)
                else:
                    self._done.wait(QUICK)
        except (torch.distributed.DistError, OSError):
            self.lost = True

    def _look(self, beat: int) -> None:
        """Give a sign of life, and read what others wrote."""
        if _closed(self._idle):
            raise ConnectionError
        store, word = self._store, self._word
        store.set(f"beat/{self.rank}", str(beat))
        if word is not None and not self._told.is_set():
            store.set(f"left/{self.rank}", json.dumps(asdict(word)))
            store.add("leavers", 1)
            self._told.set()
        leavers = store.add("leavers", 0)
        if leavers != self._leavers:
            self._leavers = leavers
            self.left = {o: Word(**json.loads(found)) for o in self.others if (found := self._found(f"left/{o}"))}
            store.set(f"read/{self.rank}", json.dumps(sorted(self.left)))
            if not _hosted_elsewhere() and 0 in self.left and self.left[0].kind != "cut":
                raise ConnectionError  # the store goes with rank 0, and everything is known
        if word is not None:
            self._look_for_the_others()

    def _look_for_the_others(self) -> None:
        for other in self.others:
            count = int(self._found(f"beat/{other}") or 0)
            if self._counts.setdefault(other, count) != count:
                self._beating.add(other)
            if self.rank in json.loads(self._found(f"read/{other}") or "[]"):
                self._readers.add(other)

    def _found(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None


def _closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def _hosted_elsewhere() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _again(word: Word, where: str) -> SensoriumError:
    """The error that another process met, with its exit code."""
    if word.code == Stopped.exit_code:
        return Stopped(word.text)
    if word.code == Interrupted.exit_code:
        return Interrupted(word.text)
    error = RunError(word.text if word.kind == "found" else f"{where}: {word.text}")
    error.exit_code = word.code
    return error


def _named(ranks: Iterable[int], world: int) -> str:
    """``rank 1 of 2``, ``ranks 1, 3 of 4``."""
    listed = [str(rank) for rank in sorted(ranks)]
    return f"rank{'s' * (len(listed) > 1)} {', '.join(listed)} of {world}"
