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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from sensorium.config import Section
from sensorium.engine import checkpoint, rundir
from sensorium.engine.contract import Saved
from sensorium.errors import CheckpointError
from sensorium.files import make_folder, replacing

FORMAT = 1
_DAMAGE = (
    pickle.UnpicklingError,
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
        "facts": rundir.read_json(saved.run / "facts.json")["facts"],
        "weights": content.weights,
    }
    make_folder(path.parent)
    with replacing(path) as file:
        torch.save({**head.model_dump(), **body}, file)


def read_pt(path: Path) -> Portable:
    """Read a file that ``write_pt`` wrote. Raises CheckpointError for any other, in one line."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    if not all(isinstance(part, dict) for part in body) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(f"{path}: damaged; {', '.join(_BODY)} must be there")
    if checkpoint.digest_of(weights) != head.weights_digest:
        raise CheckpointError(f"{path}: damaged (the checksum of its weights differs)")
    return Portable(path, head, config, facts, weights)


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
