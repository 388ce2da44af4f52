"""Readers: native, stamps and synthetic; what they give, and one clear line for what they cannot read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from sensorium.data import grouping, readers
from sensorium.data.items import SPLITS, DataSet, Item
from sensorium.data.media import load_audio, load_image
from sensorium.data.readers import stamps
from sensorium.errors import ConfigError, DataError


def test_readers_are_found_by_the_name_of_their_module() -> None:
    published = ["audiocaps", "clotho", "coco", "esc50", "flickr8k", "voxceleb"]
    published += ["activitynet", "didemo", "fluent_emoji", "msrvtt", "vatex"]
    published += ["flickr_aes", "pmg_json", "pog", "ser30k"]
    assert readers.names() == sorted([*published, "emoji", "moving", "native", "stamps", "synthetic", "videos"])
    for name in readers.names():
        reader = readers.load(name)
        assert name == reader.NAME
        assert reader.SUMMARY
        assert reader.LICENCE
    with pytest.raises(ConfigError, match="no reader 'cocoa'; there are activitynet, audiocaps, clotho"):
        readers.read("cocoa")


# --- groups and splits ---


def test_merge_follows_chains() -> None:
    assert grouping.merge([{"a"}, {"b"}, {"c", "b"}, {"d"}, {"a", "c"}, set()]) == [0, 0, 0, 3, 0, 5]


def test_splits_have_their_shares_and_depend_on_the_name_alone() -> None:
    names = [f"group {number}" for number in range(4000)]
    split = {name: grouping.split_of(name, 0) for name in names}
    shares = [sum(found == wanted for found in split.values()) / len(names) for wanted in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)  # four standard deviations of 4000 draws
    assert [grouping.split_of(name, 0) for name in reversed(names)] == list(reversed(split.values()))
    assert [grouping.split_of(name, 1) for name in names] != list(split.values())


# --- native ---


def write_manifest(folder: Path, *lines: Mapping[str, Any] | str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "manifest.jsonl").write_text(text + "\n", encoding="utf-8")


def line(**values: Any) -> dict[str, Any]:
    return {"id": "1", "split": "train", "text": "a dog", **values}


def test_native_lines_become_items(tmp_path: Path) -> None:
    full = {"id": "2", "group": "g", "split": "val", "image": "i/a.png", "audio": "a/b.wav", "labels": ["x", "y"]}
    write_manifest(tmp_path, line(text="ein Hund\u2028x"), "", {**full, "time": 2.5, "meta": {"k": "v"}})
    dataset = readers.read("native", tmp_path)
    assert dataset == DataSet(
        "native",
        tmp_path,
        "not stated",
        (
            Item("1", "1", "train", "ein Hund\u2028x"),
            Item("2", "g", "val", None, tmp_path / "i/a.png", tmp_path / "a/b.wav", ("x", "y"), 2.5, {"k": "v"}),
        ),
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"id": "1", "split": "train"}, "has none of text, image, audio"),
        ({"id": "1", "text": "a"}, "split is missing"),
        (line(split="dev"), "split: input should be 'train', 'val' or 'test'"),
        (line(txt="a"), "unknown key 'txt' (allowed: id, split"),
        (line(id=1), "id: input should be a valid string"),
        (line(text=""), "text: string should have at least 1 character"),
        (line(image="/etc/passwd"), "image: '/etc/passwd' leaves the folder"),
        (line(audio="a/../../b.wav"), "audio: 'a/../../b.wav' leaves the folder"),
        (line(image="C:\\a.png"), "leaves the folder"),
        (line(image="."), "image: '.' leaves the folder"),
        (line(audio="a\0b.wav"), r"audio: 'a\x00b.wav' leaves the folder"),
        ("{", "EOF while parsing"),
        ("[]", "should be an object"),
        ('{"id": "1", "split": "train", "text": "a", "time": NaN}', "time: input should be a finite number"),
    ],
)
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, bad: Mapping[str, Any] | str, reason: str) -> None:
    write_manifest(tmp_path, line(id="0"), bad)
    with pytest.raises(DataError) as caught:
        readers.read("native", tmp_path)
    assert "manifest.jsonl: 1 problem\n  line 2: " in str(caught.value)
    assert reason.lower() in str(caught.value).lower()


def test_all_problems_of_a_manifest_at_once(tmp_path: Path) -> None:
    write_manifest(tmp_path, line(), *[line(id=f"{n}", split="x") for n in range(30)], line())
    with pytest.raises(DataError) as caught:
        readers.read("native", tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("31 problems")
    assert len(lines) == 22
    assert lines[-1] == "  and 11 more"
    write_manifest(tmp_path, line(), line())
    with pytest.raises(DataError, match="line 2: id '1' stands in line 1 already"):
        readers.read("native", tmp_path)


def test_a_missing_or_empty_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.jsonl: cannot be read"):
        readers.read("native", tmp_path)
    write_manifest(tmp_path)
    with pytest.raises(DataError, match="holds no items"):
        readers.read("native", tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        readers.read("native", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        readers.read("native", tmp_path / "none")
    with pytest.raises(DataError, match="needs the folder"):
        readers.read("native")


# --- stamps ---


def add_stamp(root: Path, name: str, caption: str, shade: int, sounds: Mapping[str, float]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path.with_suffix(".png"))
    path.with_suffix(".txt").write_text(f"{caption}\nfr.utf8=fr {caption}\nes.utf8= \nde.utf8=1=1 \n", encoding="utf-8")
    for ending, level in sounds.items():
        soundfile.write(f"{path}{ending}.ogg", np.full(1600, level), 16000)


@pytest.fixture
def stamp_root(tmp_path: Path) -> Path:
    root = tmp_path / "unpacked" / "usr" / "share" / "tuxpaint" / "stamps"
    add_stamp(root, "animals/dog", "A dog.", 1, {"_desc_fr": 0.1, "_desc_es": 0.2, "_desc": 0.3, "": 0.4})
    Image.new("RGB", (4, 4), (2, 0, 0)).save(root / "animals/dog_mirror.png")
    add_stamp(root, "animals/cartoon/dog", "A dog.", 3, {"_desc_fr": 0.5})  # the same caption
    add_stamp(root, "town/bus", "A bus.", 4, {"_desc_fr.ogg": 0.6})  # the ending is doubled, as in one real file
    add_stamp(root, "town/coach", "A coach.", 5, {})
    shutil.copyfile(root / "town/bus_desc_fr.ogg.ogg", root / "town/coach_desc_fr.ogg")
    add_stamp(root, "town/tram", "A tram.", 6, {})
    add_stamp(root, "town/drawn", "Drawn.", 7, {"_desc_fr": 0.7})
    (root / "town/drawn.png").rename(root / "town/drawn.svg")
    (root / "town/tram.svg").write_text("<svg/>")
    soundfile.write(root / "town" / "lost_desc_fr.ogg", np.full(160, 0.1), 16000)
    return root


def test_stamps_join_pictures_captions_and_speech(stamp_root: Path, tmp_path: Path) -> None:
    dataset = readers.read("stamps", tmp_path / "unpacked")  # the real folder is found below it
    items = {item.id: item for item in dataset.items}
    assert list(items) == [
        "animals/cartoon/dog#fr",
        "animals/dog#fr",
        "animals/dog_mirror#fr",
        "town/bus#fr",
        "town/coach#fr",
        "town/tram",
    ]
    dog = items["animals/dog#fr"]
    assert dog.text == "A dog."
    assert dog.audio == stamp_root / "animals/dog_desc_fr.ogg"
    assert dog.labels == ("animals",)
    assert dog.meta == {"language": "en", "sound": "speech", "speech": "fr"}
    assert items["animals/dog_mirror#fr"].audio == dog.audio
    assert items["town/tram"].audio is None
    assert dataset.notes == (
        "stamps: 1 pictures left out that are there as SVG only, and their 1 recordings",
        "stamps: 1 recordings left out that belong to no picture",
        "stamps: 6 pictures of 3 subjects, 6 items, 5 with sound",
    )


def test_near_copies_of_stamps_are_one_group(stamp_root: Path) -> None:
    groups = {item.id: item.group for item in readers.read("stamps", stamp_root).items}
    dogs = {groups[name] for name in groups if "dog" in name}
    road = {groups["town/bus#fr"], groups["town/coach#fr"]}
    assert len(dogs) == len(road) == 1
    assert len({*dogs, *road, groups["town/tram"]}) == 3
    again = readers.read("stamps", stamp_root, {"speech": ["es"], "sounds": "both"})
    assert {item.id.partition("#")[0]: item.group for item in again.items} == {
        name.partition("#")[0]: group for name, group in groups.items()
    }


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"speech": ["fr", "en"]}, [("#fr", "A dog."), ("#en", "A dog.")]),
        ({"speech": ["fr", "en"], "text": "same"}, [("#fr", "fr A dog."), ("#en", "A dog.")]),
        ({"speech": ["es"], "text": "same"}, [("#es", None)]),
        ({"text": "de"}, [("#fr", "1=1")]),
        ({"sounds": "effects"}, [("#effect", "A dog.")]),
        ({"sounds": "both"}, [("#fr", "A dog."), ("#effect", "A dog.")]),
    ],
)
def test_languages_and_effects_of_stamps(
    stamp_root: Path, options: Mapping[str, Any], found: list[tuple[str, str | None]]
) -> None:
    items = readers.read("stamps", stamp_root, options).items
    assert [
        (item.id.removeprefix("animals/dog"), item.text) for item in items if item.id.startswith("animals/dog#")
    ] == found


def test_languages_that_no_stamp_has_are_named(stamp_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no speech in ru; there is fr \d, en 2, es 2"):
        readers.read("stamps", stamp_root, {"speech": ["fr", "ru"]})
    with pytest.raises(DataError, match="no captions in 'it'; there are de, en, fr"):
        readers.read("stamps", stamp_root, {"text": "it"})
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no stamps"):
        readers.read("stamps", empty)
    with pytest.raises(DataError, match="no such folder"):
        readers.read("stamps", tmp_path / "none")


def test_without_apt_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="sudo apt install tuxpaint-stamps-default"):
        stamps.fetch_stamps(tmp_path / "stamps")
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(DataError, match=r"apt-get cannot fetch the stamps \(E: no network\): install"):
        stamps.fetch_stamps(tmp_path / "stamps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apt-get", "dpkg-deb"]  # nothing is left behind


def test_fetched_stamps_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text("#!/bin/sh\n: > stamps.deb\n")
    (tools / "dpkg-deb").write_text('#!/bin/sh\n/bin/mkdir -p "$3/usr/share/tuxpaint/stamps/animals"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    found = stamps.fetch_stamps(tmp_path / "stamps")
    assert (found / "animals").is_dir()
    (tools / "apt-get").unlink()
    assert stamps.fetch_stamps(tmp_path / "stamps") == found


# --- synthetic ---


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return readers.read("synthetic", tmp_path_factory.mktemp("synthetic"))


def test_synthetic_pairs_are_held_out_but_no_colour_or_shape_is(synthetic: DataSet) -> None:
    assert len(synthetic.items) == 384
    pairs = {split: {item.labels[1:] for item in synthetic.of_split(split)} for split in SPLITS}
    assert {split: len(found) for split, found in pairs.items()} == {"train": 48, "val": 8, "test": 8}
    assert not pairs["train"] & (pairs["val"] | pairs["test"])
    assert not pairs["val"] & pairs["test"]
    for split in ("val", "test"):
        assert {colour for colour, _ in pairs[split]} <= {colour for colour, _ in pairs["train"]}
        assert {shape for _, shape in pairs[split]} <= {shape for _, shape in pairs["train"]}


def test_synthetic_text_picture_and_sound_say_the_same(synthetic: DataSet) -> None:
    """The centre of the pictures holds their colour, and the loudest frequency is that of their colour."""
    pitches: dict[str, set[int]] = {}
    for item in synthetic.items[::7]:
        assert item.text is not None
        assert item.image is not None
        assert item.audio is not None
        assert all(word in item.text for word in item.labels)
        assert load_image(item.image).size == (96, 96)
        spectrum = np.abs(np.fft.rfft(load_audio(item.audio)))
        half_tones = round(12 * np.log2(spectrum.argmax() / 1.2 / 220))
        pitches.setdefault(item.labels[1], set()).add(half_tones)
    assert sorted(pitches.values(), key=min) == [{3 * number} for number in range(8)]


def test_synthetic_is_a_function_of_its_seed(synthetic: DataSet, tmp_path: Path) -> None:
    again = readers.read("synthetic", tmp_path)
    other = readers.read("synthetic", tmp_path, {"seed": 1, "variants": 1})
    assert [item.id for item in again.items] == [item.id for item in synthetic.items]
    for one, two in list(zip(synthetic.items, again.items, strict=True))[::31]:
        assert one.image is not None
        assert two.image is not None
        assert one.image.read_bytes() == two.image.read_bytes()
    assert other.root != again.root
    assert {i.id for i in other.of_split("test")} != {i.id for i in again.of_split("test") if i.id.endswith("-0")}


def test_synthetic_is_made_once_and_whole(tmp_path: Path) -> None:
    first = readers.read("synthetic", tmp_path, {"variants": 1})
    stamp = (first.root / "manifest.jsonl").stat().st_mtime_ns
    assert readers.read("synthetic", tmp_path, {"variants": 1}) == first
    assert (first.root / "manifest.jsonl").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [first.root.name]
    (first.root / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match="exists already"):  # somebody's folder is never overwritten
        readers.read("synthetic", tmp_path, {"variants": 1})
