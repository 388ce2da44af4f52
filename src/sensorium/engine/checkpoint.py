"""Checkpoints: folders that appear by one rename, carry their own proof, and hold no pickle.

```
checkpoints/step_00000120/
    task.safetensors        learnable weights and buffers, by name
    optimizer.safetensors   "<parameter>/<kind>" -> tensor
    state.json              step, stage ends, best value, guard, scaler: plain values
    manifest.json           written last: format, family, sizes and sha256 of the other files
```
Every file is fsynced, then the folder, then it is renamed, then its parent is fsynced. A folder whose name starts
with a dot is unfinished or on its way out and is removed by the next save.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sensorium.config import Section
from sensorium.errors import CheckpointError
from sensorium.files import make_folder, remove, rename, require_space, write_by_library, write_file

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "task.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


class File(Section):
    size: int
    sha256: str


class Manifest(Section):
    """What a checkpoint folder says of itself."""

    format: int
    family: str
    step: int
    frozen: str  # digest of the weights that are not stored
    files: dict[str, File]


@dataclass(frozen=True)
class Content:
    """What is saved and what is loaded."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    frozen: str = ""  # digest of the weights that are not stored


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def require_room(run: Path, size: int, keep: int) -> None:
    """Raise DiskError when the checkpoints of a run, of ``size`` bytes each, will not all find room: the newest
    ``keep``, the best, and the one that is being written."""
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
    write_file(temporary / MANIFEST, record.model_dump_json(indent=1).encode())
    if target.exists():  # same step again, after a resume from an older checkpoint
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
    for folder in (run / "checkpoints").glob(".step_*"):
        remove(folder)


def check(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and compare the sizes. Raises CheckpointError with the reason."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    except OSError as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint (no readable {MANIFEST})") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged or of another format") from error
    if manifest.format != FORMAT:
        raise CheckpointError(f"{folder}: format {manifest.format}; this version reads format {FORMAT}")
    if set(manifest.files) != {WEIGHTS, OPTIMIZER, STATE}:
        raise CheckpointError(f"{folder}: {MANIFEST} lists other files than a checkpoint has")
    for name, record in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{folder}: {name} has {path.stat().st_size} bytes, not {record.size}; it is damaged")
    return manifest


def load(folder: Path, family: str) -> Content:
    """Read a checkpoint and prove every byte of it. Raises CheckpointError."""
    manifest = check(folder)
    if manifest.family != family:
        raise CheckpointError(f"{folder}: a checkpoint of family {manifest.family!r}, not {family!r}")
    try:
        for name, record in manifest.files.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                    raise CheckpointError(f"{folder}: {name} is damaged (its checksum differs)")
        state = json.loads((folder / STATE).read_text())
        return Content(load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER), state, manifest.frozen)
    except (SafetensorError, ValueError, OSError) as error:  # OSError: pruned meanwhile by the run itself
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error


def complete(run: Path) -> tuple[list[Path], list[str]]:
    """Complete checkpoints, oldest first, and one line for each that had to be passed over."""
    good, problems = [], []
    for folder in sorted((run / "checkpoints").glob("step_*")):
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


def prune(run: Path, keep: int, best: int | None, newest: int) -> None:
    """Keep the newest ``keep`` checkpoints and the best one. ``newest``: step of the one just saved; later ones, which
    were passed over as damaged, neither count nor go."""
    folders = [f for f in sorted((run / "checkpoints").glob("step_*")) if f <= folder_of(run, newest)]
    for folder in folders[:-keep]:
        if best is None or folder != folder_of(run, best):
            drop(folder)
