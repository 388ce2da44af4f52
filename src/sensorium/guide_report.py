"""The report that the guides promise at every end of a run, also one by Ctrl-C: ``report_<UTC time>.json`` and ``.md``.

Both hold the same; ``report.html`` beside them is the engine's page. What is not known stands there as ``null`` and
``n/a``.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sensorium.engine.files import plain, read_lines
from sensorium.engine.report_data import (
    RunData,
    chance_of,
    load,
    metric_names,
    number,
    section,
    shown_bytes,
    shown_number,
    shown_seconds,
    warnings_of,
)
from sensorium.engine.report_page import page
from sensorium.errors import CheckpointError, printable
from sensorium.files import make_folder, write_file


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``parameters``: of the model; ``sets``: what was used of each data set; None: not known.

    ``seconds``: since the command was started.
    """

    how: str
    seconds: float
    parameters: int | None = None
    sets: Sequence[Mapping[str, Any]] | None = None


def write(run: Path, folder: Path, ended: Ended) -> Path:
    """Write the three files and return the path of the ``.md``. Raises CheckpointError when ``run`` is no run."""
    data = load(run)
    content = plain(_content(data, ended))
    make_folder(folder)
    name = f"report_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(folder / f"{name}.json", printable(text).encode())
    write_file(folder / f"{name}.md", printable(_markdown(content)).encode())
    write_file(folder / "report.html", printable(page(data)).encode())
    return folder / f"{name}.md"


def _content(data: RunData, ended: Ended) -> dict[str, Any]:
    model, train = section(data.config, "model"), section(data.config, "train")
    parameters = section(data.summary, "parameters")
    return {
        "ended": ended.how,
        "time": {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "run_begun": data.environment.get("started"),
            "seconds_of_this_command": round(ended.seconds, 1),
            "seconds_of_all_steps": _seconds_of_steps(data.run),
        },
        "model": {
            "family": data.config.get("family"),
            "size": model.get("size"),
            "parameters": ended.parameters,
            "trained_with_heads_for_training": parameters.get("trainable"),
        },
        "steps": max((curve[-1][0] for curve in data.train.values()), default=None),
        "epochs_asked_for": train.get("epochs"),
        "rows_in_one_loss": train.get("batch_size"),
        "data_sets": None if ended.sets is None else [dict(one) for one in ended.sets],
        "stages": _stages(data),
        "metrics": _metrics(data),
        "peak_memory": {
            "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "gpu_bytes": _peak_gpu(),
        },
        "environment": dict(data.environment),
        "warnings": warnings_of(data),
        "config": dict(data.config),
    }


def _peak_gpu() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _seconds_of_steps(run: Path) -> float | None:
    """Of all steps of the run, also of those before it was resumed."""
    try:
        lines = read_lines(run / "times.jsonl")
    except CheckpointError:
        return None
    return round(sum(number(line.get("seconds")) or 0.0 for line in lines), 1)


def _stages(data: RunData) -> list[dict[str, Any]]:
    """Of each stage that was begun its steps, its losses, and its best validation loss."""
    losses = data.train.get("loss", [])
    newest = losses[-1][0] if losses else 0
    firsts = [*(first for first, _ in data.stages), newest + 1]
    found = []
    for place, (first, name) in enumerate(data.stages):
        end = firsts[place + 1] - 1
        mine = [value for step, value in losses if first <= step <= end]
        validated = [value for step, value in data.val.get("loss", []) if first <= step <= end]
        parts = {
            loss: curve[-1]
            for loss, points in data.train.items()
            if not loss.startswith(("lr/", "loss"))
            if (curve := [value for step, value in points if first <= step <= end])
        }
        found.append(
            {
                "name": name,
                "first_step": first,
                "last_step": end,
                "loss_at_first_step": mine[0] if mine else None,
                "loss_at_last_step": mine[-1] if mine else None,
                "best_validation_loss": min(validated, default=None),
                "at_last_step": parts,
            }
        )
    return found


def _metrics(data: RunData) -> list[dict[str, Any]]:
    """Of the newest validation and of the evaluations after training; ``chance``: what guessing gives."""
    newest = {name: curve[-1][1] for name, curve in data.val.items()}
    found = [
        {"split": "val", "metric": name, "value": value, "chance": newest.get(f"chance/{name}")}
        for name, value in newest.items()
        if not name.startswith("chance/")
    ]
    for result in data.results:
        for name in metric_names([result]):
            value, chance = result.evaluation.metrics.get(name), chance_of([result], name)
            found.append({"split": result.name, "metric": name, "value": value, "chance": chance})
    return found


def _markdown(content: Mapping[str, Any]) -> str:
    time, model, memory = content["time"], content["model"], content["peak_memory"]
    head = [
        ("ended", content["ended"]),
        ("model", f"{shown_number(model['family'])}, size {shown_number(model['size'])}"),
        ("parameters of the model", model["parameters"]),
        ("steps", content["steps"]),
        ("rows in one loss", content["rows_in_one_loss"]),
        ("begun", time["run_begun"]),
        ("time of this command", shown_seconds(time["seconds_of_this_command"])),
        ("time of all steps", _known(time["seconds_of_all_steps"], shown_seconds)),
        ("peak memory of the process", _known(memory["process_bytes"], shown_bytes)),
        ("peak memory of the GPU", _known(memory["gpu_bytes"], shown_bytes)),
    ]
    parts = ["# Training report", _table(("", ""), head)]
    parts += ["## Data sets", *_data_sets(content["data_sets"])]
    columns = ("name", "first_step", "last_step", "loss_at_first_step", "loss_at_last_step", "best_validation_loss")
    parts += ["## Stages", _table(columns, ([one[name] for name in columns] for one in content["stages"]))]
    columns = ("split", "metric", "value", "chance")
    parts += ["## Metrics", _table(columns, ([one[name] for name in columns] for one in content["metrics"]))]
    if content["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {_cell(text)}" for text in content["warnings"])]
    return "\n\n".join(parts) + "\n"


def _known(value: float | None, shown: Any) -> str:
    return "n/a" if value is None else str(shown(value))


def _data_sets(sets: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not sets:
        return ["n/a"]
    rows = []
    for one in sets:
        for split, counts in one.items():
            if isinstance(counts, Mapping):
                nouns = ("pictures", "recordings", "texts")
                rows.append((one["name"], split, counts.get("samples"), *(counts.get(noun) for noun in nouns)))
    return [_table(("set", "part", "samples", "pictures", "recordings", "texts"), rows)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    if len(lines) == 2:
        return "n/a"
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(shown_number(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
