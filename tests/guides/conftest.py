"""A folder with Flickr8k, and the scripts run in it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from flickr8k_tree import make_tree
from guide_scripts import FLICKR8K, SCRIPTS
from script_runs import Script, answering, exit_code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with Flickr8k where the guide expects it."""
    folder = tmp_path / "here"
    make_tree(folder / "data" / "flickr8k")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs a script as a command line does, in this process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(*words: str, name: str = FLICKR8K) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        return exit_code(importlib.import_module(name).main)

    return answering(run, capsys)
