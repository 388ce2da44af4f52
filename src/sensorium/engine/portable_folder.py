"""A trained model in a folder of its own: what a training guide calls ``checkpoint_epoch_N``.

```
FOLDER/
    model.safetensors   weights by name: the file of the native checkpoint under a second name, or a copy
    model.json          the resolved configuration and the facts, which build the model around the weights; sealed
    …                   whatever the guide promises besides
    manifest.json       written last, sealed: what a ``.pt`` file says of itself (portable.py), sizes and sha256 of all
```
As from a ``.pt`` file a run goes on from it through the native checkpoint that it names, exactly, and from its weights
where that is gone. Without its manifest, a folder of these weights and ``model.json`` still opens (``exported.py``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sensorium import proof, reading
from sensorium.config import Section
from sensorium.engine import checkpoint, portable, rundir
from sensorium.engine.checkpoint import File
from sensorium.engine.listener import Saved
from sensorium.engine.portable import Head, Portable
from sensorium.errors import CheckpointError
from sensorium.files import link_or_copy, write_file

FORMAT = 1
WEIGHTS, ABOUT, MANIFEST = "model.safetensors", "model.json", "manifest.json"


class Manifest(Section):
    """``manifest.json``."""

    format: int
    head: Head
    files: dict[str, File]


class About(Section):
    """``model.json``. ``frozen``: digest of the weights that are not stored."""

    format: int
    family: str
    frozen: str
    config: dict[str, Any]
    facts: dict[str, Any]


def is_one(path: Path) -> bool:
    """Whether the folder was written here, damaged or not."""
    return (path / MANIFEST).is_file() and (path / ABOUT).is_file()


def write_model(saved: Saved, folder: Path) -> None:
    """Write the weights and what builds the model around them. Raises CheckpointError and DiskError."""
    link_or_copy(saved.checkpoint / checkpoint.WEIGHTS, folder / WEIGHTS)
    write_about(saved, folder)


def write_about(saved: Saved, folder: Path) -> None:
    """Write ``model.json`` alone, for a family whose weights are a file of its own. Raises as ``write_model``."""
    manifest = checkpoint.check(saved.checkpoint)
    about = About(
        format=FORMAT,
        family=manifest.family,
        frozen=manifest.frozen,
        config=rundir.stored_config(saved.run),
        facts=rundir.read_facts(saved.run)["facts"],
    )
    write_file(folder / ABOUT, proof.seal(about.model_dump(mode="json")))


def write_manifest(saved: Saved, folder: Path, target: Path) -> None:
    """Write the manifest over all files of ``folder``, which is to be renamed to ``target``. Raises DiskError."""
    native = checkpoint.check(saved.checkpoint)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = File(size=path.stat().st_size, sha256=sha256)
    head = Head(
        format=portable.FORMAT,
        family=native.family,
        frozen=native.frozen,
        step=saved.step,
        epoch=saved.epoch,
        value=saved.value,
        weights_digest=files[WEIGHTS].sha256,
        checkpoint=portable.native_of(saved, target),
    )
    record = Manifest(format=FORMAT, head=head, files=files)
    write_file(folder / MANIFEST, proof.seal(record.model_dump(mode="json")))


def made_from(folder: Path, saved: Saved) -> bool:
    """Whether the folder is whole by its sizes, and was made from this very checkpoint."""
    try:
        return manifest_of(folder).head.checkpoint.manifest == portable.native_of(saved, folder).manifest
    except CheckpointError:
        return False


def manifest_of(folder: Path) -> Manifest:
    """What the folder says of itself, its files there by name and size. Raises CheckpointError."""
    try:
        content = proof.unseal(reading.read_bytes(folder / MANIFEST), FORMAT)
        manifest = Manifest.model_validate(content, strict=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: no readable {MANIFEST} ({error.strerror})") from error
    except ValidationError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged at {checkpoint.first_problem(error)}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged or of another format ({error})") from error
    for name, record in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() and ".." not in Path(name).parts else None
        if size != record.size:
            found = "is missing" if size is None else f"has {size} bytes, not {record.size}; it is damaged"
            raise CheckpointError(f"{folder}: {name} {found}")
    return manifest


def about(folder: Path) -> About:
    """``model.json``, proven. Raises CheckpointError."""
    path = folder / ABOUT
    try:
        return About.model_validate(proof.unseal(reading.read_bytes(path), FORMAT), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged at {checkpoint.first_problem(error)}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def weights(folder: Path, sha256: str | None) -> dict[str, Tensor]:
    """``model.safetensors``, proven where its ``sha256`` is known. Raises CheckpointError."""
    path = folder / WEIGHTS
    try:
        if sha256 is not None:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise CheckpointError(f"{path}: is damaged (its checksum differs)")
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def read(folder: Path) -> Portable:
    """As ``portable.read_pt``. Raises CheckpointError for anything that is missing, damaged or foreign."""
    manifest, found = manifest_of(folder), about(folder)
    if (found.family, found.frozen) != (manifest.head.family, manifest.head.frozen) or WEIGHTS not in manifest.files:
        raise CheckpointError(f"{folder}: {ABOUT} and {MANIFEST} are of different models")
    tensors = weights(folder, manifest.files[WEIGHTS].sha256)
    return Portable(folder / MANIFEST, manifest.head, found.config, found.facts, tensors)


def read_any(path: Path) -> Portable:
    """A folder of this kind, or a ``.pt`` file. Raises CheckpointError."""
    return read(path) if is_one(path) else portable.read_pt(path)
