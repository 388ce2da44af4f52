"""Curves as inline SVG: sharp at any size, coloured by the page's style sheet, readable without scripts.

Geometry is in SVG units, which are CSS pixels on a phone: text keeps its size there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from sensorium.engine.report_data import Curve, shown_number

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 10, 176
MOST_POINTS = 300
_LARGEST = 1e290
COLOURS = 8  # .s0 … .s7 in report.css; each has its own dash as well


@dataclass(frozen=True)
class Line:
    """One curve of a chart. ``faint``: raw values behind a smoothed line. ``dots``: few values, each one marked."""

    label: str
    points: Curve
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """``marks``: steps at which something begins, with a word for it."""

    title: str
    lines: tuple[Line, ...]
    note: str = ""
    marks: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class _Frame:
    """Maps steps and values to SVG units."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / (self.last - self.first) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)


def drawable(value: float) -> bool:
    """Not NaN, not infinite, and not so large that sums and differences would be."""
    return abs(value) < _LARGEST


def smooth(points: Curve) -> tuple[Curve, int]:
    """Centred running mean of the finite values, and how many of them each mean is over."""
    finite = [point for point in points if drawable(point[1])]
    half = len(finite) // 80
    sums = [0.0, *accumulate(value for _, value in finite)]
    result = []
    for i, (step, _) in enumerate(finite):
        start, stop = max(0, i - half), min(len(finite), i + half + 1)
        result.append((step, (sums[stop] - sums[start]) / (stop - start)))
    return result, 2 * half + 1


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within [low, high], so far apart that at most ``most`` steps lie between."""
    span = high - low
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if span / (size * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first
    return [(first + i) * step for i in range(count + 1)]


def draw(chart: Chart) -> str:
    """A ``<figure>`` with caption, plot and legend; an empty string when no line has a finite value."""
    lines = [line for line in chart.lines if any(drawable(value) for _, value in line.points)]
    if not lines:
        return ""
    frame, outside = _frame(lines)
    order = [line for line in chart.lines if not line.faint]  # a faint line shares the colour of the line it belongs to
    plots = "".join(_plot(line, frame, order.index(line) if line in order else 0) for line in lines)
    notes = [chart.note] if chart.note else []
    if outside:
        notes.append(f"{outside} raw values lie outside the frame.")
    solid = [line for line in lines if not line.faint]
    caption = f"<figcaption><b>{escape(chart.title)}</b>{_latest(solid)}</figcaption>"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(chart.title, solid))}">'
        f"{_axes(frame)}{_marks(chart.marks, frame)}{plots}"
        f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{BOTTOM}"/></svg>'
    )
    note = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    return (
        f'<figure class="chart" data-frame="{frame.first:.0f},{frame.last:.0f},{LEFT / WIDTH:.5f},{RIGHT / WIDTH:.5f}" '
        f'data-lines="{escape(_data(lines))}">{caption}'
        f'<div class="plot">{svg}<output class="tip" hidden></output></div>'
        f"{_legend(solid, order)}{note}</figure>"
    )


def _frame(lines: Sequence[Line]) -> tuple[_Frame, int]:
    """The frame, and how many raw values stick out of it: single spikes must not flatten the curve."""
    steps = [step for line in lines for step, _ in line.points]
    values = [v for line in lines if not line.faint for _, v in line.points if drawable(v)]
    raw = sorted(v for line in lines if line.faint for _, v in line.points if drawable(v))
    values += raw[len(raw) // 100 : len(raw) - len(raw) // 100]
    low, high = min(values), max(values)
    if 0 < low < 0.35 * high:  # near enough to zero to show it
        low = 0.0
    pad = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    frame = _Frame(
        min(steps),
        max(max(steps), min(steps) + 1),
        low if low == 0 and high > 0 else low - pad,
        high + pad,
    )
    return frame, sum(1 for value in raw if not frame.low <= value <= frame.high)


def _thin(points: Curve) -> Curve:
    """At most about ``MOST_POINTS`` points: the least and the greatest of each bucket, so that spikes stay."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: Curve = []
    for start in range(0, len(points), size):
        bucket = [point for point in points[start : start + size] if drawable(point[1])]
        if bucket:
            kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return [*kept, points[-1]] if kept and kept[-1] != points[-1] else kept


def _runs(points: Curve) -> Iterator[Curve]:
    """Stretches of finite values: a curve is broken where it is not finite."""
    run: Curve = []
    for point in points:
        if drawable(point[1]):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _plot(line: Line, frame: _Frame, colour: int) -> str:
    place = f"s{colour % COLOURS}" + (" raw" if line.faint else "")
    shown = []
    for run in _runs(_thin(line.points)):
        path = "L".join(f"{frame.x(step):.1f} {_inside(frame.y(value)):.1f}" for step, value in run)
        shown.append(f'<path class="{place}" d="M{path}"/>')
        if line.dots or len(run) == 1:
            shown += [
                f'<circle class="{place}" cx="{frame.x(s):.1f}" cy="{_inside(frame.y(v)):.1f}" r="2"/>' for s, v in run
            ]
    return "".join(shown)


def _inside(y: float) -> float:
    """A value beyond the frame is drawn at its edge."""
    return min(max(y, TOP), BOTTOM)


def _axes(frame: _Frame) -> str:
    parts = []
    values = ticks(frame.low, frame.high, 5)
    tiny = max(map(abs, values), default=1.0) < 0.01
    for value in values:
        y = frame.y(value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(value, tiny)}</text>')
    for step in ticks(frame.first, frame.last, 5):
        if step == int(step):
            x = frame.x(step)
            anchor = "end" if x > RIGHT - 12 else "middle"
            parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="{anchor}">{int(step):,}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    return "".join(parts)


def _tick(value: float, tiny: bool) -> str:
    if value == 0:
        return "0"
    if tiny or abs(value) >= 1e5:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.6g}"


def _marks(marks: Iterable[tuple[int, str]], frame: _Frame) -> str:
    return "".join(
        f'<line class="stage" x1="{frame.x(step):.1f}" x2="{frame.x(step):.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
        f'<text class="stage" x="{frame.x(step) + 4:.1f}" y="{TOP + 9}">{escape(word)}</text>'
        for step, word in marks
        if frame.first <= step <= frame.last
    )


def _latest(lines: Sequence[Line]) -> str:
    """The last value, where the chart has one line only."""
    return f'<span class="last">{shown_number(lines[0].points[-1][1])}</span>' if len(lines) == 1 else ""


def _legend(lines: Sequence[Line], order: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    entries = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true">'
        f'<path class="s{order.index(line) % COLOURS}" d="M0 4H22"/></svg>'
        f"{escape(line.label)} <b>{shown_number(line.points[-1][1])}</b></li>"
        for line in lines
    )
    return f'<ul class="legend">{entries}</ul>'


def _spoken(title: str, lines: Sequence[Line]) -> str:
    """The chart in words, for those who cannot see it."""
    sentences = []
    for line in lines:
        finite = [value for _, value in line.points if drawable(value)]
        sentences.append(
            f"{line.label}: from {shown_number(finite[0])} at step {line.points[0][0]} to {shown_number(finite[-1])} "
            f"at step {line.points[-1][0]}, between {shown_number(min(finite))} and {shown_number(max(finite))}"
        )
    return f"Curve of {title}. " + ". ".join(sentences)


def _data(lines: Sequence[Line]) -> str:
    """What the pointer's read-out shows: label, steps and values of each line."""
    rows = []
    for line in lines:
        points = [(step, value) for step, value in _thin(line.points) if drawable(value)]
        values = [float(f"{value:.5g}") for _, value in points]
        rows.append({"label": line.label, "steps": [step for step, _ in points], "values": values})
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
