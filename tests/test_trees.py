"""Any data set written like COCO or like Clotho, and read again: the same ids, groups, splits and captions."""

from __future__ import annotations

import csv
import errno
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import published_trees as trees
import pytest
import soundfile
from disks import Failing, on

from sensorium import cli
from sensorium.data import manage, readers
from sensorium.data.items import SPLITS, DataSet, Item
from sensorium.data.manage import verify_dataset, write_tree
from sensorium.data.media import load_audio
from sensorium.errors import ConfigError, DataError, DiskError


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    """Groups of two pictures; a picture with two captions, a sound with seven; one picture without sound."""
    root = tmp_path / "data"
    items: list[Item] = []
    for number in range(8):
        image, audio = root / f"{number}.PNG", root / f"{number}.{'wav' if number % 2 else 'ogg'}"
        trees.picture(image, number)
        soundfile.write(audio, np.full(2400, 0.1 + number / 20), 24000)
        split = SPLITS[(0, 0, 0, 0, 1, 1, 2, 2)[number]]
        common = {
            "group": f"group {number // 2}",
            "split": split,
            "image": image,
            "labels": ("thing", f"{number // 2}"),
        }
        for k in range((1, 2, 1, 7, 1, 1, 1, 1)[number]):
            items.append(Item(f"{number}/ä,#{k}", text=f'Caption "{k}", of {number}', audio=audio, **common))  # type: ignore[arg-type]
    items.append(replace(items[0], id="dumb", audio=None, image=None))
    items.append(replace(items[0], id="mute", text=None))
    items.append(replace(items[0], id="blind", image=None))
    return DataSet("mine", root, "CC0", tuple(items))


def kept(dataset: DataSet, modality: str) -> list[tuple[object, ...]]:
    rows = [(i.id, i.group, i.split, i.text) for i in dataset.items if i.text and getattr(i, modality)]
    return sorted(rows)


def test_coco_and_back(dataset: DataSet, tmp_path: Path) -> None:
    target = tmp_path / "new" / "coco"
    assert write_tree(dataset, target, "coco") == 15
    again = readers.read("coco", target)
    assert kept(again, "image") == kept(dataset, "image")
    assert len(again.items) == 15
    assert verify_dataset(again).problems == ()
    old = {item.id: item for item in dataset.items}
    for item in again.items:
        assert item.image is not None
        assert item.image.resolve() == old[item.id].image
        assert item.image.suffix == ".png"
        assert set(item.labels) == set(old[item.id].labels)
    assert sorted(path.name for path in target.iterdir()) == [
        "annotations",
        "dataset_coco.json",
        "train2017",
        "val2017",
    ]
    official = readers.read("coco", target, {"split": "official"})
    assert Counter(item.split for item in official.items) == {"train": 11, "val": 4}
    assert {(item.id, item.text) for item in official.items} == {(item.id, item.text) for item in again.items}


def test_the_tree_is_one_that_others_can_read(dataset: DataSet, tmp_path: Path) -> None:
    """Keys and types of the published files, ids that are unique."""
    write_tree(dataset, tmp_path / "coco", "coco")
    split = json.loads((tmp_path / "coco" / "dataset_coco.json").read_text())
    assert [image["split"] for image in split["images"]] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    sentences = [sentence for image in split["images"] for sentence in image["sentences"]]
    assert [sentence["sentid"] for sentence in sentences] == list(range(15))
    assert sentences[0]["tokens"] == ["caption", "0", "of", "0"]
    captions = json.loads((tmp_path / "coco" / "annotations" / "captions_val2017.json").read_text())
    assert captions["images"][0] == {"id": 5, "file_name": "000000000005.png", "group": "group 2"}
    assert captions["annotations"][0].keys() == {"id", "image_id", "caption", "item"}
    assert captions["annotations"][0]["image_id"] == 5
    things = json.loads((tmp_path / "coco" / "annotations" / "instances_train2017.json").read_text())
    assert {category["name"] for category in things["categories"]} == {"0", "1", "2", "3", "thing"}
    assert [(one["image_id"], one["category_id"]) for one in things["annotations"][:2]] == [(1, 1), (1, 5)]


def test_without_labels_there_are_no_instances(dataset: DataSet, tmp_path: Path) -> None:
    bare = replace(dataset, items=tuple(replace(item, labels=()) for item in dataset.items))
    write_tree(bare, tmp_path / "coco", "coco")
    names = sorted(path.name for path in (tmp_path / "coco" / "annotations").iterdir())
    assert names == ["captions_train2017.json", "captions_val2017.json"]
    assert not any(item.labels for item in readers.read("coco", tmp_path / "coco").items)


def test_clotho_and_back(dataset: DataSet, tmp_path: Path) -> None:
    """Seven captions of one sound are two files; a sound that is no WAV is decoded."""
    target = tmp_path / "clotho"
    assert write_tree(dataset, target, "clotho", copy=True) == 16
    again = readers.read("clotho", target)
    assert kept(again, "audio") == kept(dataset, "audio")
    assert not [problem for problem in verify_dataset(again).problems if "same file" not in problem]
    old = {item.id: item for item in dataset.items}
    for item in again.items:
        before, after = old[item.id].audio, item.audio
        assert before is not None
        assert after is not None
        info = soundfile.info(after)
        assert (info.format, info.subtype) == ("WAV", "PCM_16")
        if before.suffix == ".wav":
            assert after.read_bytes() == before.read_bytes()
        else:
            assert (info.samplerate, info.channels) == (44100, 1)
            inner = slice(100, -100)  # resampling twice rings at the ends
            np.testing.assert_allclose(load_audio(after)[inner], load_audio(before)[inner], atol=0.02)
    with (target / "clotho_captions_development.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [len(row) for row in rows] == [6] * 6
    assert [sum(bool(cell) for cell in row[1:]) for row in rows[1:]] == [2, 2, 1, 5, 2]
    names = [f"clotho_{what}_{part}.csv" for what in ("captions", "items") for part in trees.CLOTHO]
    assert sorted(path.name for path in target.iterdir()) == sorted([*names, *trees.CLOTHO])


def test_a_split_may_be_empty(dataset: DataSet, tmp_path: Path) -> None:
    few = replace(dataset, items=tuple(item for item in dataset.items if item.split == "train"))
    for form in ("coco", "clotho"):
        count = write_tree(few, tmp_path / form, form)
        assert len(readers.read(form, tmp_path / form).items) == count == (11 if form == "coco" else 12)


def test_what_cannot_be_written_is_refused(dataset: DataSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no form 'flickr' to write; there are native, coco, clotho"):
        write_tree(dataset, tmp_path / "x", "flickr")
    silent = replace(dataset, items=tuple(replace(item, audio=None) for item in dataset.items))
    with pytest.raises(DataError, match="mine: nothing has both text and audio, which the form 'clotho' consists of"):
        write_tree(silent, tmp_path / "x", "clotho")
    torn = replace(dataset, items=(*dataset.items, replace(dataset.items[0], id="again", split="test")))
    with pytest.raises(DataError, match=r"0\.PNG: stands in two groups or splits"):
        write_tree(torn, tmp_path / "x", "coco")
    (dataset.root / "3.PNG").unlink()
    with pytest.raises(DataError, match=r"1 files are missing \(first: .*3\.PNG\); nothing was written"):
        write_tree(dataset, tmp_path / "x", "coco")
    assert not (tmp_path / "x").exists()
    write_tree(dataset, tmp_path / "x", "clotho")
    with pytest.raises(DataError, match="exists and is not empty"):
        write_tree(dataset, tmp_path / "x", "clotho")


@pytest.mark.parametrize("form", ["coco", "clotho"])
def test_a_full_disk_leaves_nothing(dataset: DataSet, tmp_path: Path, form: str) -> None:
    (tmp_path / "new").mkdir()
    with on(Failing(errno.ENOSPC, ("write",))), pytest.raises(DiskError, match="cannot be written: No space left"):
        write_tree(dataset, tmp_path / "new" / form, form)
    assert list((tmp_path / "new").iterdir()) == []


def test_the_command_writes_a_tree(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manage.import_dataset(dataset, tmp_path / "native")
    words = ("data", "import", "native", str(tmp_path / "coco"), "--root", str(tmp_path / "native"), "--format", "coco")
    monkeypatch.setattr(sys, "argv", ["sensorium", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().out
    assert left.value.code in (0, None)
    assert said == f"15 items in {tmp_path / 'coco'}; 3 left out that lack what the form 'coco' consists of\n"
    assert kept(readers.read("coco", tmp_path / "coco"), "image") == kept(dataset, "image")


@pytest.mark.weights
def test_emoji_with_spoken_names_as_both_trees(tmp_path: Path) -> None:
    options = {"limit": 20, "speech": True, "speech_folder": str(tmp_path / "speech")}
    dataset = readers.read("emoji", None, options)
    for form, modality in (("coco", "image"), ("clotho", "audio")):
        write_tree(dataset, tmp_path / form, form)
        again = readers.read(form, tmp_path / form)
        assert kept(again, modality) == kept(dataset, modality)
        assert len({item.split for item in again.items}) > 1
