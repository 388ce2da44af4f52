"""The report as one HTML page: nothing is fetched, everything from outside is escaped, scripts are optional."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import statistics
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from sensorium.engine.contract import Table
from sensorium.engine.report_charts import curves_chapter
from sensorium.engine.report_data import (
    Event,
    RunData,
    best_of,
    chance_of,
    data_set,
    flat,
    metric_names,
    notes_of,
    number,
    parts_of,
    section,
    shown_bytes,
    shown_number,
    shown_seconds,
    warnings_of,
)
from sensorium.engine.report_gallery import gallery_chapter
from sensorium.engine.report_media import Media
from sensorium.engine.results import Result

GLANCE_MEASURES = 3  # bar charts on top: the first measures that have a chance level
OPEN_EVENTS = 20
LONGEST = 300  # characters of a value


def page(data: RunData) -> str:
    """The whole page."""
    media = Media(data.run)
    chapters = [
        ("results", "Results", results_chapter(data)),
        ("gallery", "What it finds", gallery_chapter(data.results, media)),
        ("curves", "Curves", curves_chapter(data)),
        ("configuration", "Configuration", configuration_chapter(data)),
        ("environment", "Environment", environment_chapter(data)),
        ("events", "Events", events_chapter(data)),
    ]
    lost = [f"gallery: {name} cannot be read" for name in media.unreadable]
    filled = [(key, title, body) for key, title, body in chapters if body]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in filled)
    bodies = "".join(f'<section id="{key}"><h2>{title}</h2>{body}</section>' for key, title, body in filled)
    style, script = _asset("report.css"), _asset("report.js")
    proof = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{proof}'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(data.run.name)} · Sensorium report</title><style>{style}</style></head>\n"
        f"<body>{_head(data, [*warnings_of(data), *lost])}"
        f'<nav aria-label="chapters">{links}</nav>\n<main>{bodies}</main>'
        "<footer>Written by Sensorium. This page fetches nothing from a network.</footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("sensorium.engine").joinpath(name).read_text(encoding="utf-8")


def _head(data: RunData, warnings: Sequence[str]) -> str:
    facts = [
        ("family", data.config.get("family")),
        ("preset", data.config.get("preset")),
        ("data", data_set(data)),
        ("seed", data.config.get("seed")),
        ("started", _day(data.environment.get("started"))),
    ]
    chips = "".join(f"<li><span>{name}</span> {escape(_text(value))}</li>" for name, value in facts)
    box = ""
    if warnings:
        lines = "".join(f"<li>{escape(text)}</li>" for text in warnings)
        title = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        box = f'<div class="warnings" role="alert"><b>⚠ {title}</b><ul>{lines}</ul></div>'
    return (
        f'<header><p class="brand">Sensorium report</p><h1>{escape(data.run.name)}</h1>'
        f'<ul class="chips">{chips}</ul>{box}{_tiles(data)}{_time_bar(data)}</header>'
    )


def _cut(text: str) -> str:
    """The beginning of what nobody reads to its end, such as a vocabulary."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"


def _text(value: Any) -> str:
    return "n/a" if value is None else str(value)


def _tiles(data: RunData) -> str:
    tiles = [*_metric_tiles(data), *_machine_tiles(data)]
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div{' class=main' if i == 0 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
            f"<dd class=sub>{escape(sub)}</dd></div>"
            for i, (name, value, sub) in enumerate(tiles)
        )
        + "</dl>"
    )


def _metric_tiles(data: RunData) -> list[tuple[str, str, str]]:
    best = best_of(data)
    if best is None:
        return [("best validation metric", "n/a", "no validation result")]
    at = "" if best.step is None else f" · step {best.step:,}"
    tiles = [(f"best {best.metric}, validation", shown_number(best.value), _beside(best.value, best.chance) + at)]
    for result in data.results:
        value = result.evaluation.metrics.get(best.metric)
        if result.split == "test" and value is not None:
            chance = chance_of((result, *data.results), best.metric)
            tiles.append((f"{best.metric}, {result.title}", shown_number(value), _beside(value, chance)))
    return tiles[:4]


def _beside(value: float, chance: float | None) -> str:
    if chance and value >= 2 * chance > 0:
        return f"{value / chance:,.0f} times chance ({shown_number(chance)})"
    return f"chance {shown_number(chance)}"


def _machine_tiles(data: RunData) -> list[tuple[str, str, str]]:
    parameters = section(data.summary, "parameters")
    trainable, frozen = number(parameters.get("trainable")), number(parameters.get("frozen"))
    seconds = _seconds(data)
    memory, steps = number(data.summary.get("peak_rss_bytes")), number(data.summary.get("steps"))
    if steps is None and data.train:
        steps = max(curve[-1][0] for curve in data.train.values())
    speed = f"{statistics.median(value for _, value in data.speed):,.0f} rows/s" if data.speed else "speed n/a"
    frozen_text = "frozen n/a" if frozen is None else f"{_count(frozen)} frozen"
    finished = speed if data.summary else f"{speed} · not finished"
    return [
        ("steps", "n/a" if steps is None else f"{steps:,.0f}", finished),
        ("trained parameters", "n/a" if trainable is None else _count(trainable), frozen_text),
        ("time", shown_seconds(sum(seconds.values())) if seconds else "n/a", "all stages"),
        ("peak memory", "n/a" if memory is None else shown_bytes(memory), _text(data.environment.get("gpu") or "CPU")),
    ]


def _count(value: float) -> str:
    """``11.8 M``; the exact number stands in report.json."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _day(value: Any) -> str | None:
    """``2025-11-21 05:40`` of an ISO time; anything else as it is."""
    iso = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*", str(value))
    return f"{iso[1]} {iso[2]} UTC" if iso and str(value).endswith("+00:00") else value


def _seconds(data: RunData) -> dict[str, float]:
    stages = {name: number(value) for name, value in section(data.summary, "seconds").items()}
    return {name: value for name, value in stages.items() if value is not None and value >= 0}


def _time_bar(data: RunData) -> str:
    """Where the time went, as one bar."""
    seconds = _seconds(data)
    total = sum(seconds.values())
    if total <= 0:
        return ""
    bar = "".join(
        f'<i class="b{i % 8}" style="width:{100 * value / total:.2f}%"></i>' for i, value in enumerate(seconds.values())
    )
    legend = "".join(
        f'<li><i class="b{i % 8}"></i>{escape(name)} <b>{shown_seconds(value)}</b></li>'
        for i, (name, value) in enumerate(seconds.items())
    )
    return f'<div class="time"><div class="stack" aria-hidden="true">{bar}</div><ul class="legend">{legend}</ul></div>'


def results_chapter(data: RunData) -> str:
    """Bars against chance, the families' own tables, every metric; and notes of the run."""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes_of(data))
    listed = f'<ul class="notes">{lines}</ul>' if lines else ""
    return _glance(data.results) + _own_tables(data.results) + _all_metrics(data.results) + listed


def _glance(results: Sequence[Result]) -> str:
    by_measure: dict[str, list[str]] = {}
    for name in metric_names(results):
        if chance_of(results, name) is not None:
            by_measure.setdefault(parts_of(name)[1], []).append(name)
    several = {measure: names for measure, names in by_measure.items() if len(names) > 1} or by_measure
    charts = [_bars(measure, names, results) for measure, names in list(several.items())[:GLANCE_MEASURES]]
    if not charts:
        return ""
    key = "".join(f'<li><i class="b{i % 8}"></i>{escape(r.title)}</li>' for i, r in enumerate(results))
    return f'<div class="grid">{"".join(charts)}</div><ul class="legend">{key}<li><i class="tick"></i>chance</li></ul>'


def _bars(measure: str, names: Sequence[str], results: Sequence[Result]) -> str:
    """One measure: for each of its metrics a bar for each result, with a stroke where chance lies."""
    chances = {name: chance_of(results, name) or 0.0 for name in names}
    values = [r.evaluation.metrics[name] for name in names for r in results if name in r.evaluation.metrics]
    top = _round_up(max([1e-12, *(value for value in (*values, *chances.values()) if math.isfinite(value))]))
    groups = []
    for name in names:
        at = _percent(chances[name], top)
        bars = "".join(
            f'<div class="bar"><i class="b{i % 8}" style="width:{_percent(value, top):.2f}%"></i>'
            f'<u style="left:{at:.2f}%"></u><b>{shown_number(value)}</b></div>'
            for i, result in enumerate(results)
            if (value := result.evaluation.metrics.get(name)) is not None
        )
        label = escape(parts_of(name)[0] or name)
        groups.append(f"<dt>{label} <small>chance {shown_number(chances[name])}</small></dt><dd>{bars}</dd>")
    return f'<figure class="bars"><figcaption><b>{escape(measure)}</b></figcaption><dl>{"".join(groups)}</dl></figure>'


def _percent(value: float, top: float) -> float:
    """Of ``top``, within 0 and 100; 0 for NaN."""
    return 0.0 if math.isnan(value) else min(max(100 * value / top, 0.0), 100.0)


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten: bars of percentages end at 100, not at the best of them."""
    size = 10.0 ** math.floor(math.log10(value))
    return next(size * factor for factor in (1, 2, 5, 10) if value <= size * factor)


def _own_tables(results: Sequence[Result]) -> str:
    """The tables of all results; those of the same title stand side by side."""
    titles = dict.fromkeys(table.title for result in results for table in result.evaluation.tables)
    blocks = []
    for title in titles:
        tables = [
            _table(table, f"{title}: {result.title}")
            for result in results
            for table in result.evaluation.tables
            if table.title == title
        ]
        blocks.append(f'<div class="side">{"".join(tables)}</div>')
    return "".join(blocks)


def _table(table: Table, caption: str) -> str:
    numeric = [any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.columns))]
    head = "".join(f"<th scope=col{_right(n)}>{escape(c)}</th>" for c, n in zip(table.columns, numeric, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{_right(n)}>{escape(shown_number(c))}</td>" for c, n in zip(row, numeric, strict=True))
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<div class=block>{_scroll(caption, head, rows)}{note}</div>"


def _right(numeric: bool) -> str:
    return " class=num" if numeric else ""


def _scroll(caption: str, head: str, rows: str) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _all_metrics(results: Sequence[Result]) -> str:
    names = metric_names(results)
    if not names:
        return ""
    head = "<th scope=col>metric</th><th scope=col class=num>chance</th>" + "".join(
        f"<th scope=col class=num>{escape(_titled(result))}</th>" for result in results
    )
    rows = ""
    for name in names:
        values = (chance_of(results, name), *(result.evaluation.metrics.get(name) for result in results))
        cells = "".join(f"<td class=num>{shown_number(value)}</td>" for value in values)
        rows += f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>"
    table = _scroll("every metric beside chance", head, rows)
    opened = "" if any(result.evaluation.tables for result in results) else " open"
    return f"<details{opened}><summary>All {len(names)} metrics beside chance</summary>{table}</details>"


def _titled(result: Result) -> str:
    return result.title if result.step is None else f"{result.title} (step {result.step})"


def configuration_chapter(data: RunData) -> str:
    """Every value, searchable."""
    if not data.config:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in flat(data.config)
    )
    table = _scroll("configuration", "<th scope=col>key</th><th scope=col>value</th>", rows)
    search = '<input type="search" placeholder="Search keys and values" aria-label="search the configuration">'
    return (
        f"<details class=filter><summary>{len(flat(data.config))} values, as resolved (config.yaml)</summary>"
        f'{search}{table}<p class="none" hidden>Nothing matches.</p></details>'
    )


def environment_chapter(data: RunData) -> str:
    """Versions and machine, what the model took from the data, and what the run counted."""
    tables = [("environment", data.environment), ("taken from the data", data.facts), ("counted", data.summary)]
    blocks = [
        _scroll(
            title,
            "<th scope=col>name</th><th scope=col>value</th>",
            "".join(f"<tr><th scope=row>{escape(k)}</th><td>{escape(_cut(v))}</td></tr>" for k, v in flat(content)),
        )
        for title, content in tables
        if content
    ]
    return f'<div class="side">{"".join(blocks)}</div>' if blocks else ""


def events_chapter(data: RunData) -> str:
    """What happened on the way, resumes among it."""
    resumes = [Event(step, "resume", f"resumed after step {step}") for step in data.resumed]
    events = sorted([*data.events, *resumes], key=lambda event: event.step)
    if not events:
        return ""
    signs = {"alarm": "⚠ alarm", "warning": "! warning", "resume": "↻ resume"}
    rows = [
        f'<li class="{escape(e.level)}"><span class="num">step {e.step:,}</span> '
        f"<b>{escape(signs.get(e.level, e.level))}</b> {escape(e.text)}</li>"
        for e in events
    ]
    more = ""
    if rows[OPEN_EVENTS:]:
        rest = f'<ul class="events">{"".join(rows[OPEN_EVENTS:])}</ul>'
        more = f'<details class="more"><summary>{len(rows) - OPEN_EVENTS} more events</summary>{rest}</details>'
    return f'<ul class="events">{"".join(rows[:OPEN_EVENTS])}</ul>{more}'
