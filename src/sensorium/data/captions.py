"""Captions that lie beside a data set: an object from id to text, or from id to an object with ``caption``."""

from __future__ import annotations

from pathlib import Path

from sensorium import reading
from sensorium.data.parsing import collapsed
from sensorium.errors import DataError

_SHOWN = 20


def read_captions(path: Path) -> dict[str, str]:
    """Caption by id, in one line each; empty ones are left out. Raises DataError that lists every wrong entry."""
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object from id to caption (found a {type(content).__name__})")
    found: dict[str, str] = {}
    problems: list[str] = []
    for name, value in content.items():
        text = value.get("caption") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = collapsed(text)
        else:
            problems.append(f"  {name}: expected a text, or an object with caption (found {str(value)[:60]!r})")
    if problems:
        more = [f"  and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([f"{path}: {len(problems):,} problems", *problems[:_SHOWN], *more]))
    return {name: text for name, text in found.items() if text}
