"""Exported models: a folder that holds a trained model without its run, its data and its frozen encoders.

```
FOLDER/
    model.safetensors   learned weights and buffers by name
    config.json         what builds the model around them: family, settings, facts; digest of the weights, own checksum
    README.md           the model card, for people; free to be edited
```
Families write such a folder (format ``hf``); ``sensorium.load`` reads it back. Folders of other formats (``onnx``)
carry the same ``config.json`` beside files of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sensorium import config as configuration
from sensorium import reading
from sensorium.engine import checkpoint, session
from sensorium.engine.contract import Family, Loaded
from sensorium.engine.results import FOLDER as RESULTS
from sensorium.engine.results import Result, read_result
from sensorium.engine.seeds import reseed
from sensorium.engine.settings import RunConfig, config_class
from sensorium.engine.stages import learnable
from sensorium.errors import CheckpointError
from sensorium.files import write_file, write_json

FORMAT = 1
LIBRARY = "sensorium"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class _Described(BaseModel, strict=True):
    """What has to stand in ``config.json`` for the model to be built."""

    version: str
    export: str
    checkpoint: str
    family: str
    preset: str
    seed: int
    digest: str
    frozen: str
    model: dict[str, Any]
    data: dict[str, Any]
    facts: dict[str, Any]


def describe(loaded: Loaded, kind: str, data: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``config.json``. ``kind``: the format of the export; ``data``: the part of the data section that
    whoever uses the model needs; ``facts``: what the task is built from, and what the family adds to it."""
    parameters = learnable(loaded.task)
    digest = checkpoint.digest_of(session.weights_of(loaded.task, parameters))
    made = {"checkpoint": loaded.checkpoint.name, "frozen": session.frozen_digest(loaded.task, parameters)}
    return {**describe_config(loaded.config, kind, data, facts), **made, "digest": digest}


def describe_config(config: RunConfig, kind: str, data: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same but for what only the trained model tells: its checkpoint and its digests."""
    return {
        "library": LIBRARY,
        "format": FORMAT,
        "version": version("sensorium"),
        "export": kind,
        "family": config.family,
        "preset": config.preset,
        "seed": config.seed,
        "model": configuration.dump(config.model),
        "data": dict(data),
        "facts": dict(facts),
    }


def of_weights(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same description for other weights."""
    return {**content, "digest": checkpoint.digest_of(weights)}


def write_config(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``config.json`` with its checksum."""
    whole = {**content, "checksum": _checksum(content)}
    write_json(folder / CONFIG, whole)


def write_weights(folder: Path, loaded: Loaded) -> Path:
    """Write ``model.safetensors``: what a checkpoint holds of the model, without the optimizer."""
    return write_tensors(folder, session.weights_of(loaded.task, learnable(loaded.task)))


def write_tensors(folder: Path, weights: Mapping[str, Tensor], file: str = WEIGHTS) -> Path:
    """Write any weights as ``model.safetensors``, or under another name."""
    # Copies: tied weights share their memory, which the format refuses.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    path = folder / file
    checkpoint.write_tensors(path, tensors, {"format": "pt"})
    return path


def write_card(folder: Path, text: str) -> None:
    """Write the model card."""
    write_file(folder / CARD, text.encode())


def results(loaded: Loaded) -> Iterator[Result]:
    """The evaluations of exactly this checkpoint that lie in the run, a split each."""
    for path in sorted((loaded.run / RESULTS).glob("*.json")):
        result = read_result(path)
        if result.split == result.name and result.checkpoint == loaded.checkpoint.name:
            yield result


def results_text(loaded: Loaded) -> str:
    """Markdown: every metric that has a chance level, of every split that this checkpoint was evaluated on."""
    found = []
    for result in results(loaded):
        metrics = result.evaluation.metrics
        rows = [
            (name, f"{value:.2f}", f"{metrics[f'chance/{name}']:.2f}")
            for name, value in metrics.items()
            if f"chance/{name}" in metrics
        ]
        found.append(f"Split `{result.split}`:\n\n" + table(("metric", "value", "chance"), rows))
    return "\n\n".join(found) or "This checkpoint was not evaluated; `sensorium evaluate RUN` does it."


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_export(folder: Path) -> bool:
    """Whether the folder looks like an export: it has a ``config.json`` and is no run."""
    return (folder / CONFIG).is_file() and not (folder / "config.yaml").exists()


def read_config(folder: Path) -> dict[str, Any]:
    """The proven content of ``config.json``. Raises CheckpointError: damaged, edited, foreign, of another format."""
    path = folder / CONFIG
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("library") != LIBRARY:
        raise CheckpointError(f"{path}: was not written by `sensorium export`; give a run folder or an export")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')}; this version reads format {FORMAT}")
    if content.pop("checksum", None) != _checksum(content):
        raise CheckpointError(
            f"{path}: is damaged or was edited (its checksum differs); export anew, or load with `data={{...}}`"
        )
    try:
        _Described.model_validate(content)
    except ValidationError as error:
        wrong = ", ".join(sorted(str(problem["loc"][0]) for problem in error.errors()))
        raise CheckpointError(f"{path}: is no description of an export; missing or of another kind: {wrong}") from None
    return content


def read(family: Family, folder: Path) -> Loaded:
    """The model of an export, ready for use on the CPU, in evaluation mode; its facts are those of ``config.json``.

    Every value and every weight is proven. Raises CheckpointError naming what is missing, damaged or foreign.
    """
    content = read_config(folder)
    if content["family"] != family.name:
        raise CheckpointError(f"{folder / CONFIG}: of family {content['family']!r}, not {family.name!r}")
    if not (folder / WEIGHTS).is_file():
        what = f"an export of format {content['export']!r}; its {CARD} says how to use it"
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing" + (f": {what}" if content["export"] != "hf" else ""))
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: is damaged ({error})") from error
    if checkpoint.digest_of(weights) != content["digest"]:
        raise CheckpointError(f"{folder / WEIGHTS}: is damaged (its checksum differs)")
    settings = {key: content[key] for key in ("family", "preset", "seed", "model", "data")}
    config = configuration.build(config_class(family), settings, str(folder / CONFIG))
    reseed(config.seed, "weights")
    try:
        task = family.task(config, content["facts"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: its facts describe no model of {family.name} ({error})") from error
    state = checkpoint.Content(weights, {}, {}, content["frozen"])
    session.load_weights(task, learnable(task), state, folder / WEIGHTS)
    return Loaded(folder, folder / WEIGHTS, config, content["facts"], task.eval(), content["digest"])


def _checksum(content: Mapping[str, Any]) -> str:
    """sha256 of the values in a fixed order, whatever the line breaks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
