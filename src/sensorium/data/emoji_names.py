"""Emoji, their names and aliases (package `emoji`, from Unicode CLDR and the common short codes) and their concepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sensorium.errors import DataError

_JOINER, _AS_PICTURE = "\u200d", "\ufe0f"
_SKIN = frozenset("🏻🏼🏽🏾🏿")
_DROPPED = frozenset("♂♀➡🦰🦱🦲🦳")  # gender, direction and hair of a person
_CLOCKS = range(0x1F550, 0x1F568)
_GENDERLESS = {
    **dict.fromkeys("👨👩", "🧑"),
    **dict.fromkeys("👦👧", "🧒"),
    **dict.fromkeys("👴👵", "🧓"),
    **dict.fromkeys("🤴👸", "🫅"),
    **dict.fromkeys("🤰🫃", "🫄"),
    **dict.fromkeys("👬👭", "👫"),
    "🤶": "🎅",
    "🕺": "💃",
}
_TOGETHER = {"💋": "💏", "❤": "💑", "🤝": "👫", "🐰": "👯"}  # what joins two people: the concept
_SAME_FLAG = {"🇧🇻": "🇳🇴", "🇸🇯": "🇳🇴", "🇭🇲": "🇦🇺", "🇺🇲": "🇺🇸", "🇨🇵": "🇫🇷", "🇲🇫": "🇫🇷"}
# Writing in a picture: (A), [SOS], 1 in a box, TM ... The enclosed letters and ideographs are a range of their own.
_WRITING = frozenset("🔟🔠🔡🔢🔣🔤🔙🔚🔛🔜🔝🔞🏧🚾💯💤ℹⓂ㊗㊙©®™‼⁉‽")
_KEYCAP, _ENCLOSED, _REGIONAL, _TAGS = 0x20E3, range(0x1F100, 0x1F1E6), range(0x1F1E6, 0x1F200), range(0xE0020, 0xE0080)
_ENCLOSED_IDEOGRAPHS = range(0x1F200, 0x1F300)
_CRUDE = frozenset({"shit"})
_LONGEST = 6  # words of an alias; longer ones are the descriptions of the Unicode charts


@dataclass(frozen=True)
class Emoji:
    """One emoji. ``texts``: its name, then its aliases. ``concept``: equal for its skin, gender and like variants."""

    chars: str
    texts: tuple[str, ...]
    concept: str
    is_flag: bool  # of a country or region
    is_writing: bool  # a keycap, letters or words in a picture


def catalogue() -> tuple[Emoji, ...]:
    """All emoji of the installed package in its order. Raises DataError if it is not installed."""
    try:
        import emoji
    except ImportError:
        raise DataError("the package 'emoji' is not installed; run: pip install 'sensorium[demo]'") from None
    return tuple(
        Emoji(
            chars, tuple(_texts(data["en"], data.get("alias", []))), concept(chars), _is_flag(chars), _is_writing(chars)
        )
        for chars, data in emoji.EMOJI_DATA.items()
        if data["status"] == emoji.STATUS["fully_qualified"]
    )


def key(chars: str) -> str:
    """Code points in hexadecimal, without the selector that vendors put in or leave out: ``1f468-200d-1f33e``."""
    return "-".join(f"{ord(char):x}" for char in chars if char != _AS_PICTURE)


def concept(chars: str) -> str:
    """The emoji without skin tone, gender, hair and direction; families, couples and clocks are one concept each."""
    if chars in _SAME_FLAG:
        return _SAME_FLAG[chars]
    bare = "".join(char for char in chars if char not in _SKIN and char != _AS_PICTURE)
    if ord(bare[0]) in _CLOCKS:
        return chr(_CLOCKS[0])
    parts = [_GENDERLESS.get(part, part) for part in bare.split(_JOINER) if part not in _DROPPED]
    people = [part for part in parts if part in ("🧑", "🧒")]
    if len(people) > 1:
        return next((found for sign, found in _TOGETHER.items() if sign in parts), "👪")
    if parts == ["🧑", "🎄"]:
        return "🎅"
    return _JOINER.join(parts)


def is_plain(emoji: Emoji) -> bool:
    """Whether this is the emoji that its concept is named after."""
    return key(emoji.chars) == key(emoji.concept)


def _is_flag(chars: str) -> bool:
    return ord(chars[0]) in _REGIONAL or any(ord(char) in _TAGS for char in chars)


def _is_writing(chars: str) -> bool:
    code = ord(chars[0])
    enclosed = code in _ENCLOSED or code in _ENCLOSED_IDEOGRAPHS
    return (enclosed and code < 0x1F260) or ord(chars[-1]) == _KEYCAP or chars[0] in _WRITING


def _texts(name: str, aliases: list[str]) -> Iterator[str]:
    """The name, and of the aliases those that say something else in words."""
    own = _words(name)
    yield own
    seen = {_letters(own), "".join(sorted(_letters(own)))}
    for alias in aliases:
        text = _words(alias)
        letters = _letters(text)
        anagram = "".join(sorted(letters))  # "dancing men" of "men dancing"
        odd = re.search(r"\d", text) or len(letters) < 3 or len(text.split()) > _LONGEST or text in _CRUDE
        if not odd and not text.startswith("flag for ") and not {letters, anagram} & seen:
            seen |= {letters, anagram}
            yield text


def _words(code: str) -> str:
    return " ".join(code.strip(":").replace("_", " ").replace("\u2019", "'").split())


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())
