"""Evaluations on the console."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from sensorium.engine.contract import Evaluation, Table


def print_evaluation(evaluation: Evaluation) -> None:
    """Print every table and warning."""
    for table in evaluation.tables:
        print_table(table)
    for warning in evaluation.warnings:
        Console(highlight=False).print(f"warning: {warning}", style="red")


def print_table(table: Table) -> None:
    """Print one table; on a pipe it is as wide as it needs to be."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    console.print(_as_rich(table))


def _as_rich(table: Table) -> RichTable:
    shown = RichTable(
        box=SIMPLE_HEAD, title=table.title, caption=table.note or None, title_justify="left", caption_justify="left"
    )
    for number, column in enumerate(table.columns):
        text = any(isinstance(row[number], str) for row in table.rows)
        shown.add_column(column, justify="left" if text else "right")
    for row in table.rows:
        shown.add_row(*(_cell(value) for value in row))
    return shown


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
