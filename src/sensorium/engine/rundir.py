"""The run folder: one process group owns it, and everything about the run lies in it.

```
RUN/
    config.yaml        resolved configuration          environment.json   versions, machine, command line
    facts.json         what the task took from the data
    metrics.jsonl      one line a step, evaluation or event; no times, so that a resumed run's equals
    times.jsonl        seconds and rows per second     train.log          the console as text
    tensorboard/       event files                     checkpoints/       see checkpoint.py
    evaluation/        results as JSON, a file a split summary.json       parameters, seconds, memory, best
    report.html        with report.md and report.json
RUN.1, RUN.2 …         runs that stood here before
```
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sensorium import config as configuration
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError
from sensorium.files import copy_file, free_name, sync_folder, write_file, write_json

_LEFT_BY_A_KILL = (".lock", ".config.yaml.tmp", ".environment.json.tmp", "environment.json")  # before there was a run


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Own the run folder until the block ends; the lock goes with the process, however it ends."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = (run / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(f"{run}: cannot be used as a run folder ({error.strerror})") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            raise CheckpointError(f"{run}: in use by {owner}; wait for it or choose another folder") from None
        os.register_at_fork(after_in_child=handle.close)  # workers that outlive this process must not hold the lock
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        try:
            yield
        finally:
            if run.is_dir() and [path.name for path in run.iterdir()] == [
                ".lock"
            ]:  # nothing was begun: leave nothing behind
                (run / ".lock").unlink()
                run.rmdir()


def refuse_used(run: Path) -> None:
    """Raise ConfigError when the folder holds a run already, or something else."""
    if (run / "config.yaml").exists():
        raise ConfigError(
            f"{run}: already holds a run; `sensorium resume {run}` continues it, --run takes another folder"
        )
    strangers = [p.name for p in run.iterdir() if p.name not in _LEFT_BY_A_KILL]
    if strangers:
        raise ConfigError(f"{run}: not empty ({strangers[0]} …) and not a run; --run takes another folder")


def create(run: Path, config: RunConfig) -> None:
    """Write what stays the same during the run."""
    write_json(run / "environment.json", environment())
    store_config(run, config)


def store_config(run: Path, config: RunConfig) -> None:
    """Write the resolved configuration; what was changed on a resume is then taken by the next one, too."""
    write_file(run / "config.yaml", configuration.dump_yaml(config).encode())


def set_aside(run: Path, files: Sequence[Path] = ()) -> Path | None:
    """Rename an earlier run folder to the first free ``RUN.1``, ``RUN.2`` …; None when there is none.

    ``files``: of that run, but outside of its folder, where the next run will replace them; the folder gets them too.
    Raises CheckpointError when the run is in use.
    """
    if not run.exists():
        if not any(file.exists() for file in files):
            return None
        run.mkdir(parents=True)  # what is left of a run whose folder is gone
    with locked(run):
        for file in files:
            if file.exists():
                _second_name(file, run / file.name)
        aside = free_name(run)
        run.rename(aside)
        sync_folder(run.parent)
    return aside


def asides(run: Path) -> list[Path]:
    """The folders that ``set_aside`` made of earlier runs, newest first."""
    found = [path for path in run.parent.glob(f"{glob.escape(run.name)}.*") if path.suffix[1:].isdecimal()]
    return sorted(found, key=lambda path: int(path.suffix[1:]), reverse=True)


def branch(origin: Path, checkpoints: Sequence[Path], run: Path, files: Sequence[Path] = ()) -> Path | None:
    """Make ``run`` a run that stands where ``origin`` stood when the last of ``checkpoints`` was saved.

    It gets copies of these checkpoints and of what ``origin`` says of itself; its logs are cut back when it goes on.
    What stood in ``run`` before, possibly ``origin`` itself, is set aside with ``files``, and its new name returned. A
    kill leaves the old runs, and at most a folder ``.RUN.tmp`` that the next call clears away.
    """
    temporary = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "checkpoints").mkdir(parents=True)
    with locked(origin):
        curves = [f"tensorboard/{path.name}" for path in sorted((origin / "tensorboard").glob("*"))]
        for name in ("config.yaml", "facts.json", "environment.json", "metrics.jsonl", "times.jsonl", *curves):
            if (origin / name).exists():
                (temporary / name).parent.mkdir(exist_ok=True)
                copy_file(origin / name, temporary / name)
        for folder in checkpoints:
            copy = temporary / "checkpoints" / folder.name
            copy.mkdir()
            for file in folder.iterdir():
                copy_file(file, copy / file.name)
    sync_folder(temporary / "checkpoints")
    aside = set_aside(run, files)
    temporary.rename(run)
    sync_folder(run.parent)
    return aside


def _second_name(file: Path, name: Path) -> None:
    """A link: the file is only ever replaced as a whole, so the second name keeps what it holds now."""
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(file)
    except OSError:  # a file system without links
        copy_file(file, name)


def finished(run: Path, step: int) -> bool:
    """Whether the run was evaluated and summed up after this step: an earlier end of a run made longer is none."""
    return (run / "summary.json").exists() and read_json(run / "summary.json").get("steps") == step


def stored_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a run as plain values. Raises CheckpointError when there is none."""
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run}: not a run folder (no config.yaml in it)")
    return configuration.load_file(run / "config.yaml")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of the run folder. Raises CheckpointError when it is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return content


def environment() -> dict[str, Any]:
    """Versions, machine and command line, for the report."""
    packages = ("sensorium", "torch", "transformers", "accelerate", "numpy")
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "command": shlex.join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
