"""Verification finds what is wrong and nothing else; an import gives back the same data set."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from disks import Failing, on
from PIL import Image

from sensorium.data import readers
from sensorium.data.items import DataSet, Item
from sensorium.data.manage import Report, import_dataset, verify_dataset
from sensorium.errors import DataError, DiskError


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    """Six items of three groups with text, picture and sound."""
    root = tmp_path / "data"
    items = []
    for number in range(6):
        image, audio = root / "pictures" / f"{number}.png", root / "sounds" / f"{number}.wav"
        image.parent.mkdir(parents=True, exist_ok=True)
        audio.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10 * number, 0, 0)).save(image)
        soundfile.write(audio, np.full(1600, number / 10), 16000)
        group = ("a", "b", "c")[number // 2]
        split = ("train", "val", "test")[number // 2]
        items.append(Item(f"id {number}", group, split, f"text {number}", image, audio, ("x",), 1.5, {"k": "ä"}))  # type: ignore[arg-type]
    return DataSet("mine", root, "CC0", tuple(items), ("a note",))


def changed(dataset: DataSet, number: int, item: Item) -> DataSet:
    items = list(dataset.items)
    items[number] = item
    return replace(dataset, items=tuple(items))


def test_a_good_data_set_has_counts_and_no_problems(dataset: DataSet) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_dataset(dataset, progress=lambda done, total: seen.append((done, total)))
    each = {"items": 2, "groups": 1, "texts": 2, "images": 2, "audio": 2, "videos": 0}
    assert report == Report({"train": each, "val": each, "test": each}, ())
    assert seen == [(number, 12) for number in range(1, 13)]


def _missing(data: DataSet) -> DataSet:
    (data.root / "pictures" / "3.png").unlink()
    return data


def _broken_picture(data: DataSet) -> DataSet:
    (data.root / "pictures" / "3.png").write_bytes(b"not a picture")
    return data


def _broken_sound(data: DataSet) -> DataSet:
    soundfile.write(data.root / "sounds" / "3.wav", np.zeros(0), 16000)
    return data


def _twin(data: DataSet) -> DataSet:
    (data.root / "sounds" / "5.wav").write_bytes((data.root / "sounds" / "0.wav").read_bytes())
    return data


CASES: dict[str, tuple[Callable[[DataSet], DataSet], str]] = {
    "missing": (_missing, "3.png: cannot be read (No such file or directory)"),
    "picture": (_broken_picture, "3.png: not a picture in a known format"),
    "sound": (_broken_sound, "3.wav: the sound has zero length"),
    "twin": (_twin, "the same file stands in train and test: "),
    "group": (lambda data: changed(data, 2, replace(data.items[2], group="a")), "group 'a' stands in train and val"),
    "empty": (lambda data: changed(data, 2, replace(data.items[2], text="\t")), "id 2: empty text"),
    "id": (lambda data: changed(data, 1, replace(data.items[1], id="id 0")), "id 0: the id is given 2 times"),
    "nothing": (lambda data: changed(data, 1, Item("id 1", "a", "train")), "id 1: has none of text, image, audio"),
    "outside": (lambda data: replace(data, root=data.root / "pictures"), "0.wav lies outside"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_problem_is_found(dataset: DataSet, case: str) -> None:
    damage, reason = CASES[case]
    problems = verify_dataset(damage(dataset)).problems
    assert len(problems) == (6 if case == "outside" else 1)
    assert reason in problems[0]
    assert "\n" not in problems[0]


def test_without_decoding_only_the_bytes_are_read(dataset: DataSet) -> None:
    assert verify_dataset(_broken_picture(dataset), decode=False).problems == ()
    assert len(verify_dataset(_twin(_missing(dataset)), decode=False).problems) == 2


def test_twins_within_a_split_are_no_problem(dataset: DataSet) -> None:
    (dataset.root / "sounds" / "1.wav").write_bytes((dataset.root / "sounds" / "0.wav").read_bytes())
    assert verify_dataset(dataset).problems == ()


@pytest.mark.parametrize("copy", [True, False])
def test_an_import_gives_back_the_same_items(dataset: DataSet, tmp_path: Path, copy: bool) -> None:
    target = import_dataset(dataset, tmp_path / "new" / "native", copy)
    again = readers.read("native", target)
    assert (again.name, again.licence, again.notes) == ("mine", "CC0", ("a note",))
    for old, new in zip(dataset.items, again.items, strict=True):
        assert replace(new, image=old.image, audio=old.audio) == old
        for before, after in ((old.image, new.image), (old.audio, new.audio)):
            assert before is not None
            assert after is not None
            assert after.read_bytes() == before.read_bytes()
            assert after.is_symlink() is not copy
    assert verify_dataset(again).problems == ()
    assert sorted(path.name for path in target.iterdir()) == ["audio", "dataset.json", "image", "manifest.jsonl"]


def test_files_of_one_name_do_not_overwrite_each_other(dataset: DataSet, tmp_path: Path) -> None:
    twin = tmp_path / "other" / "pictures" / "0.png"
    twin.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4), "white").save(twin)
    data = changed(dataset, 1, replace(dataset.items[1], image=twin))
    items = readers.read("native", import_dataset(data, tmp_path / "native", copy=True)).items
    assert items[0].image is not None
    assert items[1].image is not None
    assert items[1].image.read_bytes() == twin.read_bytes() != items[0].image.read_bytes()


def test_an_import_never_overwrites(dataset: DataSet, tmp_path: Path) -> None:
    target = tmp_path / "native"
    target.mkdir()
    import_dataset(dataset, target)  # empty: allowed
    before = sorted(target.rglob("*"))
    with pytest.raises(DataError, match="exists and is not empty"):
        import_dataset(dataset, target)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="exists and is not empty"):
        import_dataset(dataset, tmp_path / "file")
    assert sorted(target.rglob("*")) == before


def test_a_failed_import_leaves_nothing(dataset: DataSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 files are missing \(first: .*3\.png\); nothing was written"):
        import_dataset(_missing(dataset), tmp_path / "new" / "native")
    assert not (tmp_path / "new").exists()

    Image.new("RGB", (4, 4)).save(dataset.root / "pictures" / "3.png")
    with on(Failing(errno.ENOSPC, ("write",))), pytest.raises(DiskError, match="cannot be written: No space left"):
        import_dataset(dataset, tmp_path / "new" / "native", copy=True)
    assert list((tmp_path / "new").iterdir()) == []
