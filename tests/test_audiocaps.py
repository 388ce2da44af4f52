"""AudioCaps: clips under four kinds of names, missing ones counted, versions never mixed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import published_trees as trees
import pytest

from sensorium.data import readers
from sensorium.data.items import SPLITS, Split
from sensorium.data.readers import audiocaps
from sensorium.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The lists, and the clips of all but 4abcdefghij and 9abcdefghij, each under another kind of name."""
    root = trees.audiocaps(tmp_path / "audiocaps")
    names = (
        *("train/-1abcdefghi_30.wav", "train/102.flac", "train/3abcdefghij.wav", "train/Y5abcdefghij.wav"),
        *("val/6abcdefghij_30.wav", "val/7abcdefghij_30.ogg", "test/8abcdefghij_250.wav"),
    )
    for number, name in enumerate(names):
        trees.sound(root / name, number, 32000) if name.endswith(".wav") else other(root / name)
    return root


def other(path: Path) -> None:
    """Readers do not decode: the bytes do not matter here."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")


def test_what_is_there_is_read_and_what_is_missing_is_counted(root: Path) -> None:
    dataset = readers.read("audiocaps", root)
    found = {item.group: item.audio.relative_to(root).as_posix() for item in dataset.items if item.audio}
    assert found == {
        "-1abcdefghi_30": "train/-1abcdefghi_30.wav",
        "_2abcdefghi_0": "train/102.flac",
        "3abcdefghij_110": "train/3abcdefghij.wav",
        "5abcdefghij_1": "train/Y5abcdefghij.wav",
        "6abcdefghij_30": "val/6abcdefghij_30.wav",
        "7abcdefghij_30": "val/7abcdefghij_30.ogg",
        "8abcdefghij_250": "test/8abcdefghij_250.wav",
    }
    assert {split: len(dataset.of_split(split)) for split in SPLITS} == {"train": 4, "val": 10, "test": 5}
    assert (dataset.items[0].id, dataset.items[0].text) == ("101", "A bell rings, 0 times")
    assert dataset.notes[::2] == (
        "AudioCaps: train: 4 of 5 clips are there, 1 are missing (first: 4abcdefghij_20)",
        "AudioCaps: val: 2 of 2 clips are there",
        "AudioCaps: test: 1 of 2 clips are there, 1 are missing (first: 9abcdefghij_30)",
    )
    assert dataset.notes[1::2] == tuple(
        f"AudioCaps: {split}: version 1 has {count:,} clips"
        for split, count in (("train", 49_838), ("val", 495), ("test", 975))
    )


@pytest.mark.parametrize("left", [4, 3, 2, 1])
def test_the_four_names_are_looked_for_in_their_order(root: Path, left: int) -> None:
    names = ("-1abcdefghi_30.wav", "101.wav", "-1abcdefghi.wav", "Y-1abcdefghi.wav")
    (root / "train" / names[0]).unlink()
    for name in names[-left:]:
        other(root / "train" / name)
    assert readers.read("audiocaps", root).items[0].audio == root / "train" / names[-left]


def test_one_file_for_two_clips_is_said(root: Path) -> None:
    with (root / "train.csv").open("a", newline="") as file:
        file.write("999,3abcdefghij,20,A second clip of one video\r\n")
    note = "AudioCaps: train: 1 files serve more than one clip; name them YOUTUBE_START"
    assert note in readers.read("audiocaps", root).notes


def test_lists_without_a_clip_are_no_data_set(root: Path) -> None:
    for path in (path for path in root.rglob("*") if path.suffix in audiocaps.SOUNDS):
        path.unlink()
    with pytest.raises(DataError, match=r"none of their clips; .*data download audiocaps --root .* --audio"):
        readers.read("audiocaps", root)
    assert {split: len(rows) for split, rows in audiocaps.read_lists(root).items()} == {
        "train": 5,
        "val": 10,
        "test": 10,
    }


def test_version_2_is_read_when_it_is_asked_for(root: Path) -> None:
    trees.audiocaps(root, version=2)
    assert len(readers.read("audiocaps", root, {"version": 2}).items) == 19
    with pytest.raises(DataError, match=r"train\.csv: line 6: 5 rows, 0 .* this is version 2, version 1 is asked for"):
        readers.read("audiocaps", root)


@pytest.mark.parametrize("split", SPLITS)
def test_versions_are_never_mixed(root: Path, tmp_path: Path, split: Split) -> None:
    """Version 2 has the same clips and ids to test on as version 1: only the captions differ."""
    newer = trees.audiocaps(tmp_path / "newer", version=2)
    (newer / f"{split}.csv").replace(root / f"{split}.csv")
    with pytest.raises(
        DataError, match=rf"{split}\.csv: line \d+: .* version 2, version 1 is asked for; take all three"
    ):
        readers.read("audiocaps", root)
    with pytest.raises(DataError, match=r"this is version 1, version 2 is asked for"):
        readers.read("audiocaps", root, {"version": 2})


def test_too_many_rows_are_version_2(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audiocaps.FULL, "train", 4)
    with pytest.raises(DataError, match=r"train\.csv: line 6: 5 rows, 5 .* this is version 2"):
        readers.read("audiocaps", root)


def row(text: str, split: str = "val", line: int = 2) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        rows = (root / f"{split}.csv").read_text().splitlines()
        rows[line - 1] = text
        (root / f"{split}.csv").write_text("\n".join(rows))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "header": (
        row("youtube_id,start_time,caption", line=1),
        r"val\.csv: line 1: expected the columns audiocap_id, yout",
    ),
    "fields": (row("106,6abcdefghij,30,A,b"), r"val\.csv: line 2: expected 4 fields \(found 5"),
    "id": (row("106,6abcdefgh,30,A b"), r"val\.csv: line 2: expected a number, an id of YouTube, seconds, a caption"),
    "start": (row("106,6abcdefghij,3.5,A b"), r"val\.csv: line 2: expected a number"),
    "caption": (row("106,6abcdefghij,30, "), r"val\.csv: line 2: expected a number"),
    "id twice": (
        row("107,6abcdefghij,30,A b"),
        r"val\.csv: line 3: audiocap_id 107 stands in .*val\.csv: line 2 already",
    ),
    "two splits": (
        row("106,-1abcdefghi,30,A b"),
        r"val\.csv: line 2: -1abcdefghi of val stands in .*train\.csv: line 2",
    ),
    "list": (lambda root: (root / "test.csv").unlink(), r"AudioCaps in .*: test\.csv missing; get the lists by"),
    "empty": (lambda root: (root / "val.csv").write_text(",".join(audiocaps.COLUMNS)), r"val\.csv: holds no captions"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_file_and_line(root: Path, case: str) -> None:
    damage, reason = DAMAGE[case]
    damage(root)
    with pytest.raises(DataError, match=reason) as caught:
        readers.read("audiocaps", root)
    assert "\n" not in str(caught.value)


def test_hidden_folders_are_not_looked_into(root: Path) -> None:
    """Where a download puts what is not whole yet."""
    (root / ".clips").mkdir()
    os.rename(root / "val" / "6abcdefghij_30.wav", root / ".clips" / "6abcdefghij_30.wav")  # noqa: PTH104
    assert "6abcdefghij_30" not in {item.group for item in readers.read("audiocaps", root).items}
