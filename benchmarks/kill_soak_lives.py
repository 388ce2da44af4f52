"""The killing of ``kill_soak.py``: lives, moments, and what is counted. Knows no arm."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

AHEAD = 6  # steps within which a kill at any moment comes
LAST_SAVE = 3  # a kill within a save comes in the first to this one of a life
WORKERS, SELDOM = 2, 1 / 6  # loader workers, and how often a life has them
POLL, PATIENCE = 2e-4, 120.0  # seconds between two looks at a life; after which it hangs
FORK = multiprocessing.get_context("fork")
BEGUN, ENDED, FIRST_AT, LAST_AT, INSIDE = range(5)  # what a meter holds


class Meter:
    """Saves begun and ended in the present life, and when: memory that a life shares with its killer."""

    def __init__(self) -> None:
        self._slots = memoryview(mmap.mmap(-1, 5 * 8)).cast("d")

    def clear(self) -> None:
        for slot in range(5):
            self._slots[slot] = 0.0

    def begin(self) -> None:
        now = time.monotonic()
        self._slots[LAST_AT] = now
        self._slots[FIRST_AT] = self._slots[FIRST_AT] or now
        self._slots[BEGUN] += 1  # last: who sees the number finds its time

    def end(self) -> None:
        self._slots[INSIDE] += time.monotonic() - self._slots[LAST_AT]
        self._slots[ENDED] += 1

    @property
    def begun(self) -> int:
        return int(self._slots[BEGUN])

    @property
    def ended(self) -> int:
        return int(self._slots[ENDED])

    @property
    def in_this_save(self) -> float:
        """Seconds since the last save began."""
        return time.monotonic() - self._slots[LAST_AT]

    @property
    def from_save_to_save(self) -> float:
        """Mean seconds in a life of two saves or more."""
        return (self._slots[LAST_AT] - self._slots[FIRST_AT]) / (self.begun - 1)

    @property
    def of_a_save(self) -> float:
        """Mean seconds."""
        return self._slots[INSIDE] / self.ended


@dataclass(frozen=True)
class Pace:
    """Seconds to the first step of a life, from save to save, and of a save."""

    start: float
    step: float
    save: float


@dataclass(frozen=True)
class State:
    """What a kill left. A name in the sets changes when what it stands for does."""

    step: int = 0  # of the newest state that loads
    torn: frozenset[str] = frozenset()
    leftovers: frozenset[str] = frozenset()
    half_written: frozenset[str] = frozenset()


class Arm(Protocol):
    """A way to train that goes on where its last life was killed."""

    @property
    def name(self) -> str: ...

    def live(self, run: Path, seed: int, workers: int, meter: Meter) -> None:
        """Begin the run or continue it, to its end; tells ``meter`` of each save."""

    def look(self, run: Path, whole: Path) -> State:
        """What is left in ``run``. ``whole``: the same run, uninterrupted."""

    def differences(self, run: Path, whole: Path) -> list[str]:
        """In what the ended run differs from the uninterrupted one."""


def row(title: str, *, fault: bool = False) -> int:
    """A count that stands in the table; ``fault``: it must be 0."""
    count: int = field(default=0, metadata={"title": title, "fault": fault})
    return count


@dataclass
class Findings:
    """What is counted over all lives of an arm."""

    kills: int = row("kills")
    in_saves: int = row("kills during a save")
    leftovers: int = row("left-overs found")
    stayed: int = row("left-overs that outlived a save", fault=True)
    torn: int = row("torn states", fault=True)
    backwards: int = row("steps backwards", fault=True)
    half_written: int = row("half-written files beside the states", fault=True)
    refused: int = row("lives that ended with an error", fault=True)
    runs: int = row("runs brought to their end")
    different: int = row("of these with another result", fault=True)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def rows(cls) -> list[str]:
        return [one.metadata["title"] for one in fields(cls) if one.metadata]

    def counts(self) -> list[int]:
        return [getattr(self, one.name) for one in fields(self) if one.metadata]

    @property
    def faults(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self) if one.metadata.get("fault"))

    def killed(self, before: State, now: State, meter: Meter) -> None:
        """Count what a kill left, against what the kill before it had left."""
        self.kills += 1
        self.in_saves += meter.begun > meter.ended
        self.leftovers += len(now.leftovers - before.leftovers)
        self._fault("stayed", now.leftovers & before.leftovers if meter.ended else ())
        self._fault("torn", now.torn - before.torn)
        self._fault("half_written", now.half_written)
        if now.step < before.step:
            self._fault("backwards", [f"{now.step} after {before.step}"])

    def ended(self, error: str, differences: Sequence[str]) -> None:
        """Count how the last life of a run ended."""
        if error:
            self._fault("refused", [error])
            return
        self.runs += 1
        if differences:
            self._fault("different", [", ".join(differences)])

    def _fault(self, name: str, what: Sequence[str] | frozenset[str]) -> None:
        setattr(self, name, getattr(self, name) + len(what))
        self.notes += [f"kill {self.kills}: {name}: {one}" for one in sorted(what)]


@dataclass(frozen=True)
class Plan:
    """When a life is killed: within its save of that number, None: at any moment; at which share of that time.

    A save that ended sooner was a fast one: then it is the next one's turn.
    """

    save: int | None
    share: float
    workers: int

    @classmethod
    def draw(cls, dice: random.Random) -> Plan:
        save = dice.randint(1, LAST_SAVE) if dice.random() < 0.5 else None
        return cls(save, dice.random(), WORKERS if dice.random() < SELDOM else 0)

    def due(self, pace: Pace, age: float, meter: Meter) -> bool:
        if self.save is None:
            return age >= self.share * (pace.start + AHEAD * pace.step)
        return meter.begun >= self.save and meter.begun > meter.ended and meter.in_this_save >= self.share * pace.save


def soak(arm: Arm, seed: int, folder: Path, enough: Callable[[Findings], bool]) -> Findings:
    """Kill runs of ``arm`` until it is enough and the last of them has ended. Raises RuntimeError if a life hangs."""
    gc.freeze()  # otherwise each life looks through all that was imported, and copies its pages
    begun, found, meter, number = time.monotonic(), Findings(), Meter(), 1000 * seed
    while not enough(found):
        whole, run = folder / f"{number}-whole", folder / f"{number}-killed"
        pace, before, dice = _uninterrupted(arm, whole, number, meter), State(), random.Random(number)
        lives: list[_Life] = []
        while True:
            plan = Plan.draw(dice)
            life = _Life(arm, run, number, plan.workers, meter)
            lives.append(life)
            if enough(found) or not life.killed(plan, pace):
                break
            now = arm.look(run, whole)
            found.killed(before, now, meter)
            before = now
        error = life.spared()
        found.ended(error, [] if error else arm.differences(run, whole))
        for life in lives:
            life.bury()
        shutil.rmtree(whole)
        shutil.rmtree(run, ignore_errors=bool(error))
        number += 1
    found.seconds = time.monotonic() - begun
    return found


def _uninterrupted(arm: Arm, whole: Path, seed: int, meter: Meter) -> Pace:
    """The run that nobody kills. Its start is timed in a second life, which finds all done."""
    error = _Life(arm, whole, seed, 0, meter).spared()
    step, save = meter.from_save_to_save, meter.of_a_save
    again = _Life(arm, whole, seed, 0, meter)
    error = error or again.spared()
    if error or meter.begun:
        raise RuntimeError(f"{arm.name}: a run that nobody killed: {error or 'saved after its end'}")
    return Pace(again.age, step, save)


class _Life:
    """One process: a fork of this one, which has imported everything. What it says of errors goes to ``RUN.log``."""

    def __init__(self, arm: Arm, run: Path, seed: int, workers: int, meter: Meter) -> None:
        meter.clear()
        self._meter, self._log, self._born = meter, run.with_suffix(".log"), time.monotonic()
        self._process = FORK.Process(target=self._live, args=(arm, run, seed, workers))
        self._process.start()

    @property
    def age(self) -> float:
        return time.monotonic() - self._born

    def killed(self, plan: Plan, pace: Pace) -> bool:
        """Kill it when that is due; False when it ended before."""
        while self._process.is_alive():
            if plan.due(pace, self.age, self._meter):
                self._kill()
            elif self.age > PATIENCE:
                self._give_up()
            else:
                time.sleep(POLL)
        return self._process.exitcode == -signal.SIGKILL

    def spared(self) -> str:
        """Wait for its end; the last line that it wrote when that was no good one."""
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._give_up()
        if self._process.exitcode == 0:
            return ""
        return f"exit code {self._process.exitcode}: {(self._log.read_text().splitlines() or [''])[-1]}"

    def bury(self) -> None:
        """End the loader workers that it left: one whose trainer is killed while it starts would never see that."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _live(self, arm: Arm, run: Path, seed: int, workers: int) -> None:
        os.setpgid(0, 0)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            os.dup2(log.fileno(), 2)
        arm.live(run, seed, workers, self._meter)

    def _give_up(self) -> None:
        self._kill()
        raise RuntimeError(f"a life made no end in {PATIENCE:.0f} s; it wrote: {self._log.read_text()[-2000:]}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
