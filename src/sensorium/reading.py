"""Reading what nobody vouches for: plain files only, strict JSON, trees of plain values.

All of it raises what a caller of ``open`` and ``json.loads`` expects anyway: OSError with a reason, and ValueError.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

DEEPEST = 64  # levels of a tree of values; nothing that people write has more than ten
_MOST_VALUES = 200_000  # of such a tree, aliases counted as often as they stand there
_LARGEST_NUMBER = 2**64
_PIECE, _LARGEST_PIECE = 1 << 22, 1 << 26  # characters of a large JSON file that are held at once, and at most
_BLANK, _OF_A_NUMBER = re.compile(r"[ \t\r\n]*"), re.compile(r"[0-9.eE+-]*")

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


def json_lists(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """The elements of the lists ``wanted`` of the object in a JSON file, as (key, number, element); of a file that is
    one list, key ``""``. One element is in memory at a time, so that the file may have any size.

    Raises OSError, and ValueError as ``parse_json`` does, or because a list is missing; the elements before a mistake
    have been given out by then.
    """
    lacking = set(wanted)
    with open_plain(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        stream = _JsonStream(text)
        if stream.peek() == "[":
            lacking.discard("")
            for number, element in enumerate(stream.elements()):
                if "" in wanted:
                    yield "", number, element
        else:
            for key in stream.entries():
                if stream.peek() != "[":
                    stream.value()
                    continue
                lacking.discard(key)
                for number, element in enumerate(stream.elements()):
                    if key in wanted:
                        yield key, number, element
        if stream.peek():
            raise ValueError(f"more after its end at character {stream.place:,}")
        if lacking:
            raise ValueError(f"the list {min(lacking)!r} is missing" if any(lacking) else "expected a list")


class _JsonStream:
    """A JSON text, from its beginning to its end."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at, self.dropped = file, "", 0, 0
        self.decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)

    @property
    def place(self) -> int:
        return self.dropped + self.at

    def more(self) -> bool:
        """Read on and forget what was passed. False: there is no more, or one value takes too much memory."""
        left = len(self.text) - self.at
        piece = self.file.read(max(_PIECE, left)) if left < _LARGEST_PIECE else ""
        if piece:
            self.text, self.dropped, self.at = self.text[self.at :] + piece, self.place, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def take(self, allowed: str) -> str:
        """Pass over the next character, which must be one of these."""
        found = self.peek()
        if not found or found not in allowed:
            raise ValueError(f"expected one of {' '.join(allowed)} at character {self.place:,} (found {found!r})")
        self.at += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self.more():
                    raise ValueError(f"{error.msg} at character {self.dropped + error.pos:,}") from None
            except RecursionError:
                raise ValueError("nested too deeply") from None
            else:
                rest = _OF_A_NUMBER.match(self.text, end) if isinstance(value, int | float) else None
                if rest is None or rest.end() < len(self.text) or not self.more():  # else it may go on there
                    break
        if self.text.count("[", self.at, end) + self.text.count("{", self.at, end) > DEEPEST:
            _bound_depth(value)
        if self.text.find(r"\u", self.at, end) >= 0:
            json.dumps(value, ensure_ascii=False).encode()
        self.at = end
        return value

    def elements(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def entries(self) -> Iterator[str]:
        """The keys of an object; the caller takes the value of each."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                self.take('"')
            key = self.value()
            if key in seen:
                raise ValueError(f"key {key!r} is given twice")
            seen.add(key)
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return


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
