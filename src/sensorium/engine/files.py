"""JSON of a run folder: values as strict JSON knows them, and lines that survive a kill. Knows no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from sensorium import reading
from sensorium.errors import CheckpointError
from sensorium.files import write_file

_STEPS = 10**15  # more than any run has


def plain(value: Any) -> Any:
    """``value`` as strict JSON knows it: NumPy scalars become numbers, NaN and infinities the words ``float`` reads.

    Raises TypeError for anything that is not a mapping, a sequence, text, a number, a bool or None.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON with its newline; numbers in full precision, keys in their order."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; a torn last line (the process was killed while writing) is left out.

    Raises CheckpointError naming the line when one before the last is damaged, or the file cannot be read.
    """
    try:
        data = reading.read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    *complete, _torn = data.split(b"\n")
    records = []
    for number, line in enumerate(complete, start=1):
        try:
            record = reading.parse_json(line)
        except ValueError as error:  # also UnicodeDecodeError
            raise CheckpointError(f"{path}: line {number} is damaged ({error})") from error
        if not isinstance(record, dict) or not _is_step(record.get("step")):
            raise CheckpointError(f"{path}: line {number} is damaged (no object with a step)")
        records.append(record)
    return records


def _is_step(value: object) -> bool:
    return isinstance(value, int) and abs(value) < 2**53


def cut_back(path: Path, step: int) -> None:
    """Leave only whole lines whose ``step`` is at most ``step``, atomically and byte for byte as they were.

    A missing file stays missing. Raises CheckpointError as ``read_lines`` does.
    """
    if not path.exists():
        return
    records = read_lines(path)
    data = path.read_bytes()
    lines = data.split(b"\n")[: len(records)]
    kept = b"".join(line + b"\n" for line, record in zip(lines, records, strict=True) if record["step"] <= step)
    if kept != data:
        write_file(path, kept)
