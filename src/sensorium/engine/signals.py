"""What Ctrl-C, SIGTERM and SIGUSR1 ask for. See docs/determinism.md for what each does in which part of a run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sensorium.errors import Interrupted, Stopped

TWICE = 0.5  # seconds after which a second Ctrl-C is one: a group, and then its launcher, may pass the first on twice


class Now(BaseException):
    """Raised by the handler where nothing is to be brought to its end first.

    Not an Exception: what runs then may be a library that takes every Exception for a failed attempt of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """The signals received so far.

    ``waits``, until ``enter`` says otherwise: what is going on is brought to its end before anyone looks at
    ``received``; else the first signal that asks for an end raises ``Now``. A second one that is Ctrl-C raises it
    anyway, if ``insist``. ``line``: what to say when ``Now`` was raised, for the one who catches it.
    """

    def __init__(self, insist: bool) -> None:
        self.received: list[int] = []
        self.waits, self.insist, self.line = True, insist, ""
        self._since = 0.0
        self._process = os.getpid()

    def enter(self, line: str, *, waits: bool) -> None:
        """Another part of the work begins. Raises ``Now`` when an end was asked for and need not wait any more."""
        self.line, self.waits = line, waits
        ends = self._ends()
        if ends and not waits:
            raise Now(ends[0])

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        del frame
        if os.getpid() != self._process:  # a loader worker just forked: the trainer decides for it
            return
        first = not self._ends()
        self.received.append(number)
        if number == signal.SIGUSR1:
            return
        if first:
            self._since = time.monotonic()
        again = self.insist and number == signal.SIGINT and time.monotonic() - self._since > TWICE
        if not self.waits if first else again:
            raise Now(number)

    def _ends(self) -> list[int]:
        return [number for number in self.received if number != signal.SIGUSR1]


@contextmanager
def noted(*, insist: bool) -> Iterator[Signals]:
    """Note signals until the block ends. ``insist``: see ``Signals``; without it they are never more than noted."""
    signals = Signals(insist)
    before = {n: signal.signal(n, signals.note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    # The launcher keeps it back while a process starts, which it would end.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Only Ctrl-C may cut short the few seconds in which a process finds out why the others left."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(number: int, line: str) -> Stopped:
    """The error that ends a run for which a signal asked for an end."""
    return Interrupted(line) if number == signal.SIGINT else Stopped(line)
