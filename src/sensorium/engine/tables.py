"""Evaluations and numbers as the console shows them."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sensorium.engine.contract import Evaluation, Table
from sensorium.errors import printable


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def print_evaluation(evaluation: Evaluation) -> None:
    """Print every warning, before anybody rejoices at a number, and every table."""
    for warning in evaluation.warnings:
        Console(highlight=False).print(Text(printable(f"warning: {warning}"), style="red"))
    for table in evaluation.tables:
        print_table(table)


def print_table(table: Table) -> None:
    """Print one table; on a pipe it is as wide as it needs to be."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    console.print(_as_rich(table))


def _as_rich(table: Table) -> RichTable:
    shown = RichTable(
        box=SIMPLE_HEAD,
        title=_text(table.title),
        caption=_text(table.note) if table.note else None,
        title_justify="left",
        caption_justify="left",
    )
    for number, column in enumerate(table.columns):
        text = any(isinstance(row[number], str) for row in table.rows)
        shown.add_column(_text(column), justify="left" if text else "right")
    for row in table.rows:
        shown.add_row(*(_text(_cell(value)) for value in row))
    return shown


def _text(text: str) -> Text:
    """As it is: brackets are no markup, and a terminal obeys nothing in it."""
    return Text(printable(text))


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
