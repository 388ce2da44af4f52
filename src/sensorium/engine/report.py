"""``sensorium report RUN``: a run folder becomes ``report.html``, ``report.md`` and ``report.json``.

The three say the same; the page shows curves, pictures and sounds besides. They depend on the folder alone: the same
folder gives the same bytes. Pieces that are missing print ``n/a`` or leave their chapter out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sensorium.engine.files import plain
from sensorium.engine.report_data import (
    RunData,
    best_of,
    chance_of,
    data_set,
    flat,
    load,
    metric_names,
    notes_of,
    section,
    shown_number,
    warnings_of,
)
from sensorium.engine.report_page import page
from sensorium.engine.results import evaluation_to_json
from sensorium.errors import printable
from sensorium.files import write_file


def write_report(run: Path) -> Path:
    """Write the three reports atomically and return the path of ``report.html``. Signs that a terminal would obey
    stand in them as ``\\u001b``.

    Raises CheckpointError when ``run`` is no run folder.
    """
    data = load(run)
    content = json.dumps(plain(summary(data)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(run / "report.json", printable(content).encode())
    write_file(run / "report.md", printable(markdown(data)).encode())
    target = run / "report.html"
    write_file(target, printable(page(data)).encode())
    return target


def summary(data: RunData) -> dict[str, Any]:
    """The report for programs."""
    best = best_of(data)
    headline = None
    if best is not None:
        headline = {"metric": best.metric, "value": best.value, "chance": best.chance, "step": best.step}
    return {
        "run": data.run.name,
        "family": data.config.get("family"),
        "preset": data.config.get("preset"),
        "data_set": data_set(data),
        "best": headline,
        "warnings": warnings_of(data),
        "parameters": data.summary.get("parameters"),
        "seconds": data.summary.get("seconds"),
        "peak_rss_bytes": data.summary.get("peak_rss_bytes"),
        "steps": data.summary.get("steps"),
        "notes": notes_of(data),
        "evaluations": {
            result.name: {
                "split": result.split,
                "step": result.step,
                "checkpoint": result.checkpoint,
                **evaluation_to_json(result.evaluation),
            }
            for result in data.results
        },
        "last": {name: curve[-1][1] for name, curve in {**data.train, **_validation(data)}.items()},
        "events": [{"step": event.step, "level": event.level, "text": event.text} for event in data.events],
        "resumed": list(data.resumed),
        "environment": data.environment,
        "facts": data.facts,
        "config": data.config,
    }


def _validation(data: RunData) -> dict[str, list[tuple[int, float]]]:
    return {f"val/{name}": curve for name, curve in data.val.items()}


def markdown(data: RunData) -> str:
    """The report for readers of plain text."""
    parts = [f"# {_cell(data.run.name)}", *_headline(data)]
    warnings = warnings_of(data)
    if warnings:
        parts += ["## Warnings", "\n".join(f"- **{_cell(text)}**" for text in warnings)]
    names = metric_names(data.results)
    if names:
        rows = (
            (name, chance_of(data.results, name), *(r.evaluation.metrics.get(name) for r in data.results))
            for name in names
        )
        parts += ["## Results", _table(("metric", "chance", *(r.name for r in data.results)), rows)]
    for result in data.results:
        for table in result.evaluation.tables:
            parts += [f"### {_cell(table.title)}: {_cell(result.name)}", _table(table.columns, table.rows)]
            parts += [_cell(table.note)] if table.note else []
    parts += _listing("Events", [f"step {event.step}: {event.text}" for event in data.events])
    parts += _listing("Resumed after step", [str(step) for step in data.resumed])
    for title, content in (("Configuration", data.config), ("Environment", data.environment)):
        if content:
            parts += [f"## {title}", _table(("key", "value"), flat(content))]
    return "\n\n".join(parts) + "\n"


def _headline(data: RunData) -> list[str]:
    best = best_of(data)
    shown = "n/a"
    if best is not None:
        beside = f"chance {shown_number(best.chance)}; validation, step {shown_number(best.step)}"
        shown = f"{best.metric} {shown_number(best.value)} ({beside})"
    seconds = section(data.summary, "seconds")
    parameters = section(data.summary, "parameters")
    rows = [
        ("family", data.config.get("family")),
        ("preset", data.config.get("preset")),
        ("data set", data_set(data)),
        ("best", shown),
        ("steps", data.summary.get("steps")),
        ("trained parameters", parameters.get("trainable")),
        ("frozen parameters", parameters.get("frozen")),
        *((f"seconds, {name}", value) for name, value in seconds.items()),
        ("peak memory, bytes", data.summary.get("peak_rss_bytes")),
    ]
    return [_table(("", ""), rows), *_listing("Notes", notes_of(data))]


def _listing(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {_cell(line)}" for line in lines)] if lines else []


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: Any) -> str:
    """Text that cannot break out of its line or cell, nor become markup."""
    text = " ".join(shown_number(value).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(sign, safe)
    return text
