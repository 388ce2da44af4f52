"""Reading what this program wrote without trusting it: regular files, strict JSON, documents that prove themselves.

A sealed document is a JSON object that names its format and ends with the sha256 of all before::

    {"format": 2, …,
     "checksum": "…"
    }

No byte of it can change unseen, white space included. That guards against damage, not against somebody who computes
the checksum anew: whoever reads one still checks the values.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DEPTH = 100  # of what is ours
_TAIL = b',\n "checksum": "%s"\n}\n'
_TAIL_SIZE = len(_TAIL % (64 * b"0"))


def read(path: Path, *, follow: bool = True) -> bytes:
    """The bytes of a regular file. ``follow``: also of one that a link names. Raises OSError, for a folder, a FIFO or a
    device as well; none of them is waited for."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if not follow and path.is_symlink():
        raise OSError(errno.ELOOP, "is a link", str(path))
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def _word(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")


def _infinity(word: str) -> float:
    return _word(word) if word == "NaN" else float(word)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is given twice")
    return content


_STRICT = json.JSONDecoder(parse_constant=_word, object_pairs_hook=_unique)
_INFINITE = json.JSONDecoder(parse_constant=_infinity, object_pairs_hook=_unique)


def parse(data: bytes, *, infinite: bool = False) -> Any:
    """What a strict JSON text holds; ``infinite``: Infinity and -Infinity are numbers, too. Raises ValueError for NaN,
    for keys given twice, for another encoding than UTF-8 and for values nested too deeply to be ours."""
    try:
        content = (_INFINITE if infinite else _STRICT).decode(data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if data.count(b"[") + data.count(b"{") > _DEPTH:
        _bound_depth(content)  # else whoever walks through it would meet the limit of the stack
    return content


def _bound_depth(content: Any) -> None:
    level = [content]
    for _ in range(_DEPTH):
        children = (value.values() if isinstance(value, dict) else value for value in level)
        level = [child for some in children for child in some if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def seal(content: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """``content``, which names its ``format``, as a sealed document. ``indent``: None for long ones."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    head = text.removesuffix("}").rstrip().encode()
    return head + _tail(head)


def unseal(data: bytes, form: int) -> dict[str, Any]:
    """The content of a sealed document of format ``form``, proven. Raises ValueError with the reason."""
    content = parse(data)
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
