"""Checkpoints: folders that appear by one rename, carry their own proof, and hold no pickle.

```
checkpoints/step_00000120/
    task.safetensors        learnable weights and buffers, by name
    optimizer.safetensors   "<parameter>/<kind>" -> tensor
    state.json              step, stage ends, best value, guard, scaler: plain values
    manifest.json           written last, sealed (proof.py): format, family, step, sizes and sha256 of the other files
```
Every file is fsynced, then the folder, then it is renamed, then its parent is fsynced. A folder whose name starts
with a dot is unfinished or on its way out and is removed by the next save.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sensorium import proof, reading
from sensorium.config import Section
from sensorium.errors import CheckpointError
from sensorium.files import make_folder, remove, rename, require_space, write_by_library, write_file

FORMAT = 2
_PREFIX = "step_"
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "task.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


class File(Section):
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Section):
    """What a checkpoint folder says of itself."""

    format: int
    family: str
    step: int = Field(ge=0)
    frozen: str  # digest of the weights that are not stored
    files: dict[str, File]


@dataclass(frozen=True)
class Content:
    """What is saved and what is loaded."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    frozen: str = ""  # digest of the weights that are not stored
    part: str = ""  # these are the weights whose names begin so; others stay as they are


def name_of(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / name_of(step)


def step_of(folder: Path) -> int | None:
    """The step that the name of a checkpoint says; None where it is no number."""
    number = folder.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else None


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def require_room(run: Path, size: int, keep: int) -> None:
    """Raise DiskError when the checkpoints of a run, of ``size`` bytes each, will not all find room: ``keep`` of them,
    the best, and the one that is being written."""
    there = sum(file.stat().st_size for file in (run / "checkpoints").rglob("*") if file.is_file())
    what = f"a run that keeps {keep} checkpoints, the best and the one being written, {size:,} bytes each,"
    require_space(run, max(0, (keep + 2) * size - there), what)


def save(run: Path, family: str, step: int, content: Content) -> Path:
    """Write the checkpoint of ``step`` and return its folder."""
    target = folder_of(run, step)
    make_folder(target.parent)
    clear_leftovers(run)
    temporary = target.with_name(f".{target.name}.tmp")
    make_folder(temporary)
    # Copies: tied weights share their memory, which the format refuses.
    weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in content.weights.items()}
    write_tensors(temporary / WEIGHTS, weights)
    write_tensors(temporary / OPTIMIZER, content.optimizer)
    write_file(temporary / STATE, json.dumps(content.state, indent=1).encode())
    files = {}
    for name in (WEIGHTS, OPTIMIZER, STATE):
        with (temporary / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = File(size=(temporary / name).stat().st_size, sha256=sha256)
    record = Manifest(format=FORMAT, family=family, step=step, frozen=content.frozen, files=files)
    write_file(temporary / MANIFEST, proof.seal(record.model_dump()))
    if os.path.lexists(target):  # same step again, after a resume from an older checkpoint
        drop(target)
    rename(temporary, target)
    return target


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a new safetensors file. Raises DiskError."""

    def write(path: Path) -> None:
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:
            if (found := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        path.chmod(0o644)  # the library gives 0600

    write_by_library(path, write)


def drop(folder: Path) -> None:
    """Rename away first: a half-deleted folder must not look like a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.old")
    rename(folder, doomed)
    remove(doomed)


def clear_leftovers(run: Path) -> None:
    for folder in (run / "checkpoints").glob(f".{_PREFIX}*"):
        remove(folder)


def named(run: Path) -> list[Path]:
    """All that has the name of a checkpoint, whole or not, oldest first. Raises CheckpointError when that cannot be
    looked up: a run whose checkpoints are out of reach must not begin anew."""
    folder = run / "checkpoints"
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith(_PREFIX))
    except FileNotFoundError as error:
        if folder.is_symlink():
            raise CheckpointError(f"{folder}: a link to {folder.readlink()}, which is not there") from error
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error


def check(folder: Path) -> Manifest:
    """Read and prove a checkpoint's manifest and compare names and sizes. Raises CheckpointError with the reason."""
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: is a link, not a checkpoint")
    try:
        content = proof.unseal(reading.read_bytes(folder / MANIFEST, follow=False), FORMAT)
        manifest = Manifest.model_validate(content, strict=True)
    except OSError as error:
        reason = f"no readable {MANIFEST}: {error.strerror}"
        raise CheckpointError(f"{folder}: not a complete checkpoint ({reason})") from error
    except ValidationError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is not one of ours ({first_problem(error)})") from None
    except ValueError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged or of another format ({error})") from error
    if folder.name.startswith(_PREFIX) and folder.name != folder_of(folder, manifest.step).name:
        raise CheckpointError(f"{folder}: holds step {manifest.step}, not that of its name")
    if set(manifest.files) != {WEIGHTS, OPTIMIZER, STATE}:
        raise CheckpointError(f"{folder}: {MANIFEST} lists other files than a checkpoint has")
    for name, record in manifest.files.items():
        try:
            found = (folder / name).lstat()
        except OSError as error:
            raise CheckpointError(f"{folder}: {name} is missing ({error.strerror})") from error
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{folder}: {name} is missing (what has its name is no regular file)")
        if found.st_size != record.size:
            raise CheckpointError(f"{folder}: {name} has {found.st_size} bytes, not {record.size}; it is damaged")
    return manifest


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's problems in one line, whatever the name of the key."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))[:60]!r}: {problem['msg']}"


def prove(folder: Path, family: str) -> Manifest:
    """Prove every byte of a checkpoint. Raises CheckpointError."""
    manifest = check(folder)
    if manifest.family != family:
        raise CheckpointError(f"{folder}: a checkpoint of family {manifest.family!r}, not {family!r}")
    for name, record in manifest.files.items():
        try:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:  # pruned meanwhile by the run itself
            raise CheckpointError(f"{folder}: cannot be read ({error})") from error
        if digest != record.sha256:
            raise CheckpointError(f"{folder}: {name} is damaged (its checksum differs)")
    return manifest


def load(folder: Path, family: str) -> Content:
    """Read a checkpoint and prove every byte of it. Raises CheckpointError."""
    manifest = prove(folder, family)
    try:
        state = reading.parse_json(
            reading.read_bytes(folder / STATE), infinite=True
        )  # a validation loss may be infinite
        content = Content(load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER), state, manifest.frozen)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}: {STATE} holds a {type(state).__name__}, not an object")
    return content


def complete(run: Path) -> tuple[list[Path], list[str]]:
    """Complete checkpoints, oldest first, and one line for each that had to be passed over."""
    good, problems = [], []
    for folder in named(run):
        try:
            check(folder)
            good.append(folder)
        except CheckpointError as error:
            problems.append(f"passed over: {error}")
    return good, problems


def newest(run: Path, family: str) -> Iterator[tuple[Path, Content | str]]:
    """Checkpoints from the newest down: the content, or the line that says why it cannot be used."""
    good, problems = complete(run)
    for problem in problems:
        yield run, problem
    for folder in reversed(good):
        try:
            yield folder, load(folder, family)
        except CheckpointError as error:
            yield folder, f"passed over: {error}"


def prune(run: Path, keep: int, besides: Collection[int], newest: int) -> None:
    """Keep the newest ``keep`` checkpoints and those of the steps ``besides``. ``newest``: step of the one just saved;
    later ones, which were passed over as damaged, neither count nor go."""
    folders = [f for f in named(run) if f <= folder_of(run, newest)]
    for folder in folders[:-keep]:
        if folder not in {folder_of(run, step) for step in besides}:
            drop(folder)
