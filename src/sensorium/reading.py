"""Reading what nobody vouches for: plain files only, strict JSON, trees of plain values.

All of it raises what a caller of ``open`` and ``json.loads`` expects anyway: OSError with a reason, and ValueError.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

DEEPEST = 64  # levels of a tree of values; nothing that people write has more than ten
_MOST_VALUES = 200_000  # of such a tree, aliases counted as often as they stand there
_LARGEST_NUMBER = 2**64

# Formats of pictures that are decoded by Pillow itself. Left out are those for which it starts a program (EPS runs
# Ghostscript over the file), and those that nobody has pictures in.
PICTURE_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# Pillow documents OSError and SyntaxError; its parsers let the others through on damaged files.
PICTURE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def open_plain(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a file for reading; ``follow``: also one that a link names. Raises OSError also for what is no plain file: a
    folder, a pipe (which might never answer), a device (which might never end), a socket; ValueError becomes OSError,
    too."""
    if not follow and path.is_symlink():
        raise OSError(errno.ELOOP, "is a link", str(path))
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "no plain file but a pipe, a device or a socket", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, most: int | None = None, *, follow: bool = True) -> bytes:
    """The bytes of a plain file (see ``open_plain``). Raises OSError, also when there are more than ``most``."""
    with open_plain(path, follow=follow) as file:
        if most is None:
            return file.read()
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return data


def parse_json(text: str | bytes, *, infinite: bool = False) -> Any:
    """Strict JSON; ``infinite``: Infinity and -Infinity are numbers, too. Raises ValueError also for NaN, keys given
    twice, half surrogate pairs, another encoding than UTF-8, and values nested too deeply for who walks through them.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_infinity if infinite else _no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _bound_depth(value)
    if r"\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _infinity(word: str) -> Any:
    return _no_constant(word) if word == "NaN" else float(word)


def _bound_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        children = (one.values() if isinstance(one, dict) else one for one in level)
        level = [child for some in children for child in some if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def problem_of(tree: Any) -> str | None:
    """What keeps ``tree`` from being mappings, lists, texts, sensible numbers, truth values and nulls; None if nothing.

    Walks without recursion and stops early, so that no nesting and no aliases of aliases can do harm.
    """
    waiting: list[tuple[Iterator[tuple[str, Any]], str]] = [(iter([("", tree)]), "")]
    seen = 0
    while waiting:
        entry = next(waiting[-1][0], None)
        if entry is None:
            waiting.pop()
            continue
        seen += 1
        key, value = entry
        place = f"{waiting[-1][1]}.{key}".strip(".")
        problem = _problem_of_value(value)
        if problem is None and len(waiting) > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        if seen > _MOST_VALUES:
            return f"more than {_MOST_VALUES:,} values"
        if problem is not None:
            return f"{place[:200]}: {problem}" if place else problem
        if isinstance(value, Mapping):
            waiting.append((iter(value.items()), place))
        elif isinstance(value, list | tuple):
            waiting.append((((str(number), item) for number, item in enumerate(value)), place))
    return None


def _problem_of_value(value: Any) -> str | None:
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        return None if odd is None else f"the key {odd!r} is no text; put quotes around it"
    if isinstance(value, str):
        return None if _encodable(value) else "half of a surrogate pair, which is no character"
    if isinstance(value, int):
        return None if abs(value) < _LARGEST_NUMBER else "a whole number beyond 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "not a finite number"
    if value is None or isinstance(value, list | tuple):
        return None
    return f"found a {type(value).__name__}; allowed are text, numbers, true, false, null, lists and sections"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
