"""Evaluations as files: ``RUN/evaluation/<name>.json``, written after an evaluation, read by the report.

One file holds an ``Evaluation`` of contract.py as plain JSON, with ``split``, ``step`` and ``checkpoint`` beside it;
its details and pictures are files of their own, ``RUN/evaluation/<name>/<detail>.json`` and ``…/<picture>``.
``RUN/passes.jsonl`` has a line for each time that the test split was judged: who looks often chooses.
A metric ``chance/<name>`` is what guessing would give for the metric ``<name>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sensorium import reading
from sensorium.engine.contract import Card, Evaluation, Gallery, Shown
from sensorium.engine.files import json_line, plain
from sensorium.errors import CheckpointError
from sensorium.files import make_folder, open_file, told, write_file, write_json

FOLDER, PASSES = "evaluation", "passes.jsonl"
_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class Result:
    """One evaluation of a run. ``name`` is the file's stem, ``checkpoint`` the folder whose weights were judged."""

    name: str
    evaluation: Evaluation
    split: str | None = None
    step: int | None = None
    checkpoint: str | None = None

    @property
    def title(self) -> str:
        """The name as the page shows it."""
        return self.name.replace("_", " ")


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Plain values; numbers that are not finite become the words ``nan``, ``inf`` and ``-inf``."""
    content: dict[str, Any] = plain(asdict(replace(evaluation, details={}, pictures={})))
    del content["details"], content["pictures"]
    return content


def evaluation_from_json(content: Mapping[str, Any]) -> Evaluation:
    """The inverse of ``evaluation_to_json``. Raises CheckpointError naming the field that does not fit."""
    known = {key: content[key] for key in ("metrics", "tables", "galleries", "warnings") if key in content}
    try:
        evaluation = _EVALUATION.validate_python(known)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"not an evaluation: {place}: {problem['msg']}") from None
    for table in evaluation.tables:
        for row in table.rows:
            if len(row) != len(table.columns):
                raise CheckpointError(f"table {table.title!r}: a row of {len(row)} for {len(table.columns)} columns")
    return evaluation


def write_result(run: Path, result: Result) -> Path:
    """Write ``RUN/evaluation/<name>.json`` atomically, after its details and pictures, and return its path."""
    head = {"split": result.split, "step": result.step, "checkpoint": result.checkpoint}
    folder, evaluation = run / FOLDER / result.name, result.evaluation
    make_folder(folder if evaluation.details or evaluation.pictures else folder.parent)
    for name, values in evaluation.details.items():
        write_json(folder / f"{name}.json", plain(values))
    for name, data in evaluation.pictures.items():
        write_file(folder / name, data)
    placed = {name: f"{FOLDER}/{result.name}/{name}" for name in evaluation.pictures}
    galleries = tuple(_placed(gallery, placed) for gallery in evaluation.galleries)
    path = folder.parent / f"{result.name}.json"
    write_json(path, {**head, **evaluation_to_json(replace(evaluation, galleries=galleries))})
    if result.name == "test":  # not a baseline that stands beside it
        with told(run / PASSES), open_file(run / PASSES, "a") as file:
            file.write(json_line(head))
    return path


def _placed(gallery: Gallery, paths: Mapping[str, str]) -> Gallery:
    """With the paths of stored pictures where their names stood."""

    def shown(one: Shown) -> Shown:
        return replace(one, image=paths.get(one.image, one.image)) if one.image else one

    cards = tuple(Card(shown(card.query), tuple(shown(hit) for hit in card.found)) for card in gallery.cards)
    return replace(gallery, cards=cards)


def read_result(path: Path) -> Result:
    """Read one evaluation. Raises CheckpointError with the file and the reason."""
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}; expected an evaluation")
    try:
        evaluation = evaluation_from_json(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    split, step, judged = (content.get(name) for name in ("split", "step", "checkpoint"))
    if not (isinstance(split, str | None) and isinstance(step, int | None) and isinstance(judged, str | None)):
        raise CheckpointError(f"{path}: not an evaluation: split, step and checkpoint are a name, a number, a name")
    return Result(path.stem, evaluation, split, step, judged)
