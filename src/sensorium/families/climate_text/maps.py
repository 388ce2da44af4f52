"""Maps for people: the variable that was asked about, where the truth lies and where the answer puts it.

Legend: H rows from the south, W columns from the west, [h, w] windows of the field in the same order.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.data.fields.facts import CELLS

Floats = NDArray[np.floating[Any]]
_INCHES, _DPI = 4.2, 110  # of one panel's width
_LAND = 0.5  # share of land at which the coast is drawn
_TRUE, _TOLD = "#111111", "#c2410c"


@dataclass(frozen=True)
class FieldMap:
    """``values`` ``[H, W]`` in ``unit``, NaN where nothing was measured; ``lat`` ``[H]`` and ``lon`` ``[W]`` degrees of
    the centres. ``anomaly``: zero is special, and takes the middle of the colours. ``land`` ``[H, W]``: its share.
    ``true`` and ``told``: names of cells (``data/fields/facts.py``). ``attention`` ``[h, w]``: what the answer looked
    at, which sums to 1."""

    title: str
    unit: str
    values: Floats
    lat: Floats
    lon: Floats
    anomaly: bool = False
    land: Floats | None = None
    true: str | None = None
    told: str | None = None
    attention: Floats | None = None


def draw(field: FieldMap) -> bytes:
    """A PNG: the field with degrees, colour bar and outlined cells; beside it, where given, the attention."""
    from matplotlib.figure import Figure  # takes half a second, and most evaluations draw nothing

    panels = 1 if field.attention is None else 2
    tall = np.clip(len(field.lat) / len(field.lon), 0.5, 1.6)
    figure = Figure(figsize=(_INCHES * panels, _INCHES * float(tall) + 0.5), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _field(figure, axes[0], field)
    if field.attention is not None:
        _attention(figure, axes[1], field, field.attention)
    packed = io.BytesIO()
    figure.savefig(packed, format="png", metadata={"Software": None})  # the same bytes for the same map
    return packed.getvalue()


def _field(figure: Any, axes: Any, field: FieldMap) -> None:
    colours: dict[str, Any] = {"cmap": "viridis"}
    if field.anomaly:
        most = float(np.nanmax(np.abs(field.values), initial=1e-9))
        colours = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    _bar(figure, axes, _panel(axes, field, field.values, colours), field.unit)
    axes.set_title("\n".join(textwrap.wrap(field.title, 56)), fontsize=8)
    _marks(axes, field)


def _attention(figure: Any, axes: Any, field: FieldMap, attention: Floats) -> None:
    """In multiples of an even share, so that what looks nowhere is one colour."""
    even = attention * attention.size
    image = _panel(axes, field, even, {"cmap": "YlGnBu", "vmin": 0.0, "vmax": max(2.0, float(even.max()))})
    _bar(figure, axes, image, "multiples of an even share")
    axes.set_title("gated cross attention of the answer's words,\nmean over blocks and heads", fontsize=8)
    _marks(axes, field)


def _bar(figure: Any, axes: Any, image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _marks(axes: Any, field: FieldMap) -> None:
    """The coast, and the cells of truth and answer."""
    if field.land is not None and field.land.min() < _LAND < field.land.max():
        axes.contour(field.lon, field.lat, field.land, levels=[_LAND], colors="#444444", linewidths=0.8)
    for name, colour, style, word in ((field.true, _TRUE, "-", "true"), (field.told, _TOLD, "--", "answer")):
        if name in CELLS:
            _outline(axes, field, CELLS.index(name), {"edgecolor": colour, "linestyle": style, "label": word})
    if field.true in CELLS or field.told in CELLS:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, fontsize=7, frameon=False)


def _panel(axes: Any, field: FieldMap, values: Floats, colours: dict[str, Any]) -> Any:
    west, east, south, north = _edges(field)
    image = axes.imshow(values, origin="lower", extent=(west, east, south, north), aspect="auto", **colours)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_formatter(lambda x, _: _degrees((x + 180) % 360 - 180, "E", "W"))
    axes.yaxis.set_major_formatter(lambda y, _: _degrees(y, "N", "S"))
    axes.locator_params(nbins=5)
    return image


def _edges(field: FieldMap) -> tuple[float, float, float, float]:
    """West, east, south and north of the outer grid boxes."""
    ends = []
    for centres in (field.lon, field.lat):
        half = float(centres[-1] - centres[0]) / max(1, len(centres) - 1) / 2 or 0.5
        ends += [float(centres[0]) - half, float(centres[-1]) + half]
    return ends[0], ends[1], ends[2], ends[3]


def _outline(axes: Any, field: FieldMap, cell: int, look: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    west, east, south, north = _edges(field)
    row, column = divmod(cell, 3)
    rows, columns = (np.linspace(0, len(side), 4).round() / len(side) for side in (field.lat, field.lon))
    x, y = west + columns[column] * (east - west), south + rows[row] * (north - south)
    width, height = (
        (columns[column + 1] - columns[column]) * (east - west),
        (rows[row + 1] - rows[row]) * (north - south),
    )
    axes.add_patch(Rectangle((x, y), width, height, fill=False, linewidth=1.8, **look))


def _degrees(value: float, positive: str, negative: str) -> str:
    if abs(value) < 1e-9:
        return "0°"
    return f"{abs(value):g}°{positive if value > 0 else negative}"
