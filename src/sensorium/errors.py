"""Errors meant for the person at the keyboard: one clear line, no traceback.

The command line prints ``str(error)`` and leaves with ``exit_code``. A message says what was found, what is
allowed and what to do; several problems are joined by newlines. A stop that was asked for is told the same way, but is
not called an error.
"""

import os
import sys
from collections.abc import Callable


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


class DiskError(SensoriumError):
    """The disk is full, read-only, gone or failing; what was complete on it stays."""

    exit_code = 3


class Stopped(SensoriumError):  # noqa: N818  (no error)
    """SIGTERM asked for an end, and nothing is lost: the line says how to go on, and this is no failure."""

    exit_code = 0


class Interrupted(Stopped):
    """Ctrl-C asked for an end."""

    exit_code = 130  # what a shell makes of a process that SIGINT ended


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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
