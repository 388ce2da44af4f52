"""COCO of both years with both forms of Karpathy's split; whatever is missing, damaged or mixed is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_trees as trees
import pytest

from sensorium.data import readers
from sensorium.data.items import SPLITS, DataSet
from sensorium.data.manage import import_dataset, verify_dataset
from sensorium.errors import ConfigError, DataError

PLAIN = [f"A dog number 9 seen {k} times." for k in range(5)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.coco(tmp_path / "coco")


def in_splits(dataset: DataSet) -> dict[str, list[str]]:
    return {split: list(dict.fromkeys(item.group for item in dataset.of_split(split))) for split in SPLITS}


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_official_split(root: Path) -> None:
    dataset = readers.read("coco", root)
    assert in_splits(dataset) == {
        "train": [str(n) for n in trees.PHOTOGRAPHS if n not in trees.IN_VAL2017],
        "val": ["391895", "574769"],
        "test": [],
    }
    first = dataset.items[:5]
    assert [item.id for item in first] == [f"9#{k}" for k in range(5)]
    assert [item.text for item in first] == PLAIN
    assert {item.image for item in first} == {root / "train2017" / "000000000009.jpg"}
    assert {item.labels for item in first} == {("person", "stop sign")}
    assert {item.labels for item in dataset.items if item.group == "522418"} == {()}
    assert dataset.notes == (
        "COCO 2017: 6 / 2 / 0 photographs in train / val / test of the official split, 48 captions",
        "COCO: no test split: dataset_coco.json (or the lists of LAVIS) is not used; val is val2017",
        "COCO: 5 photographs have more than five captions; all are read",
    )
    assert verify_dataset(dataset).problems == ()


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("form", [trees.karpathy_json, trees.lavis_lists])
def test_the_split_of_karpathy_is_taken_where_it_is_there(
    tmp_path: Path, year: int, form: Callable[[Path], Path]
) -> None:
    """Its test photographs lie inside train2017; a photograph that it does not name is not read."""
    root = trees.coco(tmp_path / "coco", year)
    form(root)
    dataset = readers.read("coco", root)
    assert in_splits(dataset) == {
        "train": ["9", "25", "391895", "318219"],
        "val": ["522418"],
        "test": ["184613", "554625"],
    }
    assert [item.text for item in dataset.items[:5]] == PLAIN
    images = {item.group: item.image for item in dataset.items}
    name = "val2017/000000391895.jpg" if year == 2017 else "val2014/COCO_val2014_000000391895.jpg"
    assert images["391895"] == root / name
    assert images["184613"] is not None
    assert images["184613"].parent.name == f"train{year}"
    assert next(item.labels for item in dataset.items if item.group == "184613") == ("person", "bird")
    assert dataset.notes[0].startswith(f"COCO {year}: 4 / 1 / 2 photographs in train / val / test of Karpathy's split")
    assert dataset.notes[1] == "COCO: the published split of Karpathy has 113,287 / 5,000 / 5,000"
    official = readers.read("coco", root, {"split": "official"})
    assert "184613" in in_splits(official)["train"]
    assert not official.of_split("test")


def test_both_forms_of_the_split_give_the_same_items(tmp_path: Path) -> None:
    one, other = (trees.coco(tmp_path / name) for name in "ab")
    trees.karpathy_json(one)
    trees.lavis_lists(other)
    shown = [
        {(i.id, i.group, i.split, i.text, i.image and i.image.name, i.labels) for i in readers.read("coco", root).items}
        for root in (one, other)
    ]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 41


def test_a_folder_above_does_not_matter(root: Path) -> None:
    before = [(item.id, item.text) for item in readers.read("coco", root).items]
    (root / "images").mkdir()
    for part in ("train2017", "val2017"):
        (root / part).rename(root / "images" / part)
    assert [(item.id, item.text) for item in readers.read("coco", root.parent).items] == before


def test_labels_can_be_left_out(root: Path) -> None:
    assert not any(item.labels for item in readers.read("coco", root, {"labels": False}).items)
    for part in ("train", "val"):
        (root / "annotations" / f"instances_{part}2017.json").unlink()
    dataset = readers.read("coco", root)
    assert not any(item.labels for item in dataset.items)
    assert dataset.label_names == ()
    assert dataset.notes[-1].startswith("COCO: no labels: instances_train2017.json")


def test_the_names_of_labels_stand_in_the_order_of_their_ids(root: Path) -> None:
    assert readers.read("coco", root).label_names == ("person", "stop sign", "bird")


def test_a_blank_caption_is_no_item(root: Path) -> None:
    def blank(content: Any) -> None:
        content["annotations"][2]["caption"] = " \n"

    edit(root / "annotations" / "captions_train2017.json", blank)
    dataset = readers.read("coco", root)
    assert len(dataset.items) == 47
    assert [item.text for item in dataset.items[:4]] == [PLAIN[k] for k in (0, 1, 3, 4)]


def remove(root: Path, name: str) -> None:
    (root / name).unlink()


def lists_of_2014(root: Path) -> None:
    other = trees.coco(root.parent / "other", 2014)
    for path in root.glob("annotations/*"):
        path.unlink()
    for path in other.glob("annotations/*"):
        path.rename(root / "annotations" / path.name)


def names_of_2014(root: Path) -> None:
    other = trees.coco(root.parent / "other", 2014)
    (other / "annotations/captions_train2014.json").replace(root / "annotations/captions_train2017.json")


def also_2014(root: Path) -> None:
    trees.coco(root, 2014)


def changed(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda root: edit(root / name, change)


CAPTIONS, THINGS = "annotations/captions_train2017.json", "annotations/instances_val2017.json"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "photograph": (
        lambda root: remove(root, "train2017/000000000025.jpg"),
        r"captions_train2017\.json: images\[1\]: train2017/000000000025\.jpg is missing; unpack",
    ),
    "folder": (lambda root: (root / "val2017").rename(root / "x"), r"the folder val2017 is missing, whose photographs"),
    "nothing": (
        lambda root: [(root / f"{part}2017").rename(root / part) for part in ("train", "val")],
        r"no photographs \(train2017, val2017; or train2014, val2014\)",
    ),
    "captions": (lambda root: remove(root, CAPTIONS), r"captions_train2017\.json is missing$"),
    "one of two instances": (lambda root: remove(root, THINGS), r"instances_val2017\.json is missing$"),
    "lists of another year": (
        lists_of_2014,
        r"captions_train2017\.json is missing; .*2014\.json is of another edition",
    ),
    "names of another year": (
        names_of_2014,
        r"captions_train2017\.json: images\[0\]: COCO_train2014_0+9\.jpg is a name of 2014, the photographs are those",
    ),
    "both years": (also_2014, r"the editions of 2014 and 2017 lie there; choose one: year=2017 or year=2014"),
    "no image": (
        changed(CAPTIONS, lambda c: c["annotations"][7].update(image_id=4)),
        r"annotations\[7\]: image_id 4 is none of its images",
    ),
    "text": (
        changed(CAPTIONS, lambda c: c["annotations"][7].update(caption=3)),
        r"captions_train2017\.json: annotations\[7\]: caption: expected a text \(found 3\)",
    ),
    "key": (
        changed(CAPTIONS, lambda c: c["images"][3].pop("id")),
        r"images\[3\]: id: expected a whole number \(found nothing\)",
    ),
    "truth": (changed(CAPTIONS, lambda c: c["images"][3].update(id=True)), r"images\[3\]: id: .* \(found True\)"),
    "twice": (changed(CAPTIONS, lambda c: c["images"].append(c["images"][0])), r"images\[6\]: the photograph 9 stands"),
    "list": (
        changed(CAPTIONS, lambda c: c.pop("annotations")),
        r"captions_train2017\.json: the list 'annotations' is m",
    ),
    "object": (changed(CAPTIONS, lambda c: c["images"].append(7)), r"images\[6\]: expected an object \(found '7'\)"),
    "category": (
        changed(THINGS, lambda c: c["annotations"][0].update(category_id=77)),
        r"instances_val2017\.json: annotations\[0\]: category_id 77 is none of its categories",
    ),
    "other categories": (
        changed(THINGS, lambda c: c["categories"][0].update(name="broom")),
        r"instances_val2017\.json: other categories than in .*instances_train2017\.json",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_file_and_entry(root: Path, case: str) -> None:
    damage, reason = DAMAGE[case]
    damage(root)
    with pytest.raises(DataError, match=reason) as caught:
        readers.read("coco", root)
    assert "\n" not in str(caught.value)


SPLIT_DAMAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "split": (lambda c: c["images"][0].update(split="dev"), r"images\[0\]: split: expected one of train, restval, val"),
    "sentence": (lambda c: c["images"][1]["sentences"][0].pop("raw"), r"images\[1\]: raw: expected a text"),
    "sentences": (lambda c: c["images"][1].update(sentences=["a"]), r"images\[1\]: sentences: expected objects"),
    "number": (lambda c: c["images"][1].update(cocoid="25"), r"images\[1\]: cocoid: expected a whole number"),
    "unknown": (
        lambda c: c["images"][1].update(cocoid=26),
        r"dataset_coco\.json: images\[1\]: train2014/COCO_train2014_000000000025\.jpg is missing",
    ),
    "twice": (lambda c: c["images"].append(c["images"][4]), r"images\[7\]: the photograph 184613 stands there twice"),
}


@pytest.mark.parametrize("case", SPLIT_DAMAGE)
def test_a_damaged_split_is_named_with_its_entry(root: Path, case: str) -> None:
    damage, reason = SPLIT_DAMAGE[case]
    edit(trees.karpathy_json(root), damage)
    with pytest.raises(DataError, match=reason):
        readers.read("coco", root)


def test_a_photograph_in_two_lists_is_refused(root: Path) -> None:
    trees.lavis_lists(root)
    edit(root / "coco_karpathy_test.json", lambda c: c[0].update(image="train2014/COCO_train2014_000000000009.jpg"))
    with pytest.raises(DataError, match=r"karpathy_test\.json: \[0\]: the photograph 9 stands already among .* train"):
        readers.read("coco", root)
    edit(root / "coco_karpathy_test.json", lambda c: c[0].update(image="nine.jpg"))
    with pytest.raises(DataError, match=r"\[0\]: image: expected FOLDER/COCO_FOLDER_NUMBER\.jpg \(found 'nine\.jpg'\)"):
        readers.read("coco", root)
    (root / "coco_karpathy_val.json").unlink()
    with pytest.raises(DataError, match=r"of the three lists of Karpathy's split are missing: coco_karpathy_val\.json"):
        readers.read("coco", root)


def test_what_is_asked_for_must_be_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Karpathy's split is missing .*data download coco-karpathy"):
        readers.read("coco", root, {"split": "karpathy"})
    with pytest.raises(DataError, match="year=2014 is asked for, the photographs are those of 2017"):
        readers.read("coco", root, {"year": 2014})
    with pytest.raises(DataError, match="no such folder; get it by `sensorium data download coco coco-karpathy"):
        readers.read("coco", tmp_path / "none")
    with pytest.raises(ConfigError, match="split"):
        readers.read("coco", root, {"split": "mine"})
    also_2014(root)
    assert {item.image and item.image.parent.name for item in readers.read("coco", root, {"year": 2014}).items} == {
        "train2014",
        "val2014",
    }


def test_it_becomes_native(root: Path, tmp_path: Path) -> None:
    trees.karpathy_json(root)
    dataset = readers.read("coco", root)
    again = readers.read("native", import_dataset(dataset, tmp_path / "native"))
    assert [(i.id, i.split, i.group, i.text, i.labels) for i in again.items] == [
        (i.id, i.split, i.group, i.text, i.labels) for i in dataset.items
    ]
