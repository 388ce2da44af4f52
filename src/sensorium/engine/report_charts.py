"""Which curves the report shows, in which order and together with which."""

from __future__ import annotations

from sensorium.engine.report_curves import Chart, Line, draw, smooth
from sensorium.engine.report_data import CHANCE, Curve, RunData, best_of, parts_of

OPEN_MEASURES = 2  # validation charts before learning rate, gradient norm and speed; the others unfold


def curves_chapter(data: RunData) -> str:
    """Loss, validation metrics by measure, learning rate, gradient norm, speed; further logs unfold.

    An empty string when there is nothing to draw.
    """
    first, rest = (
        "".join(figure for figure in map(draw, charts) if figure)
        for charts in (_first_charts(data), _further_charts(data))
    )
    more = ""
    if rest:
        more = f'<details class="more"><summary>More curves</summary><div class="grid">{rest}</div></details>'
    return f'<div class="grid">{first}</div>{more}' if first or rest else ""


def _first_charts(data: RunData) -> list[Chart]:
    loss, reach = smooth(data.train.get("loss", []))
    raw = Line("each step", data.train.get("loss", []), faint=True)
    validation = Line("validation", data.val.get("loss", []), dots=True)
    return [
        Chart("loss", (raw, Line("training", loss), validation), _mean_note(reach), data.stages[1:]),
        *_validation_charts(data)[:OPEN_MEASURES],
        Chart("learning rate", _rates(data), marks=data.stages[1:]),
        _smoothed("gradient norm", data.train.get("grad_norm", []), data),
        _smoothed("rows per second", data.speed, data),
    ]


def _rates(data: RunData) -> tuple[Line, ...]:
    """Learning rates by parameter group; groups that share one rate share one line."""
    lines: list[Line] = []
    for name, curve in data.train.items():
        if not name.startswith("lr/"):
            continue
        same = next((i for i, line in enumerate(lines) if line.points == curve), None)
        if same is None:
            lines.append(Line(name.removeprefix("lr/"), curve))
        else:
            lines[same] = Line(f"{lines[same].label}, {name.removeprefix('lr/')}", curve)
    return tuple(lines)


def _further_charts(data: RunData) -> list[Chart]:
    shown = ("loss", "grad_norm")
    others = [name for name in data.train if name not in shown and not name.startswith("lr/")]
    return [*_validation_charts(data)[OPEN_MEASURES:], *(_smoothed(name, data.train[name], data) for name in others)]


def _smoothed(title: str, curve: Curve, data: RunData) -> Chart:
    mean, reach = smooth(curve)
    lines = (Line("each step", curve, faint=True), Line("mean", mean))
    return Chart(title, lines, _mean_note(reach), data.stages[1:])


def _mean_note(reach: int) -> str:
    return f"Line: mean over {reach} steps; faint: each step." if reach > 1 else ""


def _validation_charts(data: RunData) -> list[Chart]:
    """Metrics of the same measure share a chart. First the one that chooses the checkpoint, then sums, then groups."""
    best = best_of(data)
    chosen = "" if best is None else parts_of(best.metric)[1]
    groups: dict[str, tuple[Line, ...]] = {}
    curves = ((name, curve) for name, curve in data.val.items() if not name.startswith(CHANCE))
    for name, curve in sorted(curves, key=lambda item: (parts_of(item[0])[1] != chosen, "/" in item[0])):
        label, measure = parts_of(name)
        groups[measure] = (*groups.get(measure, ()), Line(label or name, curve, dots=True))
    return [Chart(f"{measure}, validation", lines) for measure, lines in groups.items() if measure != "loss"]
