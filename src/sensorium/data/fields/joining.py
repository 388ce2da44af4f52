"""Texts of others for fields: tables with a time each, and a place where they have one.

CSV with a header, JSON (a list) or JSONL. Columns: ``time`` (UTC); ``target``, or ``event`` as CLLMate calls it;
``text``, the question, where there is one; ``lat`` and ``lon``, or ``coordinate`` "(lat, lon)"; ``location``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium import reading
from sensorium.data.fields.places import Times, parse_time
from sensorium.data.files import read_text
from sensorium.errors import DataError

QUESTION = "What does this weather lead to?"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Said:
    """A text about a time, and about a place (degrees) where it names one."""

    time: np.datetime64
    text: str
    target: str
    place: tuple[float, float] | None
    location: str | None


def read_texts(path: Path) -> list[Said]:
    """Raises DataError naming the row and what is wrong with it."""
    rows = _rows(path)
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(_said(row))
        except DataError as error:
            raise DataError(f"{path}: row {number}: {error}") from None
    if not found:
        raise DataError(f"{path}: holds no texts")
    return found


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file with a header. Raises DataError."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = [dict(row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not a table ({error})") from None
    if any(None in row or None in row.values() for row in rows):
        raise DataError(f"{path}: a row has more or fewer fields than the header")
    return rows


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".csv":
        return table(path)
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(f"{path}: unknown kind of table; there are .csv, .json and .jsonl")
    text = read_text(path)
    try:
        if path.suffix.lower() == ".json":
            rows = reading.parse_json(text)
        else:
            rows = [reading.parse_json(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects")
    return rows


def _said(row: Mapping[str, Any]) -> Said:
    target = str(row.get("target") or row.get("event") or "").strip()
    if not target:
        raise DataError("no target (or event)")
    if not row.get("time"):
        raise DataError("no time")
    place = None
    if row.get("coordinate"):
        numbers = [float(one) for one in _NUMBER.findall(str(row["coordinate"]))]
        if len(numbers) != 2:
            raise DataError(f"coordinate {row['coordinate']!r}: expected (lat, lon)")
        place = (numbers[0], numbers[1])
    elif row.get("lat") not in (None, "") and row.get("lon") not in (None, ""):
        try:
            place = (float(row["lat"]), float(row["lon"]))
        except (TypeError, ValueError):
            raise DataError("lat and lon: expected degrees") from None
    if place is not None and not (-90 <= place[0] <= 90 and -180 <= place[1] <= 360):
        raise DataError(f"{place}: expected latitude, longitude in degrees")
    location = str(row["location"]) if row.get("location") else None
    return Said(parse_time(str(row["time"])), str(row.get("text") or QUESTION), target, place, location)


def nearest(time: np.datetime64, times: Times, most_hours: float) -> int | None:
    """The number of the time that is nearest to ``time``; None: none is that near."""
    if not len(times):
        return None
    apart = np.abs(times - time)
    number = int(apart.argmin())
    return number if apart[number] <= np.timedelta64(round(most_hours * 3600), "s") else None
