"""Thirty kills at random moments of a real run; and runs that are not safe, which the same killing must find out.

``benchmarks/kill_soak.py`` does so a thousand times, beside accelerate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

PROGRAM = textwrap.dedent(
    """
    import dataclasses, hashlib, json, shutil, sys
    from pathlib import Path
    import torch
    sys.path.insert(0, sys.argv[1])
    from kill_soak_arms import Sensorium
    from kill_soak_lives import soak
    from safetensors.torch import save_file
    from sensorium import proof
    from sensorium.engine import checkpoint, finish, loop, tracking

    def save_into_place(run, family, step, content):
        target = checkpoint.folder_of(run, step)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        save_file({name: tensor.clone() for name, tensor in content.weights.items()}, target / checkpoint.WEIGHTS)
        save_file(content.optimizer, target / checkpoint.OPTIMIZER)
        (target / checkpoint.STATE).write_text(json.dumps(content.state))
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}
        files = {name: checkpoint.File(size=(target / name).stat().st_size, sha256=sums[name]) for name in sums}
        record = {"format": checkpoint.FORMAT, "family": family, "step": step, "frozen": content.frozen}
        sealed = proof.seal({**record, "files": {name: file.model_dump() for name, file in files.items()}})
        (target / checkpoint.MANIFEST).write_bytes(sealed)
        return target

    class Unsafe(Sensorium):
        def live(self, run, seed, workers, meter):
            # The real one takes as long as ten steps, and is not what this is about.
            finish.write_report = lambda run: (run / "report.html").write_text("</html>")
            if self.name == "saves into place":
                checkpoint.save = save_into_place
            if self.name == "draws from history":
                loop.reseed = lambda seed, *position: None
            if self.name == "keeps what it logged":
                tracking.cut_back = lambda path, step: None
            super().live(run, seed, workers, meter)

    torch.set_num_threads(1)
    folder, seed, kills = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    found = {"safe": soak(Sensorium(), seed, folder / "safe", lambda one: one.kills >= kills)}
    for name in sys.argv[5:]:
        found[name] = soak(Unsafe(name, 8), seed, folder / name, lambda one: one.faults or one.kills >= kills)
    print(json.dumps({name: dataclasses.asdict(one) for name, one in found.items()}))
    """
)
KILLS = 30
UNSAFE = {"saves into place": "torn", "draws from history": "different", "keeps what it logged": "different"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is found over all kills of a safe run, and until something is found of the others."""
    folder = tmp_path_factory.mktemp("soak")
    arguments = [str(BENCHMARKS), str(folder), "0", str(KILLS), *UNSAFE]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SENSORIUM_CACHE": str(folder / "cache")}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    soaks: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return soaks


def test_thirty_kills_lose_nothing(found: dict[str, dict[str, Any]]) -> None:
    safe = found["safe"]
    assert safe["notes"] == []
    assert safe["kills"] == KILLS
    assert safe["runs"] >= 1
    assert safe["in_saves"] >= 5  # half of the kills are meant to be


@pytest.mark.parametrize(("name", "fault"), UNSAFE.items(), ids=list(UNSAFE))
def test_what_is_not_safe_is_found(found: dict[str, dict[str, Any]], name: str, fault: str) -> None:
    assert found[name][fault] > 0, found[name]
