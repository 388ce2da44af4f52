"""What the benchmarks share: arms run side by side in processes of their own, medians, a table, the machine's name."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, float]
# glibc gives freed memory back at once with these, so that resident memory is what is in use.
RESIDENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def machine() -> str:
    """One line: processor, cores, GPU, versions."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return f"{model}, {os.cpu_count()} cores{gpu}, OMP_NUM_THREADS {threads}, torch {torch.__version__}"


def clock() -> float:
    """Seconds: by the clock where a GPU works, when it has done what it was told; else of processor time, which other
    work on the machine disturbs less."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def words_of(given: argparse.Namespace, *names: str) -> list[str]:
    """The options of these names as they were given, for an arm's command line; one that is None is left out."""
    told = {f"--{name.replace('_', '-')}": getattr(given, name) for name in names}
    return [word for option, value in told.items() if value is not None for word in (option, str(value))]


def side_by_side(
    script: str, arms: Sequence[Sequence[str]], repeats: int, environment: Mapping[str, str] | None = None
) -> list[list[Result]]:
    """Run ``python script *arm`` for every arm, round by round, so that a busy minute hits all of them.

    Each prints one line of JSON last. Returns the results of each arm. An arm that fails ends the benchmark.
    """
    results: list[list[Result]] = [[] for _ in arms]
    for number in range(repeats):
        for arm, found in zip(arms, results, strict=True):
            print(f"round {number + 1} of {repeats}: {' '.join(arm)}", file=sys.stderr)
            command, env = [sys.executable, script, *arm], {**os.environ, **(environment or {})}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return results


def sensorium(*words: object) -> None:
    """The command line, in a process of its own."""
    subprocess.run([sys.executable, "-m", "sensorium", *map(str, words)], check=True)


def trained_run(run: Path, family: str, preset: str, *settings: str) -> Path:
    """A finished run: trained, gone on with if it was begun, or left as it is."""
    if (run / "report.html").exists():
        return run
    if (run / "config.yaml").exists():
        sensorium("resume", run)
    else:
        sensorium("train", family, preset, "--run", run, *settings)
    return run


def median(results: Sequence[Result], key: str) -> float:
    return statistics.median(float(result[key]) for result in results)


def spread(results: Sequence[Result], key: str) -> str:
    """Median with the smallest and largest value."""
    values = sorted(float(result[key]) for result in results)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
