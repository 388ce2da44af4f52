"""A trained model in one ``.pt`` file: what the training guides call ``best.pt`` and ``last.pt``.

```
format, family           2; the family's name
config, facts            the resolved configuration; what the task took from the data
weights                  tensors on the CPU, by name
weights_digest           of these; frozen: of the weights that are not stored
step, epoch, value       position; best validation value so far (None: never validated)
checkpoint               the native checkpoint (checkpoint.py) that it was made from: ``absolute`` and ``relative``
                         (to the file's folder) path, ``manifest``: sha256 of its manifest.json
checksum                 sha256 of all that is not the weights, as JSON
```
A family may have a file of its own for what people use of its task: ``model_state_dict`` and plain values. Then all of
this stands below ``run``, but for the weights: those there are, which are the ones whose names begin with ``part``.

Tensors and plain values only, so that ``torch.load(path, weights_only=True)`` reads it without this program. It holds
no optimizer: whoever continues from it exactly does so through the native checkpoint that it names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from sensorium import reading, tensor_files
from sensorium.config import Section
from sensorium.engine import checkpoint, rundir
from sensorium.engine.listener import Saved
from sensorium.errors import CheckpointError, printable
from sensorium.files import make_folder, replacing

FORMAT = 2
_BODY = ("config", "facts", "weights", "checksum")
RUN, PART = "run", "model_state_dict"  # in a family's own file


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
    part: str = ""

    def checksum(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        """Of these and all that is said here. Raises TypeError, ValueError or RecursionError for what is no JSON."""
        text = json.dumps([self.model_dump(exclude_defaults=True), config, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


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
        return checkpoint.Content(self.weights, {}, {}, self.head.frozen, self.head.part)


def write_pt(saved: Saved, path: Path) -> None:
    """Write the checkpoint that was just completed as one file: whole or not at all. Raises CheckpointError."""
    weights = checkpoint.load(saved.checkpoint, checkpoint.check(saved.checkpoint).family).weights
    _write(path, {**_about(saved, path, weights), "weights": weights})


def write_part(saved: Saved, path: Path, prefix: str, content: Mapping[str, Any]) -> None:
    """Write a family's own file so that a run can go on from it, too: whole or not at all. Raises CheckpointError.

    ``content``: ``model_state_dict``, the weights of the checkpoint whose names begin with ``prefix``, which they are
    without here; and plain values.
    """
    _write(path, {**content, RUN: _about(saved, path, content[PART], prefix)})


def _about(saved: Saved, path: Path, weights: Mapping[str, Tensor], part: str = "") -> dict[str, Any]:
    """All but the weights."""
    manifest = checkpoint.check(saved.checkpoint)
    head = Head(
        format=FORMAT,
        family=manifest.family,
        frozen=manifest.frozen,
        weights_digest=checkpoint.digest_of(weights),
        step=saved.step,
        epoch=saved.epoch,
        value=saved.value,
        checkpoint=native_of(saved, path.parent),
        part=part,
    )
    config, facts = rundir.stored_config(saved.run), rundir.read_facts(saved.run)["facts"]
    body = {"config": config, "facts": facts, "checksum": head.checksum(config, facts)}
    return {**head.model_dump(exclude_defaults=True), **body}


def native_of(saved: Saved, folder: Path) -> Native:
    """How a file in ``folder`` names the checkpoint that it is made from."""
    return Native(
        absolute=str(saved.checkpoint.absolute()),
        relative=os.path.relpath(saved.checkpoint, folder),
        manifest=_manifest_digest(saved.checkpoint) or "",
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    make_folder(path.parent)
    with replacing(path) as file:
        torch.save(dict(content), file)


def read_pt(path: Path) -> Portable:
    """Read a file that ``write_pt`` wrote, and prove it. Raises CheckpointError for any other; no code in it is run."""
    content = tensor_files.read(path)
    if isinstance(content, dict) and isinstance(content.get(RUN), dict):
        content = {**content[RUN], "weights": content.get(PART)}
    if not isinstance(content, dict) or not isinstance(content.get("format"), int) or "checkpoint" not in content:
        raise CheckpointError(f"{path}: not a file that this program wrote (it names no format and no checkpoint)")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}; this version reads format {FORMAT}")
    config, facts, weights, checksum = (content.pop(name, None) for name in _BODY)
    try:
        head = Head.model_validate(content, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path}: damaged at {checkpoint.first_problem(error)}") from None
    if not all(isinstance(part, dict) for part in (config, facts, weights)):
        raise CheckpointError(f"{path}: damaged; {', '.join(_BODY)} must be there")
    if problem := reading.problem_of({"config": config, "facts": facts}):
        raise CheckpointError(f"{path}: damaged; {problem}")
    if head.checksum(config, facts) != checksum:
        raise CheckpointError(f"{path}: damaged (the checksum of its values differs)")
    tensor_files.require_plain(path, weights)
    try:
        intact = checkpoint.digest_of(weights) == head.weights_digest
    except RuntimeError:  # a tensor of strides that no file of ours has
        intact = False
    if not intact:
        raise CheckpointError(f"{path}: damaged (the checksum of its weights differs)")
    return Portable(path, head, config, facts, {f"{head.part}{name}": tensor for name, tensor in weights.items()})


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
    here = Path(os.path.normpath(found.path.parent / found.head.checkpoint.relative))
    for native in (here, Path(found.head.checkpoint.absolute)):
        run = native.parent.parent
        yield run
        yield from rundir.asides(run)


def _manifest_digest(folder: Path) -> str | None:
    try:
        return hashlib.sha256(reading.read_bytes(folder / checkpoint.MANIFEST)).hexdigest()
    except OSError:
        return None
