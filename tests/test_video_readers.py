"""Readers of sets of videos, on files in the published forms: names, counts, paragraphs, and nothing lost silently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import video_trees as trees

from sensorium.data import readers
from sensorium.data.items import SPLITS, DataSet, Moment, Split
from sensorium.errors import DataError

TREES: dict[str, Callable[[Path], Path]] = {
    "msrvtt": trees.msrvtt,
    "didemo": trees.didemo,
    "activitynet": trees.activitynet,
    "vatex": trees.vatex,
}


def videos(dataset: DataSet, split: Split) -> set[str]:
    return {item.video.name for item in dataset.of_split(split) if item.video is not None}


def counts(dataset: DataSet) -> dict[str, tuple[int, int]]:
    return {split: (len(videos(dataset, split)), len(dataset.of_split(split))) for split in SPLITS}


def smallest(names: list[str], count: int) -> set[str]:
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count])


def test_msrvtt(tmp_path: Path) -> None:
    dataset = readers.read("msrvtt", trees.msrvtt(tmp_path / "data"))
    assert counts(dataset) == {"train": (17, 340), "val": (3, 3), "test": (3, 3)}
    assert dataset.found == {"train": (17, 17), "val": (3, 3), "test": (3, 3)}
    assert dataset.of_split("test")[0].text == "a test, of video7010"
    held = smallest([f"video{n}" for n in range(20)], 3)
    assert {item.group for item in dataset.of_split("val")} == held
    assert held.isdisjoint(item.group for item in dataset.of_split("train"))
    for item in dataset.of_split("val"):
        number = int(hashlib.sha256(item.group.encode()).hexdigest(), 16) % 20
        assert item.text == f"caption {number} of {item.group}"
    assert "MSR-VTT: train: the list here gives 17 videos, published are 8,997" in dataset.notes
    assert "MSR-VTT: val: 3 training videos, one caption each" in dataset.notes


def test_the_held_out_videos_do_not_change_with_what_is_there(tmp_path: Path) -> None:
    root = trees.msrvtt(tmp_path / "data")
    before = {item.group for item in readers.read("msrvtt", root).of_split("val")}
    for name in ("video0", "video1"):
        (root / "MSRVTT_Videos" / f"{name}.mp4").unlink()
    after = {item.group for item in readers.read("msrvtt", root, {"allow_missing": 2}).of_split("val")}
    assert after == before - {"video0", "video1"}


def test_the_7k_list_and_no_validation(tmp_path: Path) -> None:
    root = trees.msrvtt(tmp_path / "data")
    dataset = readers.read("msrvtt", root, {"train": "7k", "val_videos": 0})
    assert counts(dataset) == {"train": (10, 200), "val": (0, 0), "test": (3, 3)}
    assert "MSR-VTT: train: the list here gives 10 videos, published are 7,010" in dataset.notes
    (root / "MSRVTT_train.9k.csv").unlink()
    assert counts(readers.read("msrvtt", root, {"val_videos": 1})) == {"train": (9, 180), "val": (1, 1), "test": (3, 3)}


def test_didemo(tmp_path: Path) -> None:
    dataset = readers.read("didemo", trees.didemo(tmp_path / "data"))
    assert counts(dataset) == {"train": (2, 2), "val": (1, 1), "test": (2, 2)}
    assert videos(dataset, "train") == {
        "12090392@N02_13482799053_87ef417396.mov",
        "54322086@N00_2408598493_274c77d26a.mp4",
    }
    assert videos(dataset, "val") == {"77475667@N00_3193459774_4e2ef6b1a6.3gp.mp4"}
    first = dataset.items[0]
    assert first.text == "moment 1 of 12090392 moment 2 of 12090392 moment 3 of 12090392"
    assert first.span == (0.0, 31.0)
    assert first.moments[0] == Moment(5.0, 15.0, "moment 1 of 12090392")  # what most people chose
    assert "DiDeMo: test: the list here gives 2 videos, published are 1,004" in dataset.notes
    apart = readers.read("didemo", tmp_path / "data", {"paragraphs": False})
    assert [item.text for item in apart.of_split("val")] == [f"moment {k} of 77475667" for k in (1, 2, 3)]


def test_activitynet(tmp_path: Path) -> None:
    dataset = readers.read("activitynet", trees.activitynet(tmp_path / "data"))
    assert counts(dataset) == {"train": (12, 12), "val": (2, 2), "test": (2, 2)}
    assert {item.group for item in dataset.of_split("val")} == smallest([f"v_{n:011}" for n in range(14)], 2)
    item = dataset.of_split("test")[0]
    assert item.text == "A woman walks. She sits down. The end."
    assert item.moments == (Moment(0.83, 19.86, "A woman walks."), Moment(17.37, 60.81, "She sits down."))
    assert "val_ids.json: 3 names give 2 videos with a text; missing: v_nothingsaid" in dataset.notes
    assert "ActivityNet Captions: test: the list here gives 2 videos, published are 4,917" in dataset.notes


def test_activitynet_says_itself_where_videos_lie(tmp_path: Path) -> None:
    root = trees.activitynet(tmp_path / "data")
    paths = {path.stem: path.relative_to(root).as_posix() for path in (root / "Activity_Videos").iterdir()}
    paths["QOlSCBRmfWY"] = trees.video(root / "elsewhere" / "other name.mp4").relative_to(root).as_posix()
    trees.put(root / "video_path.json", paths)
    dataset = readers.read("activitynet", root)
    assert "other name.mp4" in videos(dataset, "test")
    trees.put(root / "video_path.json", {"v_x": "../outside.mp4"})
    with pytest.raises(DataError, match=r"video_path\.json: v_x: expected a path below"):
        readers.read("activitynet", root)


def test_vatex(tmp_path: Path) -> None:
    dataset = readers.read("vatex", trees.vatex(tmp_path / "data"))
    assert counts(dataset) == {"train": (12, 120), "val": (2, 2), "test": (2, 20)}
    published = readers.read("vatex", trees.vatex(tmp_path / "other", val=True))
    assert counts(published) == {"train": (14, 140), "val": (2, 20), "test": (2, 20)}


@pytest.mark.parametrize("name", TREES)
def test_shrinking_is_refused(tmp_path: Path, name: str) -> None:
    root = TREES[name](tmp_path / "data")
    whole = readers.read(name, root)
    gone = [item.video for item in whole.of_split("test")[:1]]
    gone += [item.video for item in whole.of_split("train")[:1]]
    for path in gone:
        assert path is not None
        path.unlink()
    with pytest.raises(DataError) as caught:
        readers.read(name, root)
    line = str(caught.value)
    assert "\n" not in line
    found, named = whole.found["test"]
    missing = whole.of_split("test")[0].group
    assert f"test: {found - 1:,} of {named:,} videos, missing: {missing}" in line
    assert "allow it (allow_missing=2)" in line
    with pytest.raises(DataError, match="allow_missing=2"):
        readers.read(name, root, {"allow_missing": 1})
    rest = readers.read(name, root, {"allow_missing": 2})
    assert rest.found["test"] == (found - 1, named)
    assert len(rest.items) < len(whole.items)
    assert any(f"test: {found - 1} of {named} videos are there; missing: {missing}" in note for note in rest.notes)


def test_only_ten_missing_names_are_listed(tmp_path: Path) -> None:
    root = trees.msrvtt(tmp_path / "data")
    for number in range(13):
        (root / "MSRVTT_Videos" / f"video{number}.mp4").unlink()
    with pytest.raises(DataError) as caught:
        readers.read("msrvtt", root, {"val_videos": 0})
    assert "missing: video0, video1, " in str(caught.value)
    assert "video9 and 3 more" in str(caught.value)
    assert "video10" not in str(caught.value)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_without_videos_is_no_data_set(tmp_path: Path, name: str) -> None:
    root = TREES[name](tmp_path / "data")
    for item in readers.read(name, root).items:
        if item.video is not None:
            item.video.unlink(missing_ok=True)
    with pytest.raises(DataError, match="train: 0 of"):
        readers.read(name, root, {"allow_missing": 100})


@pytest.mark.parametrize("name", TREES)
def test_every_part_is_needed(tmp_path: Path, name: str) -> None:
    root = TREES[name](tmp_path / "data")
    optional = {"MSRVTT_train.7k.csv"}
    for path in sorted(path for path in root.iterdir() if path.is_file() and path.name not in optional):
        text = path.read_text()
        path.unlink()
        if path.name == "MSRVTT_train.9k.csv":
            (root / "MSRVTT_train.7k.csv").unlink()
        with pytest.raises(DataError, match=f"{path.name}.* missing"):
            readers.read(name, root)
        path.write_text("{ broken")
        with pytest.raises(DataError, match=path.name):
            readers.read(name, root)
        path.write_text(text)
    with pytest.raises(DataError, match="no such folder"):
        readers.read(name, root / "elsewhere")


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "two endings": (
        "msrvtt",
        lambda root: trees.video(root / "more" / "video3.webm"),
        r"two files for video3: .*video3\.mp4 and .*video3\.webm; keep one, or name the folder",
    ),
    "test in train": (
        "msrvtt",
        lambda root: trees.put(root / "MSRVTT_train.9k.csv", "video_id\nvideo3\nvideo7010\n"),
        "video7010 stands in train and in test",
    ),
    "a name twice": (
        "msrvtt",
        lambda root: trees.put(root / "MSRVTT_train.9k.csv", "video_id\nvideo3\nvideo3\n"),
        r"MSRVTT_train\.9k\.csv: a video stands there twice",
    ),
    "no sentence": (
        "msrvtt",
        lambda root: trees.put(root / "MSRVTT_train.9k.csv", "video_id\nvideo99\n"),
        r"MSRVTT_data\.json: holds no sentence for video99 of MSRVTT_train\.9k\.csv",
    ),
    "other columns": (
        "msrvtt",
        lambda root: trees.put(root / "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nvideo1,a\n"),
        r"MSRVTT_JSFUSION_test\.csv: line 1: expected the columns key, vid_key, video_id, sentence",
    ),
    "caption of no text": (
        "msrvtt",
        lambda root: _edit(root / "MSRVTT_data.json", lambda c: c["sentences"][7].update(caption=3)),
        r"MSRVTT_data\.json: sentences\[7\]: caption: expected a text \(found 3\)",
    ),
    "times": (
        "didemo",
        lambda root: _edit(root / "train_data.json", lambda c: c[2].update(times=[[3, 1]])),
        r"train_data\.json: \[2\]: times: \[3, 1\] is no stretch from first to last",
    ),
    "no times": (
        "didemo",
        lambda root: _edit(root / "val_data.json", lambda c: c[0].pop("times")),
        r"val_data\.json: \[0\]: times: expected a list \(found nothing\)",
    ),
    "double files": (
        "didemo",
        lambda root: trees.video(root / "videos" / f"{trees.DIDEMO['train'][0]}.mp4"),
        "two files for 12090392@N02_13482799053_87ef417396",
    ),
    "fewer times": (
        "activitynet",
        lambda root: _edit(root / "val_1.json", lambda c: c["v_QOlSCBRmfWY"]["timestamps"].pop()),
        r"val_1\.json: v_QOlSCBRmfWY: expected as many timestamps as sentences",
    ),
    "time of words": (
        "activitynet",
        lambda root: _edit(root / "val_1.json", lambda c: c["v_QOlSCBRmfWY"]["timestamps"].__setitem__(0, ["a", 1])),
        r"val_1\.json: v_QOlSCBRmfWY: expected a time \[start, end\]",
    ),
    "ids of numbers": (
        "activitynet",
        lambda root: trees.put(root / "train_ids.json", [1, 2]),
        r"train_ids\.json: expected a list of ids",
    ),
    "captions of one text": (
        "vatex",
        lambda root: _edit(root / "ref_captions.json", lambda c: c.update({next(iter(c)): "text"})),
        r"ref_captions\.json: Ptf_2VRj-V0_000000_000010: expected a list of captions",
    ),
    "empty list": (
        "vatex",
        lambda root: [trees.put(root / f"{p}_list.txt", "\n") for p in ("train", "test")],
        "no videos",
    ),
    "hardly any text": (
        "vatex",
        lambda root: _edit(root / "ref_captions.json", lambda c: [c.pop(name) for name in list(c)[:12]]),
        r"train_list\.txt: of 12 of 14 videos no text says anything; missing: Ptf",
    ),
    "no such folder": ("vatex", lambda root: (root / "videos").rename(root / "clips"), "videos: no such folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(tmp_path: Path, case: str) -> None:
    name, damage, reason = WRONG[case]
    root = TREES[name](tmp_path / "data")
    damage(root)
    options = {"videos": "videos"} if case == "no such folder" else {}
    with pytest.raises(DataError, match=reason) as caught:
        readers.read(name, root, options)
    assert "\n" not in str(caught.value)


def test_the_folder_of_the_videos_may_be_named(tmp_path: Path) -> None:
    root = trees.msrvtt(tmp_path / "data")
    trees.video(root / "compressed" / "video3.mp4")
    dataset = readers.read("msrvtt", root, {"videos": "MSRVTT_Videos"})
    assert len(dataset.items) == 346


GUIDE: dict[str, Any] = {
    "train": [
        {"video": "a.mp4", "caption": "a dog  runs"},
        {"video": "a.mp4", "caption": "a dog runs again"},
        {"video": "b.webm", "captions": ["rain", "falling rain"], "id": 7, "group": "weather"},
        {"video": "film.mp4", "caption": "first act", "start": 0, "end": 30.5},
        {"video": "film.mp4", "caption": "second act", "start": 30.5, "end": 60},
        {
            "video": "c.mkv",
            "events": [{"start": 1, "end": 2.5, "caption": "he sits"}, {"start": 2, "end": 4, "caption": "he rises"}],
        },
    ],
    "val": {"deep/a.mp4": ["a cat"], "b.mp4": "a bird"},
    "test": [{"video": "x.3gp", "captions": ["one", "two"]}],
}  # fmt: skip


def test_plain_folders_in_all_forms(tmp_path: Path) -> None:
    dataset = readers.read("videos", trees.plain(tmp_path / "data", GUIDE))
    found = [(item.id, item.group, item.split, item.text, item.span) for item in dataset.items]
    assert found == [
        ("train/a#0", "train/a", "train", "a dog runs", None),
        ("train/a#1", "train/a", "train", "a dog runs again", None),
        ("7#0", "weather", "train", "rain", None),
        ("7#1", "weather", "train", "falling rain", None),
        ("train/film@0-30.5#0", "train/film@0-30.5", "train", "first act", (0.0, 30.5)),
        ("train/film@30.5-60#0", "train/film@30.5-60", "train", "second act", (30.5, 60.0)),
        ("train/c#0", "train/c", "train", "he sits he rises", None),
        ("val/deep/a#0", "val/deep/a", "val", "a cat", None),
        ("val/b#0", "val/b", "val", "a bird", None),
        ("test/x#0", "test/x", "test", "one", None),
        ("test/x#1", "test/x", "test", "two", None),
    ]
    assert dataset.items[6].moments == (Moment(1.0, 2.5, "he sits"), Moment(2.0, 4.0, "he rises"))
    assert dataset.found == {"train": (4, 4), "val": (2, 2), "test": (1, 1)}


def test_plain_folders_may_lie_apart_and_lack_parts(tmp_path: Path) -> None:
    root = trees.plain(tmp_path / "data", GUIDE)
    apart = readers.read("videos", None, {"train": str(root / "test"), "val": str(root / "val")})
    assert counts(apart) == {"train": (1, 2), "val": (2, 2), "test": (0, 0)}
    (root / "train" / "videos" / "a.mp4").rename(root / "train" / "videos" / "a.mov")  # the ending may differ
    assert "a.mov" in videos(readers.read("videos", root), "train")
    with pytest.raises(DataError, match="no folder of videos is named"):
        readers.read("videos", None)


def test_plain_folders_do_not_shrink(tmp_path: Path) -> None:
    root = trees.plain(tmp_path / "data", GUIDE)
    (root / "train" / "videos" / "a.mp4").unlink()
    with pytest.raises(DataError, match=r"train: 3 of 4 videos, missing: a\.mp4\. .*allow_missing=1"):
        readers.read("videos", root)
    dataset = readers.read("videos", root, {"allow_missing": 1})
    assert dataset.found["train"] == (3, 4)
    assert len(dataset.items) == 9


SHAPES: dict[str, tuple[Any, str]] = {
    "a number": (3, r'expected \[\{"video"'),
    "words": (["a.mp4"], r'\[0\]: expected \[\{"video"'),
    "unknown key": ([{"video": "a.mp4", "captoin": "x"}], r"\[0\]: unknown key 'captoin' \(allowed: video, caption"),
    "both": ([{"video": "a.mp4", "caption": "x", "captions": ["y"]}], "has both caption and captions"),
    "no caption": ([{"video": "a.mp4"}], "expected captions that are no empty texts"),
    "empty caption": ([{"video": "a.mp4", "caption": " "}], "expected captions that are no empty texts"),
    "no video": ([{"caption": "x"}], r"\[0\]: video: expected a text \(found nothing\)"),
    "end before start": ([{"video": "a.mp4", "caption": "x", "start": 4, "end": 2}], "0 <= start < end"),
    "start alone": ([{"video": "a.mp4", "caption": "x", "start": 4}], "found 4 and None"),
    "event": ([{"video": "a.mp4", "events": [{"start": 1, "caption": "x"}]}], r"events\[0\]: expected"),
    "leaves": ([{"video": "../a.mp4", "caption": "x"}], "leaves"),
    "nothing": ([], "describes no videos"),
    "captions of numbers": ({"a.mp4": [1]}, "a.mp4: expected captions"),
    "id": ([{"video": "a.mp4", "caption": "x", "id": 1.5}], "id: expected a text or a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_a_wrong_shape_names_file_and_entry(tmp_path: Path, case: str) -> None:
    content, reason = SHAPES[case]
    root = trees.plain(tmp_path / "data", GUIDE)
    path = trees.put(root / "val" / "annotations.json", content)
    with pytest.raises(DataError, match=reason) as caught:
        readers.read("videos", root)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["videos", "annotations.json"])
def test_a_folder_without_a_part_says_what_it_should_hold(tmp_path: Path, part: str) -> None:
    root = trees.plain(tmp_path / "data", GUIDE)
    (root / "val" / part).rename(root / "val" / "other")
    with pytest.raises(DataError, match=f"{part} is missing; .*val should hold annotations.json and videos/"):
        readers.read("videos", root)


def test_the_same_video_in_two_splits_is_refused(tmp_path: Path) -> None:
    root = trees.plain(tmp_path / "data", GUIDE)
    same = (root / "train" / "videos" / "a.mp4").read_text()
    trees.video(root / "test" / "videos" / "x.3gp", same)
    with pytest.raises(DataError, match=r"x\.3gp of test is the same video as .*a\.mp4 of train"):
        readers.read("videos", root)
    trees.video(root / "test" / "videos" / "x.3gp", same[::-1])  # of the same size, but another one
    readers.read("videos", root)


def test_an_id_stands_for_one_video(tmp_path: Path) -> None:
    parts = {**GUIDE, "val": [{"video": "v.mp4", "caption": "x", "id": "7"}]}
    with pytest.raises(DataError, match=r"its id '7' is that of .*b\.webm"):
        readers.read("videos", trees.plain(tmp_path / "data", parts))
