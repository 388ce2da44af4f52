"""Errors meant for the person at the keyboard: one clear line, no traceback.

The command line prints ``str(error)`` and leaves with ``exit_code``. A message says what was found, what is
allowed and what to do; several problems are joined by newlines. A stop that was asked for is told the same way, but is
not called an error.
"""

import os
import re
import sys
from collections.abc import Callable

# What a terminal obeys instead of showing it: control characters (but the tabulator and the end of a line), other ends
# of lines, overrides of the writing direction; and halves of surrogate pairs, which cannot be written at all.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class SensoriumError(Exception):
    """Base of all errors that are shown as a line instead of a traceback."""

    exit_code = 2


class ConfigError(SensoriumError):
    """The configuration or a command-line option cannot be used."""


class DataError(SensoriumError):
    """A data set, one of its files or a feature cache cannot be used."""


class CheckpointError(SensoriumError):
    """A run folder or checkpoint is damaged, foreign or in use."""


class RunError(SensoriumError):
    """A run had to stop although its input was right (for example: the loss is not finite any more)."""

    exit_code = 1


class ShortageError(RunError):
    """Memory did not suffice. ``reason``: the part of the line that says why, without advice."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class DiskError(SensoriumError):
    """The disk is full, read-only, gone or failing; what was complete on it stays."""

    exit_code = 3


class Stopped(SensoriumError):  # noqa: N818  (no error)
    """SIGTERM asked for an end, and nothing is lost: the line says how to go on, and this is no failure."""

    exit_code = 0


class Interrupted(Stopped):
    """Ctrl-C asked for an end."""

    exit_code = 130  # what a shell makes of a process that SIGINT ended


def printable(text: str) -> str:
    """``text`` with what a terminal would obey written as ``\\u001b``, which is the same text inside JSON."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(command: Callable[[], object]) -> None:
    """Run a command; errors of ours become one line on standard error and an exit code."""
    try:
        command()
    except Stopped as stop:
        sys.stdout.flush()
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except SensoriumError as error:
        sys.stdout.flush()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
