"""A run folder as the report sees it: read once, tolerant of what is missing, outspoken about what is damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium import config as configuration
from sensorium import reading
from sensorium.engine.files import read_lines
from sensorium.engine.results import FOLDER, PASSES, Result, read_result
from sensorium.errors import CheckpointError, SensoriumError

Curve = list[tuple[int, float]]
"""Values by step, in the order of the steps; values may be NaN or infinite."""

CHANCE = "chance/"
_FIELDS = ("kind", "step", "epoch", "stage")


@dataclass(frozen=True)
class Event:
    step: int
    level: str
    text: str


@dataclass(frozen=True)
class Best:
    """The value that chose the best checkpoint, and what guessing gives on the same split."""

    metric: str
    value: float
    step: int | None
    chance: float | None


@dataclass(frozen=True)
class RunData:
    """Everything the report shows. ``stages``: first step and name of each; ``problems``: what could not be read;
    ``passes``: how often the test split was judged."""

    run: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    facts: Mapping[str, Any]
    summary: Mapping[str, Any]
    train: Mapping[str, Curve]
    val: Mapping[str, Curve]
    speed: Curve
    stages: tuple[tuple[int, str], ...]
    resumed: tuple[int, ...]
    events: tuple[Event, ...]
    results: tuple[Result, ...]
    problems: tuple[str, ...]
    passes: int


def load(run: Path) -> RunData:
    """Read a run folder. Raises CheckpointError when it is none (no config.yaml)."""
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run}: not a run folder (no config.yaml in it)")
    problems: list[str] = []
    config = _attempt(lambda path: configuration.load_file(path), run / "config.yaml", problems) or {}
    environment, facts, summary = (
        _attempt(_read_object, run / f"{name}.json", problems) or {} for name in ("environment", "facts", "summary")
    )
    metrics = _attempt(read_lines, run / "metrics.jsonl", problems) or []
    times = _attempt(read_lines, run / "times.jsonl", problems) or []
    passes = _attempt(read_lines, run / PASSES, problems) or []
    results = (_attempt(read_result, path, problems) for path in sorted((run / FOLDER).glob("*.json")))
    training = [line for line in metrics if line.get("kind") == "train"]
    return RunData(
        run=run,
        config=config,
        environment=environment,
        facts=facts,
        summary=summary,
        train=_curves((line["step"], line) for line in training),
        val=_curves((line["step"], section(line, "metrics")) for line in metrics if line.get("kind") == "val"),
        speed=_curves((line["step"], line) for line in times).get("rows_per_second", []),
        stages=_stages(training),
        resumed=tuple(line["step"] for line in times if "resumed" in line),
        events=tuple(
            Event(line["step"], str(line.get("level", "info")), _event_text(line))
            for line in metrics
            if line.get("kind") == "event"
        ),
        results=tuple(sorted((r for r in results if r is not None), key=_result_order)),
        problems=tuple(problems),
        passes=len(passes),
    )


def _attempt(reader: Any, path: Path, problems: list[str]) -> Any:
    """What ``reader`` makes of ``path``; None when it is missing, or when it is damaged, which is then said."""
    if not path.is_file():
        return None
    try:
        return reader(path)
    except SensoriumError as error:
        problems.append(str(error).replace(str(path), path.name))
        return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}; expected an object")
    if problem := reading.problem_of(content):
        raise CheckpointError(f"{path}: {problem}")
    return content


def number(value: Any) -> float | None:
    """A number, or one of the words nan, inf, -inf that stand for one in JSON; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _curves(lines: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for step, values in lines:
        for name, value in values.items():
            point = None if name in _FIELDS else number(value)
            if point is not None:
                curves.setdefault(name, []).append((step, point))
    return curves


def _event_text(line: Mapping[str, Any]) -> str:
    """The text without the step that the report prints in front of it anyway."""
    return str(line.get("text", "")).removeprefix(f"step {line['step']}: ")


def _stages(training: Iterable[Mapping[str, Any]]) -> tuple[tuple[int, str], ...]:
    stages: list[tuple[int, str]] = []
    for line in training:
        name = str(line.get("stage", ""))
        if not stages or stages[-1][1] != name:
            stages.append((line["step"], name))
    return tuple(stages)


def _result_order(result: Result) -> tuple[int, str]:
    first = ("test", "val")
    return (first.index(result.name) if result.name in first else len(first), result.name)


def parts_of(metric: str) -> tuple[str, str]:
    """``image-text/i2t_R@1`` is the measure ``R@1`` of ``image-text/i2t``; a name without a slash is all measure."""
    group, slash, rest = metric.rpartition("/")
    if not slash:
        return "", metric
    label, underscore, measure = rest.rpartition("_")
    return (f"{group}/{label}", measure) if underscore else (group, rest)


def metric_names(results: Iterable[Result]) -> list[str]:
    """Every metric of the results, chance levels left out, in the order of their first appearance."""
    names = dict.fromkeys(name for result in results for name in result.evaluation.metrics)
    return [name for name in names if not name.startswith(CHANCE)]


def chance_of(results: Iterable[Result], metric: str) -> float | None:
    """Chance level of a metric: the first that a result states as ``chance/<metric>``."""
    for result in results:
        if CHANCE + metric in result.evaluation.metrics:
            return result.evaluation.metrics[CHANCE + metric]
    return None


def best_of(data: RunData) -> Best | None:
    """The best validation value: as the summary states it, else (an unfinished run) as the curve shows it."""
    stated = section(data.summary, "best")
    value, step = number(stated.get("value")), stated.get("step")
    if value is not None:
        metric = str(stated.get("metric", "best metric"))
        return Best(metric, value, step if isinstance(step, int) else None, _validation_chance(data, metric))
    settings = section(data.config, "checkpoint")
    metric = str(settings.get("best_metric", "loss"))
    points = [(value, step) for step, value in data.val.get(metric, []) if math.isfinite(value)]
    if not points:
        return None
    value, step = max(points) if settings.get("best_mode") == "max" else min(points)
    return Best(metric, value, step, _validation_chance(data, metric))


def _validation_chance(data: RunData, metric: str) -> float | None:
    """Chance depends on the size of the split: what the validation stated, else what any result states."""
    curve = data.val.get(CHANCE + metric)
    return curve[-1][1] if curve else chance_of(data.results, metric)


def section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested mapping, empty when it is missing or no mapping."""
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}


def data_set(data: RunData) -> str | None:
    """The data set's reader, or the names of several sets, as the configuration has them."""
    settings = section(data.config, "data")
    names = settings.get("reader") or ", ".join(section(settings, "sets"))
    return str(names) if names else None


def warnings_of(data: RunData) -> list[str]:
    """What must stand on top: alarms, warnings of the evaluations, pieces that could not be read."""
    alarms = [f"step {event.step}: {event.text}" for event in data.events if event.level == "alarm"]
    judged = [f"{result.name}: {text}" for result in data.results for text in result.evaluation.warnings]
    return [*alarms, *judged, *data.problems]


def notes_of(data: RunData) -> list[str]:
    """Remarks of the run that are no warnings."""
    notes = data.summary.get("notes")
    found = [str(note) for note in notes] if isinstance(notes, list) else []
    if data.passes > 1:
        found.append(f"The test split was judged {data.passes} times; the best of several looks is too good.")
    return found


def flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and values as text, in the order of the file."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            rows.append((f"{prefix}{key}", value))
        else:
            rows.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)))
    return rows


def shown_number(value: Any) -> str:
    """A number as a table shows it: whole numbers whole, others with three or more significant digits."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 10:
        return f"{value:,.1f}"
    if size >= 1 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3g}"


def shown_seconds(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return "n/a"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def shown_bytes(size: float) -> str:
    """Decimal units, as disks and memory are sold: ``2.13 GB``."""
    for unit, limit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size:.0f} B"
