"""Evaluations on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from sensorium.engine.contract import Evaluation, Table


def print_evaluation(evaluation: Evaluation) -> None:
    """Print every table and warning."""
    console = Console(highlight=False)
    for table in evaluation.tables:
        console.print(as_rich(table))
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", style="red")


def as_rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
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
