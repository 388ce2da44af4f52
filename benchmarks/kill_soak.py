"""Killed at random moments, again and again, a run loses nothing: ours beside loops around accelerate's ``save_state``.

    OMP_NUM_THREADS=1 python benchmarks/kill_soak.py --kills 1000 --seed 0

A run of `thinking` (preset tiny; a checkpoint every step, evaluation in between, now and then two loader workers) is
killed with SIGKILL and continued as the command line does it, until so many kills are done and it has ended; a run that
ends sooner is followed by one with the next seed. Half of the kills come at any moment from the start of a life to some
steps later, half within its first, second or third save. After each kill: does every state that is there load, did the
newest step fall, is a file beside the states half-written, did a left-over outlive the next save? At the end: is
everything equal, byte for byte, to a run that nobody killed?

Beside it, killed by the same schedule in shares of their own durations, three loops around accelerate, each step one
``save_state``: that of its checkpointing guide; one with what an exact resume needs besides; that one saving into one
folder. All fall back to the newest state that loads. What differs is said in ``kill_soak_arms.py``.

All lives are forks of one process that has imported everything and runs no thread: a life costs no new interpreter.
Ends with an error when a run of ours was not as it should be.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from common import machine, table
from kill_soak_arms import Accelerate, Sensorium
from kill_soak_lives import Arm, Findings, soak

ARMS: tuple[Arm, ...] = (
    Sensorium(),
    Accelerate("accelerate, its guide", exact=False, numbered=True),
    Accelerate("accelerate, exact loop", exact=True, numbered=True),
    Accelerate("accelerate, one folder", exact=True, numbered=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # forks of a process with threads can lock up
    print(machine(), f"accelerate {version('accelerate')}", sep=", ", flush=True)
    found: list[Findings] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SENSORIUM_CACHE"] = f"{folder}/cache"
        for arm in ARMS:
            found.append(soak(arm, given.seed, Path(folder, arm.name), lambda one: one.kills >= given.kills))
            print(f"{arm.name}: {found[-1].seconds:.0f} s", *found[-1].notes[:8], sep="\n  ", flush=True)
    rows = list(zip(Findings.rows(), *(one.counts() for one in found), strict=True))
    print(table(("", *(arm.name for arm in ARMS)), rows))
    if found[0].faults:
        raise SystemExit("\n".join(found[0].notes))


if __name__ == "__main__":
    main()
