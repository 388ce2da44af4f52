"""The run folder: one process group owns it, and everything about the run lies in it.

```
RUN/
    config.yaml        resolved configuration, sealed  environment.json   versions, machine, command line
    facts.json         what the task took from the data, sealed (proof.py)
    metrics.jsonl      one line a step, evaluation or event; no times, so that a resumed run's equals
    times.jsonl        seconds and rows per second     train.log          the console as text
    tensorboard/       event files                     checkpoints/       see checkpoint.py
    evaluation/        results as JSON, a file a split summary.json       parameters, seconds, memory, best
    report.html        with report.md and report.json  passes.jsonl       each judgement of the test split
RUN.1, RUN.2 …         runs that stood here before
```
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sensorium import config as configuration
from sensorium import proof, reading
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, ConfigError, printable
from sensorium.files import (
    copy_file,
    free_name,
    link_or_copy,
    make_folder,
    open_file,
    remove,
    rename,
    sync,
    told,
    write_file,
    write_json,
)

_FACTS = 1  # format of facts.json
_SEAL = "# sha256 "  # begins the last line of config.yaml
_EDITED = "\n# edited\n"  # what who changes it by hand writes there
_LEFT_BY_A_KILL = (".lock", ".config.yaml.tmp", ".environment.json.tmp", "environment.json")  # before there was a run


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Own the run folder until the block ends; the lock goes with the process, however it ends.

    Raises CheckpointError naming the process that owns it, DiskError for a place that cannot hold or lock a folder.
    """
    if printable(str(run)) != str(run):
        raise ConfigError(
            f"{str(run)!r}: has signs in its name that cannot be written down; --run takes another folder"
        )
    make_folder(run)
    with open_file(run / ".lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            raise CheckpointError(f"{run}: in use by {owner}; wait for it or choose another folder") from None
        except OSError as error:
            raise ConfigError(
                f"{run}: this file system cannot lock files ({error.strerror}); take a run folder on another one"
            ) from error
        os.register_at_fork(after_in_child=handle.close)  # workers that outlive this process must not hold the lock
        with told(run / ".lock"):
            handle.truncate(0)
            os.write(handle.fileno(), f"process {os.getpid()} on {platform.node()}".encode())  # nothing left to flush
        try:
            yield
        finally:
            if run.is_dir() and {path.name for path in run.iterdir()} == {".lock"}:
                remove(run)  # nothing was begun: leave nothing behind


def identity(run: Path) -> int | None:
    """Number of the lock's file, by which processes know whether they see one folder. Not by its content: on file
    systems of a network, to close a file that is locked unlocks it."""
    try:
        return (run / ".lock").stat().st_ino
    except OSError:
        return None


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
    text = configuration.dump_yaml(config)
    write_file(run / "config.yaml", (text + _seal(text)).encode())


def _seal(text: str) -> str:
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def set_aside(run: Path, files: Sequence[Path] = ()) -> Path | None:
    """Rename an earlier run folder to the first free ``RUN.1``, ``RUN.2`` …; None when there is none.

    ``files``: of that run, but outside of its folder, where the next run will replace them; the folder gets them too.
    Raises CheckpointError when the run is in use.
    """
    if not run.exists():
        if not any(file.exists() for file in files):
            return None
        make_folder(run)  # what is left of a run whose folder is gone
    with locked(run):
        for file in files:
            if file.exists():
                _second_name(file, run / file.name)
        aside = free_name(run)
        rename(run, aside)
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
    remove(temporary)
    make_folder(temporary / "checkpoints")
    with locked(origin):
        for name in ("config.yaml", "facts.json", "environment.json", "metrics.jsonl", "times.jsonl"):
            if (origin / name).exists():
                copy_file(origin / name, temporary / name)
        folders = {folder: temporary / "checkpoints" / folder.name for folder in checkpoints}
        if (origin / "tensorboard").is_dir():
            folders[origin / "tensorboard"] = temporary / "tensorboard"
        for folder, copy in folders.items():
            make_folder(copy)
            for file in folder.iterdir():
                copy_file(file, copy / file.name)
    sync(temporary / "checkpoints")
    aside = set_aside(run, files)
    rename(temporary, run)
    return aside


def _second_name(file: Path, name: Path) -> None:
    """A link: the file is only ever replaced as a whole, so the second name keeps what it holds now. Of a folder each
    file has one."""
    remove(name)
    if not file.is_dir():
        return link_or_copy(file, name)
    make_folder(name)
    for inner in file.iterdir():
        _second_name(inner, name / inner.name)


def finished(run: Path, step: int) -> bool:
    """Whether the run was evaluated, summed up and reported on after this step: an earlier end of a run made longer is
    none, nor is a damaged summary, which is then made anew."""
    if not (run / "report.html").exists():
        return False
    try:
        return (run / "summary.json").exists() and read_json(run / "summary.json").get("steps") == step
    except CheckpointError:
        return False


def stored_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a run as plain values. Raises CheckpointError when there is none, or it is not what
    was written: half of one would silently mean the defaults of the rest."""
    path = run / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"{run}: not a run folder (no config.yaml in it)")
    try:
        text = reading.read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    body = text.rpartition(_SEAL)[0]
    if text != body + _seal(body) and not text.endswith(_EDITED):
        raise CheckpointError(
            f"{path}: damaged, cut off or edited (its checksum differs); if the edit was meant, make its last line: "
            f"{_EDITED.strip()}"
        )
    return configuration.load_file(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of the run folder. Raises CheckpointError when it is missing or damaged."""
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}; expected an object")
    return content


def write_facts(run: Path, fingerprints: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Write what the task took from the data, and which data those were."""
    content = {"format": _FACTS, "fingerprints": dict(fingerprints), "facts": dict(facts)}
    write_file(run / "facts.json", proof.seal(content))


def read_facts(run: Path) -> dict[str, Any]:
    """``fingerprints`` of the splits and ``facts``, proven. Raises CheckpointError."""
    path = run / "facts.json"
    try:
        content = proof.unseal(reading.read_bytes(path), _FACTS)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not all(isinstance(content.get(name), dict) for name in ("fingerprints", "facts")):
        raise CheckpointError(f"{path}: cannot be read (it holds no fingerprints and facts)")
    return content


def versions() -> dict[str, str]:
    """Of the packages that make a run what it is."""
    found: dict[str, str] = {}
    for package in ("sensorium", "torch", "transformers", "accelerate", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment() -> dict[str, Any]:
    """Versions, machine and command line, for the report."""
    return {
        **versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "command": printable(shlex.join(sys.argv)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
