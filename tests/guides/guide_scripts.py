"""Running the scripts of ``examples/thinking`` in tests, with small random encoders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import Answer, Script

from sensorium import guide
from sensorium.engine import continuation

SCRIPTS = Path(__file__).parents[2] / "examples" / "thinking"
FLICKR8K, SOTA8GB = "train_multimodal_flickr8k", "train_multimodal_sota8gb"
ENCODERS = [
    *("--text_encoder", "random:text?width=32&layers=1&seed=0"),
    *("--image_encoder", "random:vision?width=32&layers=1&seed=0"),
    *("--audio_encoder", "random:audio?width=32&layers=1&seed=0"),
]
SIZES = ("model.width=32", "model.slots=4", "model.heads=2", "model.walker_blocks=1", "train.device=cpu")
SMALL = [*ENCODERS, *(word for size in SIZES for word in ("--set", size))]


def typed(*words: str, name: str = FLICKR8K, before: tuple[str, ...] = ()) -> Answer:
    """Runs a script as another process."""
    command = [sys.executable, *before, str(SCRIPTS / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def refused(answer: Answer, *fragments: str, lines: int = 1) -> None:
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")
    assert len(answer.err.splitlines()) == lines, answer.err
    for fragment in fragments:
        assert fragment in answer.err


def resolved(script: Script, monkeypatch: pytest.MonkeyPatch, *words: str, name: str = FLICKR8K) -> continuation.Start:
    """How a command line begins, without beginning."""
    found: list[continuation.Start] = []

    def note(family: object, start: continuation.Start, *_: object) -> None:
        found.append(start)

    with monkeypatch.context() as patch:
        patch.setattr(guide, "train", note)
        patch.setattr(guide, "leads", lambda start: False)
        answer = script(*words, name=name)
    assert answer.code == 0, answer.err
    return found[0]
