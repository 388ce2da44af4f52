"""Running a script of the guides in this process as a command line runs it, and what it answered."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from sensorium import errors


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Script = Callable[..., Answer]


def exit_code(main: Callable[[], object]) -> int:
    """Of a script with this ``main``."""
    try:
        errors.shown(main)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def answering(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Script:
    """``run``, which gives an exit code, with what it printed."""

    def call(*words: str, **named: str) -> Answer:
        code = run(*words, **named)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call


def script_at(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """One script of which nothing but ``main`` is used, imported until the test ends."""
    monkeypatch.syspath_prepend(str(path.parent))
    module = importlib.import_module(path.stem)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", [path.name, *words])
        return exit_code(module.main)

    return answering(run, capsys)


@contextmanager
def modules_of(folder: Path, names: tuple[str, ...]) -> Iterator[Callable[[str], ModuleType]]:
    """Import the guide's modules by their names, and forget them afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)
