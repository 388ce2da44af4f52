"""Two processes train as one: same order, same gradient, one writer."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import TOY, lines, toy_config

from sensorium.engine import loop

STILL = {"model": {"dropout": 0.0}, "train": {"steps": 6}, "checkpoint": {"every_steps": 2}}
PROGRAM = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from helpers import TOY, toy_config
    from sensorium.engine import loop
    loop.train(TOY, toy_config(json.loads(sys.argv[3])), Path(sys.argv[2]), resume=len(sys.argv) > 4, quiet=True)
    """
)


def launch(run: Path, overrides: str, *more: str, processes: int = 2) -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(run), overrides, *more]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "ACCELERATE_USE_CPU": "1"}
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **address, "RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(processes)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    import json

    launch(tmp_path / "two", json.dumps(STILL))
    loop.train(TOY, toy_config(STILL), tmp_path / "one", quiet=True)
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["kind"] for line in one] == [line["kind"] for line in two]
    for a, b in zip(one, two, strict=True):
        if a["kind"] == "train":
            # The sums are taken in another order: fp32 rounding, carried through six steps of AdamW.
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    launch(tmp_path / "two", json.dumps({**STILL, "train": {"steps": 8}}), "resume")
    launch(tmp_path / "eight", json.dumps({**STILL, "train": {"steps": 8}}))
    resumed, whole = (
        [line for line in lines(tmp_path / name / "metrics.jsonl") if line["kind"] == "train"]
        for name in ("two", "eight")
    )
    assert resumed == whole


def test_bad_samples_are_counted_over_all_ranks(tmp_path: Path) -> None:
    import json

    from sensorium.engine import rundir

    bad = {"train": {"steps": 5}, "data": {"broken": [1, 2, 3, 4]}, "evaluate": {"every_epochs": None, "test": False}}
    skipping = {**bad, "loader": {"bad_samples": "skip", "max_bad": 99}}
    launch(tmp_path / "two", json.dumps(skipping))
    loop.train(TOY, toy_config(skipping), tmp_path / "one", quiet=True)
    one, two = (rundir.read_json(tmp_path / name / "summary.json")["replaced_samples"] for name in ("one", "two"))
    assert one == two > 4
