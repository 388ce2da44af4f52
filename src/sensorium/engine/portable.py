"""A trained model in one ``.pt`` file: what the training guides call ``best.pt`` and ``last.pt``.

```
format, family           1; the family's name
config, facts            the resolved configuration; what the task took from the data
weights                  tensors on the CPU, by name
weights_digest           of these; frozen: of the weights that are not stored
step, epoch, value       position; best validation value so far (None: never validated)
checkpoint               the native checkpoint (checkpoint.py) that it was made from: ``absolute`` and ``relative``
                         (to the file's folder) path, ``manifest``: sha256 of its manifest.json
```
Tensors and plain values only, so that ``torch.load(path, weights_only=True)`` reads it without this program. It holds
no optimizer: whoever continues from it exactly does so through the native checkpoint that it names.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from sensorium import reading
from sensorium.config import Section
from sensorium.engine import checkpoint, rundir
from sensorium.engine.contract import Saved
from sensorium.errors import CheckpointError, printable
from sensorium.files import replacing

FORMAT = 1
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
)  # what torch.load was seen to raise for files with flipped bits
_BODY = ("config", "facts", "weights")


class Native(Section):
    """Where the native checkpoint was, and how to know it again."""

    absolute: str
    relative: str
    manifest: str

    @field_validator("absolute", "relative")
    @classmethod
    def _of_a_run(cls, path: str) -> str:
        """The folder of a checkpoint in a run, as the engine names them."""
        parts = Path(path).parts
        if printable(path) != path or len(parts) < 2 or parts[-2] != "checkpoints" or not parts[-1].startswith("step_"):
            raise ValueError("no folder of a checkpoint")
        return path


class Head(Section):
    """What a file says besides its contents."""

    format: int
    family: str
    frozen: str
    step: int
    epoch: float
    value: float | None = Field(allow_inf_nan=True)
    weights_digest: str
    checkpoint: Native


@dataclass(frozen=True)
class Portable:
    """A file that was read. ``weights``: tensors on the CPU by name."""

    path: Path
    head: Head
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    weights: dict[str, Tensor]

    def content(self) -> checkpoint.Content:
        """As a checkpoint without optimizer and state."""
        return checkpoint.Content(self.weights, {}, {}, self.head.frozen)


def write_pt(saved: Saved, path: Path) -> None:
    """Write the checkpoint that was just completed as one file: whole or not at all. Raises CheckpointError."""
    family = checkpoint.check(saved.checkpoint).family
    content = checkpoint.load(saved.checkpoint, family)
    head = Head(
        format=FORMAT,
        family=family,
        frozen=content.frozen,
        weights_digest=checkpoint.digest_of(content.weights),
        step=saved.step,
        epoch=saved.epoch,
        value=saved.value,
        checkpoint=Native(
            absolute=str(saved.checkpoint.absolute()),
            relative=os.path.relpath(saved.checkpoint, path.parent),
            manifest=_manifest_digest(saved.checkpoint) or "",
        ),
    )
    body = {
        "config": rundir.stored_config(saved.run),
        "facts": rundir.stored_facts(saved.run)["facts"],
        "weights": content.weights,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save({**head.model_dump(), **body}, file)


def read_pt(path: Path) -> Portable:
    """Read a file that ``write_pt`` wrote. Raises CheckpointError for any other, in one line. Runs no code in it."""
    try:
        with reading.open_plain(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign pickle protocol
            _require_stored(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except IsADirectoryError:
        raise CheckpointError(f"{path}: a folder; give a .pt file that training wrote") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or 'damaged'})") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: damaged, or holds more than tensors and plain values") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int) or "checkpoint" not in content:
        raise CheckpointError(f"{path}: not a file that this program wrote (it names no format and no checkpoint)")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}; this version reads format {FORMAT}")
    body = [content.pop(name, None) for name in _BODY]
    try:
        head = Head.model_validate(content)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(f"{path}: damaged at {place!r} ({error.errors()[0]['msg']})") from None
    config, facts, weights = body
    if not all(isinstance(part, dict) for part in body):
        raise CheckpointError(f"{path}: damaged; {', '.join(_BODY)} must be there")
    if problem := reading.problem_of({"config": config, "facts": facts}):
        raise CheckpointError(f"{path}: damaged; {problem}")
    if not all(isinstance(name, str) and _is_plain(tensor) for name, tensor in weights.items()):
        raise CheckpointError(f"{path}: damaged; its weights must be plain tensors by name")
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > path.stat().st_size:
        raise CheckpointError(f"{path}: damaged; its weights claim more numbers than the file holds")
    if checkpoint.digest_of(weights) != head.weights_digest:
        raise CheckpointError(f"{path}: damaged (the checksum of its weights differs)")
    return Portable(path, head, config, facts, weights)


def _require_stored(file: BinaryIO) -> None:
    """torch packs nothing: a packed member may be a bomb. Raises BadZipFile."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise zipfile.BadZipFile("a packed member")
    file.seek(0)


def _is_plain(tensor: object) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"


def find_native(found: Portable) -> Path | None:
    """The native checkpoint that a file was made from; None when it is gone.

    Looked for where the file says, beside the file, and in runs that were set aside since (``run.1`` …); known by its
    manifest, not by its place, as a later run may have made its own of the same step there.
    """
    name = Path(found.head.checkpoint.absolute).name
    for run in _runs(found):
        native = run / "checkpoints" / name
        if _manifest_digest(native) == found.head.checkpoint.manifest:
            return native
    return None


def _runs(found: Portable) -> Iterator[Path]:
    """Folders that may be the run, likely ones first."""
    yield found.path.parent  # it was set aside with its run
    here = found.path.parent / found.head.checkpoint.relative
    for native in (here, Path(found.head.checkpoint.absolute)):
        run = native.parent.parent
        yield run
        yield from rundir.asides(run)


def _manifest_digest(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / checkpoint.MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None
