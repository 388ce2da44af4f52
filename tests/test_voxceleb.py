"""VoxCeleb by speaker, and ESC-50 for evaluation: published forms, counts that do not fit, strict lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import published_trees as trees
import pytest

from sensorium.data import readers
from sensorium.data.items import DataSet
from sensorium.data.readers import voxceleb
from sensorium.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.voxceleb(tmp_path / "voxceleb")


def splits_of(dataset: DataSet) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in dataset.items:
        found.setdefault(item.group, set()).add(item.split)
    return found


def test_one_item_is_one_utterance_of_a_speaker(root: Path) -> None:
    dataset = readers.read("voxceleb", root)
    assert len(dataset.items) == 12
    first = dataset.items[0]
    assert (first.id, first.group) == ("id10001/-5r0dWxy17C/00001", "id10001")
    assert first.audio == root / "dev" / "wav" / "id10001" / "-5r0dWxy17C" / "00001.wav"
    assert first.text is None
    assert first.meta == {"speaker": "id10001", "gender": "m", "video": "-5r0dWxy17C"}
    assert dataset.items[3].meta["video"] == "_zcIwhmdeo4"
    assert splits_of(dataset) == {"id10001": {"train"}, "id10002": {"train"}, "id10270": {"test"}}
    assert dataset.notes == (
        "VoxCeleb: 2 (8) / 0 (0) / 1 (4) speakers (utterances) in train / val / test",
        "VoxCeleb 1: 3 speakers and 12 utterances are there; the whole set has 1,251 and 153,516",
        "VoxCeleb: 8 of 12 utterances have a face of their speaker",
        "VoxCeleb: iden_split.txt: 2 of 2 utterances are there",
        "VoxCeleb: veri_test.txt: both utterances of 1 of 2 pairs are there",
    )


def test_faces_are_of_the_same_speaker_under_either_name(root: Path) -> None:
    faces = {}
    for item in readers.read("voxceleb", root).items:
        faces.setdefault(item.group, []).append(
            item.image and item.image.relative_to(root / "unzippedFaces").as_posix()
        )
    assert faces["id10001"] == [f"id10001/1.6/x/{n:07}.jpg" for n in (0, 1, 2, 0)]
    assert faces["id10270"] == [f"Eartha_Kitt/1.6/x/{n:07}.jpg" for n in (0, 1, 2, 0)]
    assert faces["id10002"] == [None] * 4
    assert not any(item.image for item in readers.read("voxceleb", root, {"faces": False}).items)


def test_nobody_is_heard_in_two_splits(root: Path) -> None:
    for seed in range(4):
        dataset = readers.read("voxceleb", root, {"val_share": 0.5, "seed": seed})
        assert all(len(found) == 1 for found in splits_of(dataset).values())
        assert splits_of(dataset)["id10270"] == {"test"}
    drawn = [splits_of(readers.read("voxceleb", root, {"val_share": 0.5, "seed": s}))["id10001"] for s in range(12)]
    assert {"train"} in drawn
    assert {"val"} in drawn


def test_voxceleb_2_and_its_packed_sound(root: Path) -> None:
    (root / "vox2_meta.csv").write_text("VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,f ,dev \n")
    folder = root / "vox2" / "dev" / "aac" / "id00012" / "21Uxsk56VDQ"
    folder.mkdir(parents=True)
    for name in ("00001.m4a", "00002.m4a", "00002.wav"):
        (folder / name).write_bytes(b"x")
    dataset = readers.read("voxceleb", root)
    found = {item.id: item.audio and item.audio.name for item in dataset.items if item.group == "id00012"}
    assert found == {"id00012/21Uxsk56VDQ/00001": "00001.m4a", "id00012/21Uxsk56VDQ/00002": "00002.wav"}
    assert "VoxCeleb 2: 1 speakers and 2 utterances are there; the whole set has 6,112 and 1,128,246" in dataset.notes
    assert "VoxCeleb: 1 utterances are M4A, which is not decoded; make WAV beside them (ffmpeg)" in dataset.notes


def test_what_is_no_sound_is_counted(root: Path) -> None:
    (root / "dev" / "wav" / "id10001" / "-5r0dWxy17C" / "00001.txt").write_text("frames")
    (root / "dev" / "wav" / "id10001" / "-5r0dWxy17C" / "._00001.wav").write_text("fork")
    notes = readers.read("voxceleb", root).notes
    assert f"VoxCeleb: 1 files in {root / 'dev' / 'wav'} are neither WAV nor M4A, left out" in notes


def test_the_lists_are_parsed_strictly(root: Path) -> None:
    assert voxceleb.identification(root / "iden_split.txt") == [
        (1, "id10001/-5r0dWxy17C/00001"),
        (3, "id10001/-5r0dWxy17C/00002"),
    ]
    assert voxceleb.verification(root / "veri_test.txt")[1] == (
        *(False, "id10270/-5r0dWxy17C/00001"),
        "id10001/_zcIwhmdeo4/00099",
    )


def table(line: int, text: str) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        rows = (root / "vox1_meta.csv").read_text().splitlines()
        rows[line - 1] = text.replace("|", "\t")
        (root / "vox1_meta.csv").write_text("\n".join(rows))

    return damage


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def moved(name: str, target: str) -> Callable[[Path], object]:
    return lambda root: (root / name).rename(root / target)


UTTERANCE = "id10270/-5r0dWxy17C/00001.wav"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "header": (
        table(1, "ID|Name|Gender|Nationality|Set"),
        r"vox1_meta\.csv: line 1: expected the columns VoxCeleb1 ID",
    ),
    "commas": (
        table(1, "VoxCeleb1 ID,VGGFace1 ID,Gender,Nationality,Set"),
        r"vox1_meta\.csv: line 2: expected 5 fields",
    ),
    "fields": (table(3, "id10002|A.R._Rahman|m|dev"), r"vox1_meta\.csv: line 3: expected 5 fields \(found 4"),
    "gender": (table(3, "id10002|A.R._Rahman|x|India|dev"), r"line 3: expected id00000, a name, m or f, dev or test"),
    "set": (table(3, "id10002|A.R._Rahman|m|India|val"), r"line 3: expected id00000"),
    "id": (table(3, "10002|A.R._Rahman|m|India|dev"), r"line 3: expected id00000"),
    "twice": (table(3, "id10001|A.R._Rahman|m|India|dev"), r"line 3: id10001 stands there already"),
    "no table": (moved("vox1_meta.csv", "x"), r"VoxCeleb in .*: vox1_meta\.csv \(or vox2_meta\.csv\) is missing"),
    "stranger": (moved("dev/wav/id10002", "dev/wav/id10003"), r"dev/wav/id10003: no such speaker in vox1_meta"),
    "face": (moved("unzippedFaces/id10001", "unzippedFaces/X"), r"unzippedFaces/X: no such speaker"),
    "number": (
        moved("dev/wav/id10001/-5r0dWxy17C/00001.wav", "dev/wav/id10001/-5r0dWxy17C/one.wav"),
        r"one\.wav: expected the number of an utterance, like 00001\.wav",
    ),
    "silence": (
        lambda root: [(root / part / "wav").rename(root / part / "x") for part in ("dev", "test")],
        r"the tables are there, but no utterances \(wav/ID/VIDEO/N\.wav\)",
    ),
    "part": (written("iden_split.txt", f"4 {UTTERANCE}"), r"iden_split\.txt: line 1: expected 1\|2\|3 and 1 names"),
    "path": (written("iden_split.txt", f"\n1 x/{UTTERANCE}"), r"iden_split\.txt: line 2: expected ID/VIDEO/N\.wav"),
    "pair": (written("veri_test.txt", f"1 {UTTERANCE}"), r"veri_test\.txt: line 1: expected 0\|1 and 2 names"),
    "mark": (written("veri_test.txt", f"0 {UTTERANCE} {UTTERANCE}"), r"line 1: 0 does not fit the speakers of id10270"),
    "unknown": (
        written("veri_test.txt", f"0 {UTTERANCE} id10999/x/00001.wav"),
        r"veri_test\.txt: id10999 is no speaker of the tables",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_file_and_line(root: Path, case: str) -> None:
    damage, reason = DAMAGE[case]
    damage(root)
    with pytest.raises(DataError, match=reason) as caught:
        readers.read("voxceleb", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wide", [True, False])
def test_esc50_is_for_evaluation(tmp_path: Path, wide: bool) -> None:
    root = trees.esc50(tmp_path / "esc50", wide)
    dataset = readers.read("esc50", root)
    assert {item.split for item in dataset.items} == {"test"}
    assert [(item.labels, item.meta["fold"]) for item in dataset.items[:2]] == [
        (("dog",), "1"),
        (("crying_baby",), "2"),
    ]
    assert dataset.items[0].audio == root / "ESC-50-master" / "audio" / "1-100030-A-0.wav"
    assert dataset.items[0].text is None
    assert len({item.group for item in dataset.items}) == 5
    assert dataset.notes == (
        "ESC-50: 5 sounds of 3 classes, all for evaluation",
        "ESC-50: the whole set has 2,000 sounds of 50 classes",
    )


ESC: dict[str, tuple[str, str, str]] = {
    "header": ("filename,", "file,", r"esc50\.csv: line 1: expected the columns filename, fold, target, category"),
    "fold": ("-A-0.wav,1,", "-A-0.wav,6,", r"esc50\.csv: line 2: fold '6'; expected one of 1, 2, 3, 4, 5"),
    "class": ("3,0,dog", "3,1,dog", r"esc50\.csv: line 4: target '1' and category 'dog' do not fit the lines above"),
    "target": ("3,0,dog", "3,0,cat", r"esc50\.csv: line 4: target '0' and category 'cat' do not fit"),
    "twice": ("3-100032-A-0.wav", "1-100030-A-0.wav", r"esc50\.csv: line 4: 1-100030-A-0\.wav stands there twice"),
    "sound": ("3-100032-A-0.wav", "3-100032-A-1.wav", r"esc50\.csv: line 4: 3-100032-A-1\.wav is missing in .*audio"),
}


@pytest.mark.parametrize("case", ESC)
def test_damage_of_esc50_is_named_with_file_and_line(tmp_path: Path, case: str) -> None:
    old, new, reason = ESC[case]
    path = trees.esc50(tmp_path / "esc50") / "ESC-50-master" / "meta" / "esc50.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=reason):
        readers.read("esc50", tmp_path / "esc50")
    path.unlink()
    with pytest.raises(DataError, match=r"ESC-50 in .*: esc50\.csv is missing"):
        readers.read("esc50", tmp_path / "esc50")
