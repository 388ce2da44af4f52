"""SIGKILL before, within and after calls that change files: nothing complete is lost, the next go mends the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_scenarios import SCENARIOS

MOMENTS = ("before", "half", "after")
# Every n-th call of the dear ones; SENSORIUM_KILL_STRIDE=1 takes every call.
FEWER = {"run": 13, "export": 6, "index": 6, "branch": 13, "report": 4, "download": 5, "import": 5, "cache": 3}
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """One interpreter for all scenarios."""
    folder = tmp_path_factory.mktemp("kills")
    program = [sys.executable, str(Path(__file__).with_name("kill_scenarios.py")), str(folder / "published")]
    environment = {**os.environ, "SENSORIUM_CACHE": str(folder / "cache"), "no_proxy": "127.0.0.1"}
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as zygote,
    ):

        def ask(name: str, *, stride: int = 1, sabotage: bool = False) -> dict[str, Any]:
            assert zygote.stdin is not None
            assert zygote.stdout is not None
            place = folder / f"{name}{sabotage}"
            order = {"name": name, "folder": str(place), "stride": stride, "moments": MOMENTS, "sabotage": sabotage}
            zygote.stdin.write(json.dumps(order) + "\n")
            zygote.stdin.flush()
            answer: dict[str, Any] = json.loads(zygote.stdout.readline() or "{}")
            answer.setdefault("error", "")
            told = Path(errors.name).read_text()
            print(told[-3000:] if answer["error"] else "")
            return answer

        yield ask
        assert zygote.stdin is not None
        zygote.stdin.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_call(ask: Ask, name: str) -> None:
    stride = int(os.environ.get("SENSORIUM_KILL_STRIDE", FEWER.get(name, 1)))
    answer = ask(name, stride=stride)
    assert not answer["error"]
    assert answer["kills"] >= 10


def test_a_save_without_its_rename_is_caught(ask: Ask) -> None:
    """Negative twin; the last, as the program stays sabotaged."""
    assert "killed" in ask("save", sabotage=True)["error"]
