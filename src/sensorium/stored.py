"""Weights of a trained model wherever training left them, and what builds the model around them.

For families whose models people open by a folder's name: a run, a folder of one epoch (``engine/portable_folder.py``),
the folder that holds such epochs with ``best.json`` and ``latest`` beside them, or an export. Of an epoch's folder
the first of these is taken that is there:

1. ``model.safetensors``, proven by ``manifest.json``; a damaged one is an error, and no reason to go on to 2.
2. ``mp_rank_00_model_states.pt``: the weights under ``module``, as DeepSpeed (ZeRO 0 to 2) and plain runs write them.
3. ``zero_pp_rank_*_mp_rank_00_model_states.pt`` (ZeRO 3), put together by DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium import config as configuration
from sensorium import exported, reading, tensor_files
from sensorium.engine import checkpoint, portable_folder, rundir, session, zero_files
from sensorium.engine.contract import Family
from sensorium.engine.seeds import reseed
from sensorium.engine.settings import RunConfig, config_class
from sensorium.engine.stages import learnable
from sensorium.errors import CheckpointError

BEST, LATEST, MODULE = "best.json", "latest", "module"
DEEPSPEED, DIVIDED = "mp_rank_00_model_states.pt", "zero_pp_rank_*_mp_rank_00_model_states.pt"


@dataclass(frozen=True)
class Stored:
    """``weights`` by name, on the CPU; ``frozen``: digest of those that are not stored."""

    origin: Path
    config: RunConfig
    facts: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    frozen: str

    def give(self, task: nn.Module, *, allow_other_base: bool = False) -> None:
        """Give a task these weights: all that it learns, and nothing else. ``allow_other_base``: its frozen weights may
        be others than those that were trained upon. Raises CheckpointError."""
        parameters = learnable(task)
        frozen = session.frozen_digest(task, parameters) if allow_other_base else self.frozen
        weights, there = dict(self.weights), task.state_dict()
        for name in there.keys() - session.weights_of(task, parameters).keys():
            if name in weights and torch.equal(weights[name], there[name]):
                del weights[name]  # DeepSpeed stores a frozen weight that is tied to another one
        content = checkpoint.Content(weights, {}, {}, frozen)
        session.load_weights(task, parameters, content, self.origin)

    def prepare(self) -> None:
        """Make draws of a task that is built next those of the run's."""
        reseed(self.config.seed, "weights")


def find(family: Family, path: Path) -> Stored:
    """Open whatever ``path`` is. Raises CheckpointError that lists what was sought and what is there."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run, or a folder that training wrote")
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        return _of_run(family, path)
    if exported.is_export(path):
        content = exported.read_config(path)
        settings = {key: content[key] for key in ("family", "preset", "seed", "model", "data")}
        found = portable_folder.weights(path, None)
        if checkpoint.digest_of(found) != content["digest"]:
            raise CheckpointError(f"{path / exported.WEIGHTS}: is damaged (its checksum differs)")
        config = _config(family, settings, path / exported.CONFIG)
        return Stored(path, config, content["facts"], found, content["frozen"])
    if (path / BEST).is_file() or (path / LATEST).is_file():
        return _of_epoch(family, chosen(path))
    return _of_epoch(family, path)


def chosen(folder: Path) -> Path:
    """The best epoch of a folder of epochs, else the latest. Raises CheckpointError."""
    try:
        if (folder / BEST).is_file():
            name = rundir.read_json(folder / BEST).get("tag")
        else:
            name = reading.read_bytes(folder / LATEST).decode().strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / LATEST}: cannot be read ({error})") from error
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_dir():
        raise CheckpointError(f"{folder}: the epoch {name!r}, which {BEST} or {LATEST} names, is not there")
    return folder / name


def _config(family: Family, content: Mapping[str, Any], origin: Path) -> RunConfig:
    if content.get("family") != family.name:
        raise CheckpointError(f"{origin}: of family {content.get('family')!r}, not {family.name!r}")
    return configuration.build(config_class(family), content, str(origin))


def _of_run(family: Family, run: Path) -> Stored:
    path = session.choose_checkpoint(run, family.name, "best")
    content = session.load(path, family.name)
    facts = rundir.read_facts(run)["facts"]
    return Stored(path, session.read_config(family, run), facts, content.weights, content.frozen)


def _of_epoch(family: Family, folder: Path) -> Stored:
    if portable_folder.is_one(folder):
        found = portable_folder.read(folder)
        config = _config(family, found.config, folder)
        return Stored(folder, config, found.facts, found.weights, found.head.frozen)
    if not (folder / portable_folder.ABOUT).is_file():
        raise _nothing(folder)
    about = portable_folder.about(folder)
    stored = Stored(folder, _config(family, about.config, folder), about.facts, {}, about.frozen)
    if (folder / portable_folder.WEIGHTS).is_file():
        return replace(stored, weights=portable_folder.weights(folder, None))
    if (folder / DEEPSPEED).is_file():
        return replace(stored, weights=_module(folder))
    if any(folder.glob(DIVIDED)):
        return replace(stored, weights=zero_files.whole(folder))
    raise _nothing(folder)


def _module(folder: Path) -> dict[str, Tensor]:
    """Weights of the file as DeepSpeed names them; no code in it is run."""
    path = folder / DEEPSPEED
    if others := sorted(other.name for other in folder.glob("mp_rank_*_model_states.pt") if other != path):
        raise CheckpointError(f"{folder}: {others[0]} besides {DEEPSPEED}; a model that was cut into parts is not read")
    content = tensor_files.read(path)
    found = content.get(MODULE) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no weights under {MODULE!r}")
    weights = dict(found)
    tensor_files.require_plain(path, weights)
    return weights


def _nothing(folder: Path) -> CheckpointError:
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return CheckpointError(
        f"{folder}: no model: {portable_folder.ABOUT} with {portable_folder.WEIGHTS}, {DEEPSPEED} or {DIVIDED} were "
        f"sought; there is {there}"
    )
