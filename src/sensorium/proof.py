"""Documents that prove themselves: what this program wrote is read without trusting it.

A sealed document is a JSON object that names its format and ends with the sha256 of all before::

    {"format": 2, …,
     "checksum": "…"
    }

No byte of it can change unseen, white space included. That guards against damage, not against somebody who computes
the checksum anew: whoever reads one still checks the values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sensorium import reading

_TAIL = b',\n "checksum": "%s"\n}\n'
_TAIL_SIZE = len(_TAIL % (64 * b"0"))


def seal(content: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """``content``, which names its ``format``, as a sealed document. ``indent``: None for long ones."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    head = text.removesuffix("}").rstrip().encode()
    return head + _tail(head)


def unseal(data: bytes, form: int) -> dict[str, Any]:
    """The content of a sealed document of format ``form``, proven. Raises ValueError with the reason."""
    content = reading.parse_json(data)
    if not isinstance(content, dict):
        raise ValueError(f"found a {type(content).__name__}; expected an object")
    found = content.get("format")
    if not isinstance(found, int):
        raise ValueError("it names no format")
    if found != form:
        raise ValueError(f"format {str(found)[:20]}; this version reads format {form}")
    head, tail = data[:-_TAIL_SIZE], data[-_TAIL_SIZE:]
    if tail != _tail(head):
        raise ValueError("its checksum differs")
    del content["checksum"]
    return content


def _tail(head: bytes) -> bytes:
    return _TAIL % hashlib.sha256(head).hexdigest().encode()
