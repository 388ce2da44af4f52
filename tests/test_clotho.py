"""Clotho 2.1 with its odd names and encodings; older versions and whatever is missing are one line."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

import published_trees as trees
import pytest

from sensorium.data import readers
from sensorium.data.items import SPLITS
from sensorium.data.manage import verify_dataset
from sensorium.data.readers import clotho
from sensorium.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.clotho(tmp_path / "clotho")


def test_the_published_form(root: Path) -> None:
    dataset = readers.read("clotho", root)
    assert {split: len(dataset.of_split(split)) for split in SPLITS} == {"train": 20, "val": 5, "test": 10}
    first = dataset.items[0]
    assert (first.id, first.group) == ("development/rain, on a roof.wav#0", "development/rain, on a roof.wav")
    assert first.text == 'Rain, heavy, falls "hard"'
    assert first.audio == root / "development" / "rain, on a roof.wav"
    assert [item.text for item in dataset.items[1:5]] == ["a b", "c d", "e f", "sound 1"]
    licence = "http://creativecommons.org/licenses/by/3.0/"
    assert first.meta == {"keywords": "rain;roof", "sound_id": "101", "licence": licence}
    names = [item.audio.name for item in dataset.items[::5] if item.audio]
    assert names == [name for part in trees.CLOTHO.values() for name in part]
    assert dataset.notes == (
        "Clotho: 4 / 1 / 2 sounds in train / val / test, 35 captions",
        "Clotho: version 2.1 has 3,839 / 1,045 / 1,045",
    )
    assert verify_dataset(dataset).problems == ()


def test_metadata_in_latin_1_and_with_semicolons(root: Path) -> None:
    dataset = readers.read("clotho", root)
    about = {item.audio.name: item.meta for item in dataset.items if item.audio}
    assert about["Métro porte (2).wav"]["sound_id"] == "102"
    assert about["Santa Motor.wav"]["keywords"] == "rain,roof"  # ``;`` parts the columns there
    text = (root / "clotho_metadata_development.csv").read_bytes()
    assert b"M\xe9tro" in text
    (root / "clotho_metadata_development.csv").write_bytes(text.decode("latin-1").encode())
    assert [item.meta for item in readers.read("clotho", root).items] == [item.meta for item in dataset.items]
    assert not any(item.meta for item in readers.read("clotho", root, {"metadata": False}).items)
    (root / "clotho_metadata_development.csv").unlink()
    assert not readers.read("clotho", root).items[0].meta


def test_metadata_of_unknown_sounds_are_counted(root: Path) -> None:
    with (root / "clotho_metadata_validation.csv").open("a") as file:
        file.write("nothing.wav,,1,,,,\n")
    note = "Clotho: 1 sounds of clotho_metadata_validation.csv are not in the captions of validation"
    assert readers.read("clotho", root).notes[-1] == note


def test_accents_may_be_written_in_two_ways(root: Path) -> None:
    """Archives unpacked on macOS have the other one."""
    path = root / "development" / "Métro porte (2).wav"
    path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert path.name not in {found.name for found in (root / "development").iterdir()}
    dataset = readers.read("clotho", root)
    assert verify_dataset(dataset).problems == ()
    assert len(dataset.items) == 35


def test_folders_above_do_not_matter(root: Path) -> None:
    before = [item.id for item in readers.read("clotho", root).items]
    for part in trees.CLOTHO:
        (root / "clotho_audio_files" / part).mkdir(parents=True)
        (root / part).rename(root / "clotho_audio_files" / part / part)
    (root / "csv").mkdir()
    for path in list(root.glob("*.csv")):
        path.rename(root / "csv" / path.name)
    assert [item.id for item in readers.read("clotho", root).items] == before


def captions(root: Path, change: Callable[[list[str]], object], part: str = "development") -> None:
    path = root / f"clotho_captions_{part}.csv"
    rows = path.read_text(encoding="utf-8").splitlines()
    change(rows)
    path.write_text("\n".join(rows), encoding="utf-8")


def put(number: int, row: str) -> Callable[[list[str]], object]:
    return lambda rows: rows.__setitem__(number, row)


HEADING = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "header": (
        lambda root: captions(root, put(0, HEADING.replace("caption_5", "caption_6"))),
        r"clotho_captions_development\.csv: line 1: expected the columns file_name, caption_1.* \(found 'file_name,cap",
    ),
    "fields": (
        lambda root: captions(root, put(4, "plain.wav,a,b,c,d")),
        r"development\.csv: line 5: expected 6 fields",
    ),
    "four captions": (lambda root: captions(root, put(4, "plain.wav,a,b,c,d,")), r"line 5: plain\.wav has fewer than"),
    "quote": (lambda root: captions(root, put(4, 'plain.wav,"a,b,c,d,e')), r"line 5: not a table \(unexpected end"),
    "twice": (
        lambda root: captions(root, put(4, '" two  blanks.wav",a,b,c,d,e')),
        r"line 5:  two  blanks\.wav stands in",
    ),
    "sound": (
        lambda root: (root / "validation" / "val'idation.wav").unlink(),
        r"clotho_captions_validation\.csv: line 2: val'idation\.wav is missing in .*validation; unpack clotho_audio",
    ),
    "folder": (
        lambda root: (root / "evaluation").rename(root / "x"),
        r"the folder evaluation is missing, whose sounds",
    ),
    "captions": (
        lambda root: (root / "clotho_captions_evaluation.csv").unlink(),
        r"captions_evaluation\.csv is missing$",
    ),
    "version 1": (
        lambda root: (root / "clotho_captions_validation.csv").unlink(),
        r"captions_validation\.csv is missing; Clotho 1 had none, and 2\.1 is needed",
    ),
    "version 2": (
        lambda root: captions(root, put(3, "Intersection Wet : Metro Pass.wav,a,b,c,d,e")),
        r"development\.csv: line 4: ':' in the name 'Intersection Wet : Metro Pass\.wav': this is Clotho 2\.0; take",
    ),
    "two splits": (
        lambda root: (
            captions(root, put(2, "plain.wav,a,b,c,d,e"), "evaluation"),
            (root / "evaluation" / "Santa Motor.wav").rename(root / "evaluation" / "plain.wav"),
        ),
        r"captions_evaluation\.csv: line 3: plain\.wav stands in development, too",
    ),
    "metadata": (
        lambda root: (root / "clotho_metadata_evaluation.csv").write_text("file_name;keywords\n"),
        r"clotho_metadata_evaluation\.csv: line 1: expected the columns file_name, keywords, sound_id",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_file_and_line(root: Path, case: str) -> None:
    damage, reason = DAMAGE[case]
    damage(root)
    with pytest.raises(DataError, match=reason) as caught:
        readers.read("clotho", root)
    assert "\n" not in str(caught.value)


def test_the_lists_of_other_versions_are_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About 150 sounds of 2.0 are broken, and nothing but the bytes of the list tells it from 2.1."""
    md5 = hashlib.md5((root / "clotho_captions_validation.csv").read_bytes()).hexdigest()
    monkeypatch.setitem(clotho._OTHER_VERSIONS, md5, "2.0")
    with pytest.raises(
        DataError, match=r"captions_validation\.csv: line 1: the list of Clotho 2\.0; take 2\.1, and its"
    ):
        readers.read("clotho", root)


def test_empty_lists_are_no_data_set(root: Path) -> None:
    for part in trees.CLOTHO:
        (root / f"clotho_captions_{part}.csv").write_text(HEADING)
    with pytest.raises(DataError, match="the lists of captions are empty"):
        readers.read("clotho", root)
    with pytest.raises(DataError, match="no such folder; get it by `sensorium data download clotho"):
        readers.read("clotho", root / "none")
