"""Emoji: pictures of twemoji and OpenMoji, with names and aliases, spoken by espeak-ng where wanted.

One Item is one picture with one text (and one synthetic recording of it). A group is a concept: all variants of an
emoji by skin, gender, hair or direction, both vendors' drawings, and whatever shares a name or a picture with them.
Country flags and pictures of writing are left out by default: their names are proper nouns and letters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium.config import Section
from sensorium.data import speech
from sensorium.data.emoji_art import ART, pictures
from sensorium.data.emoji_names import Emoji, catalogue, is_plain, key
from sensorium.data.files import cache_folder
from sensorium.data.grouping import draw, merge, split_of
from sensorium.data.items import DataSet, Item
from sensorium.errors import DataError

NAME = "emoji"
SUMMARY = "emoji of twemoji and OpenMoji with names and aliases, spoken by a synthetic voice (pip packages)"
LICENCE = "; ".join(f"{art}: {licence}" for art, licence in ART.items()) + "; names: Unicode licence"

Drawn = Mapping[str, Mapping[str, Path]]
"""Picture by art and emoji."""


class Options(Section):
    """Which emoji, drawn and said by whom."""

    art: tuple[Literal["twemoji", "openmoji"], ...] = Field(("twemoji",), min_length=1, description="Whose drawings.")
    aliases: bool = Field(True, description="Take aliases that are words, too (`coffee` for `hot beverage`).")
    variants: bool = Field(False, description="Take all skin tones, genders and the like; false: one of a concept.")
    flags: bool = Field(False, description="Take the flags of countries and regions.")
    writing: bool = Field(False, description="Take pictures of writing: keycaps, letters, words, enclosed ideographs.")
    limit: int | None = Field(None, ge=3, description="Take this many groups, drawn by the seed; null: all.")
    speech: bool = Field(False, description="Make a recording of each text with espeak-ng.")
    voices: tuple[str, ...] = Field(
        ("en-us", "en-us+f3", "en-gb", "en-gb+f2", "en-gb-scotland+m3"),
        min_length=1,
        description="Voices of espeak-ng, one of which is drawn for a text; LANGUAGE or LANGUAGE+VARIANT.",
    )
    speed: int = Field(160, ge=80, le=450, description="Words a minute.")
    speech_folder: str | None = Field(None, description="Where recordings are kept; null: the cache folder.")
    seed: int = Field(0, ge=0, description="Of the split, the voices and the limit.")
    val_share: float = Field(0.1, ge=0, le=0.4, description="Part of the groups that is val, in the mean.")
    test_share: float = Field(0.1, ge=0, le=0.4, description="Part of the groups that is test, in the mean.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the installed packages. Raises DataError: one is missing, ``root`` is given, a voice is unknown."""
    if root is not None:
        raise DataError(f"the emoji are read from installed packages; leave out the root {root}")
    emoji = catalogue()
    groups = concept_groups(emoji)
    taken = _taken(emoji, groups, options)
    drawn: Drawn = {art: pictures(art, [one.chars for one in taken]) for art in dict.fromkeys(options.art)}
    spoken = _speak(taken, options) if options.speech else {}
    items = tuple(item for one in taken for item in _items(one, groups[one.chars], drawn, spoken, options))
    files = {path for item in items for path in (item.image, item.audio) if path}
    common = Path(os.path.commonpath(files))
    return DataSet(
        NAME, common if common.is_dir() else common.parent, LICENCE, items, tuple(_notes(items, taken, drawn))
    )


def concept_groups(emoji: Sequence[Emoji]) -> dict[str, str]:
    """Group by emoji: over all of them, so that no option moves one into another split. Raises DataError."""
    drawn = pictures("twemoji", [one.chars for one in emoji])
    keys = []
    for one in emoji:
        same = {("concept", one.concept), *(("text", text.casefold()) for text in one.texts)}
        if one.chars in drawn:
            same.add(("picture", hashlib.sha256(drawn[one.chars].read_bytes()).hexdigest()))
        keys.append(same)
    names = {one.concept: one.texts[0] for one in sorted(emoji, key=is_plain)}  # the plain one comes last, and wins
    return {one.chars: names[emoji[first].concept] for one, first in zip(emoji, merge(keys), strict=True)}


def _taken(emoji: Sequence[Emoji], groups: Mapping[str, str], options: Options) -> list[Emoji]:
    taken = [one for one in emoji if (options.flags or not one.is_flag) and (options.writing or not one.is_writing)]
    if not options.variants:
        bases: dict[str, Emoji] = {}
        for one in taken:
            if one.concept not in bases or is_plain(one):
                bases[one.concept] = one
        taken = [one for one in taken if bases[one.concept] is one]
    if options.limit is not None:
        names = sorted({groups[one.chars] for one in taken}, key=lambda group: draw(options.seed, "limit", group))
        kept = set(names[: options.limit])
        taken = [one for one in taken if groups[one.chars] in kept]
    return taken


def _texts(one: Emoji, options: Options) -> tuple[str, ...]:
    return one.texts if options.aliases else one.texts[:1]


def _speak(taken: Sequence[Emoji], options: Options) -> dict[str, tuple[Path, str]]:
    """Recording and voice by text."""
    voices = [speech.Voice(name, options.speed) for name in options.voices]
    texts = list(dict.fromkeys(text for one in taken for text in _texts(one, options)))
    said = [speech.pick(text, voices, options.seed) for text in texts]
    folder = Path(options.speech_folder).expanduser() if options.speech_folder else cache_folder("speech")
    paths = speech.speak(said, folder)
    return {one.text: (path, one.voice.name) for one, path in zip(said, paths, strict=True)}


def _items(
    one: Emoji, group: str, drawn: Drawn, spoken: Mapping[str, tuple[Path, str]], options: Options
) -> Iterator[Item]:
    for art, images in drawn.items():
        for number, text in enumerate(_texts(one, options) if one.chars in images else ()):
            path, voice = spoken.get(text, (None, ""))
            said = {"voice": voice, "speech": "synthetic"} if path else {}
            yield Item(
                id=f"{art}/{key(one.chars)}#{number}",
                group=group,
                split=split_of(group, options.seed, options.val_share, options.test_share),
                text=text,
                image=images[one.chars],
                audio=path,
                meta={"emoji": one.chars, "art": art, "text": "alias" if number else "name", **said},
            )


def _notes(items: Sequence[Item], taken: Sequence[Emoji], drawn: Drawn) -> Iterator[str]:
    groups = len({item.group for item in items})
    texts = len({item.text for item in items})
    yield f"emoji: {len(taken)} emoji of {groups} groups, {texts} texts, {len(items)} items"
    for art, images in drawn.items():
        if len(images) < len(taken):
            yield f"emoji: {len(taken) - len(images)} have no picture by {art} and are left out there"
    if any(item.audio for item in items):
        yield "emoji: the speech is synthetic (espeak-ng)"
