"""From files to batches: what is seen and said, which split is opened when, and that nothing gets lost on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import video_trees as trees
from made_videos import Make, make, number_of
from PIL import Image

from sensorium.data import frames as frames_module
from sensorium.data.frame_cache import CachedFrames
from sensorium.engine import settings
from sensorium.engine.contract import Family, Host, Sources
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.data import DataConfig, EvalSource, TrainSource
from sensorium.families.video_retrieval.sources import detect, sources

FRAMES, WORDS, SIDE = 8, 24, 32
TINY: Mapping[str, Any] = {
    "model": {"clip": "random:tiny", "frames": FRAMES, "words": WORDS},
    "data": {"format": "moving", "cache_fps": 8.0, "frame_cache": "raw"},
    "train": {"epochs": 1, "batch_size": 8},
}
FAMILY = Family(
    name="video_retrieval",
    summary="",
    model=ModelConfig,
    data=DataConfig,
    presets={"tiny": TINY},
    sources=sources,
    facts=lambda config, found: {},
    task=lambda config, facts: torch.nn.Identity(),
    evaluator=lambda config: None,  # type: ignore[arg-type, return-value]
)


def read(said: list[str] | None = None, **changes: Any) -> Sources:
    config = settings.resolve(FAMILY, "tiny", changes)
    return sources(config, Host(say=(said if said is not None else []).append))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders of real videos: six to train on, one of them with two captions, two for each other part."""
    parts: dict[str, list[dict[str, Any]]] = {
        "train": [{"video": f"{n}.mp4", "caption": f"clip {n}"} for n in range(6)],
        "val": [{"video": f"{n}.mp4", "captions": [f"val {n}", "said of both"]} for n in range(2)],
        "test": [{"video": f"{n}.mp4", "caption": f"test {n}", "start": 0.2, "end": 0.6} for n in range(2)],
    }
    parts["train"][3] = {"video": "3.mp4", "captions": ["clip 3", "clip three"]}
    root = trees.plain(tmp_path / "data", parts)
    for place, (part, entries) in enumerate(parts.items()):
        for number, entry in enumerate(entries):
            what = Make(frames=20 + 5 * number + place, size=(96, 64), group=10)
            make(root / part / "videos" / entry["video"], what)
    return root


def of(tree: Path, **changes: Any) -> dict[str, Any]:
    return {"data": {"format": "auto", "root": str(tree), **changes}}


def test_a_training_batch() -> None:
    found = read()
    train = found.train
    assert isinstance(train, TrainSource)
    assert len(train) == 32
    examples = [train.example(index, 100 + index) for index in (0, 1, 5)]
    batch = train.collate(examples)
    shapes = {name: (tuple(values.shape), values.dtype) for name, values in batch.items()}
    assert shapes == {
        "video": ((3, FRAMES, 3, SIDE, SIDE), torch.uint8),
        "video_mask": ((3, FRAMES), torch.bool),
        "input_ids": ((3, WORDS), torch.int64),
        "attention_mask": ((3, WORDS), torch.int64),
        "groups": ((3,), torch.int64),
    }
    assert batch["video_mask"].all()
    assert train.groups is not None
    assert batch["groups"].tolist() == train.groups[[0, 1, 5]].tolist()
    assert found.shared is train


def test_left_is_right_backwards() -> None:
    """Eight instants, eight frames: both directions show the same frames, and nothing else tells them apart."""
    val = read().val
    assert isinstance(val, EvalSource)
    seen = {clip.text: val.example(number, 0)["video"] for number, clip in enumerate(val.videos)}
    left, right = (next(seen[text] for text in seen if way in text) for way in ("the left", "the right"))
    assert torch.equal(left, right.flip(0))
    assert not torch.equal(left, right)


def test_rows_are_pairs_and_groups_are_videos(tree: Path) -> None:
    said: list[str] = []
    found = read(said, **of(tree))
    train, val = found.train, found.val
    assert isinstance(train, TrainSource)
    assert isinstance(val, EvalSource)
    texts = [text for _, text in train.pairs]
    assert texts == ["clip 0", "clip 1", "clip 2", "clip 3", "clip three", "clip 4", "clip 5"]
    assert train.groups is not None
    assert train.groups[3] == train.groups[4]
    assert len(set(train.groups.tolist())) == 6
    assert "train: 6 videos, 7 captions; val: 2 videos, 4 captions; test: 2 videos, 2 captions" in said


def test_videos_and_captions_are_encoded_once(tree: Path) -> None:
    val = read(**of(tree)).val
    assert isinstance(val, EvalSource)
    assert (len(val.videos), val.captions, len(val)) == (2, ("val 0", "said of both", "val 1"), 5)
    assert val.caption_of.tolist() == [0, 1, 2, 1]  # a text that is said of both is two queries
    assert val.video_of.tolist() == [0, 0, 1, 1]
    mixed = val.collate([val.example(index, 0) for index in (1, 2, 3)])
    assert mixed["video"].shape == (1, FRAMES, 3, SIDE, SIDE)
    assert mixed["input_ids"].shape == (2, WORDS)
    assert (mixed["video_rows"].tolist(), mixed["text_rows"].tolist()) == ([0], [1, 2])
    captions = val.collate([val.example(index, 0) for index in (3, 4)])
    assert "video" not in captions
    assert captions["video_rows"].tolist() == []
    assert val.opened == 1


def test_an_evaluation_sees_the_same_every_time_and_training_does_not(tree: Path) -> None:
    found = read(**of(tree, frame_cache="jpeg"))
    assert isinstance(found.val, EvalSource)
    once, again = (found.val.example(0, seed)["video"] for seed in (1, 2))
    assert torch.equal(once, again)
    same, other = (found.train.example(0, seed)["video"] for seed in (7, 7))
    assert torch.equal(same, other)
    assert not all(torch.equal(same, found.train.example(0, seed)["video"]) for seed in range(8, 12))


def test_randaugment_changes_training_alone_and_all_frames_alike(tree: Path) -> None:
    plain, changed = read(**of(tree)), read(**of(tree, augment="randaugment"))
    assert isinstance(plain.val, EvalSource)
    assert isinstance(changed.val, EvalSource)
    assert torch.equal(plain.val.example(0, 0)["video"], changed.val.example(0, 0)["video"])
    pairs = [(plain.train.example(0, seed)["video"], changed.train.example(0, seed)["video"]) for seed in range(6)]
    assert not all(torch.equal(a, b) for a, b in pairs)
    for before, after in pairs:
        for one in range(FRAMES):
            for other in range(FRAMES):
                if torch.equal(before[one], before[other]):
                    assert torch.equal(after[one], after[other])


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_kept_frames_show_what_decoded_ones_show(tree: Path, form: str) -> None:
    kept, live = read(**of(tree, frame_cache=form)), read(**of(tree, frame_cache="none"))
    assert isinstance(kept.train, TrainSource)
    assert isinstance(kept.train.media.reader, CachedFrames)
    for index in range(len(kept.train)):
        a, b = (source.example(index, index)["video"].float() for source in (kept.train, live.train))
        assert (a - b).abs().max() <= (0 if form == "raw" else 24)  # JPEG errs at the edges of black and white bars
    assert kept.train.fingerprint == live.train.fingerprint


def test_the_test_part_stays_closed_until_it_is_evaluated(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = frames_module.opened

    def spy(path: Path) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(frames_module, "opened", spy)
    monkeypatch.setattr("sensorium.data.frame_cache.opened", spy)
    monkeypatch.setattr("sensorium.data.feature_keys._file_sha256", _noting(opened))
    found = read(**of(tree))
    test = found.test
    assert isinstance(test, EvalSource)
    for index in range(len(found.train)):
        found.train.example(index, index)
    assert {path.parent.parent.name for path in opened} == {"train", "val"}
    assert test.opened == 0
    test.example(0, 0)
    assert test.opened == 1
    assert opened[-1].parent.parent.name == "test"


def _noting(seen: list[Path]) -> Any:
    from sensorium.data import feature_keys

    original = feature_keys._file_sha256

    def digest(name: str) -> str:
        seen.append(Path(name))
        return original(name)

    return digest


def test_papers_validate_on_the_test_part(tree: Path) -> None:
    said: list[str] = []
    found = read(said, **of(tree, protocol="paper"))
    assert isinstance(found.val, EvalSource)
    assert isinstance(found.test, EvalSource)
    assert found.val.captions == found.test.captions == ("test 0", "test 1")
    assert any("selected on test" in line for line in said)


def test_papers_hold_nothing_out(tmp_path: Path) -> None:
    root = trees.msrvtt(tmp_path / "data")
    lists = {"format": "auto", "root": str(root), "frame_cache": "none"}
    honest, paper = (read(data={**lists, "protocol": protocol}) for protocol in ("honest", "paper"))
    assert (len(honest.train), len(paper.train)) == (340, 400)
    assert isinstance(honest.val, EvalSource)
    assert len(honest.val.videos) == 3


def test_what_is_missing_is_said_with_every_number(tmp_path: Path) -> None:
    root = trees.msrvtt(tmp_path / "data")
    lists = {"format": "auto", "root": str(root), "frame_cache": "none"}
    whole = read(data=lists).test
    assert isinstance(whole, EvalSource)
    assert (whole.there, whole.note) == ((3, 3), "")
    (root / "MSRVTT_Videos" / "video7011.mp4").unlink()
    with pytest.raises(DataError, match="allow_missing=1"):
        read(data=lists)
    rest = read(data={**lists, "allow_missing": 1}).test
    assert isinstance(rest, EvalSource)
    assert (rest.there, rest.note) == ((2, 3), "2 of 3 videos")


def test_a_stretch_is_all_that_is_seen(tree: Path) -> None:
    """From 0.2 to 0.6 s, at 25 frames a second: frames 5 to 14, on a grid of eighths of a second."""
    test = read(**of(tree, cache_fps=25.0)).test
    assert isinstance(test, EvalSource)
    numbers = [number_of(Image.fromarray(frame.numpy().transpose(1, 2, 0))) for frame in _wide(test)]
    assert numbers == sorted(numbers)
    assert {numbers[0], numbers[-1]} <= set(range(5, 15))
    assert len(set(numbers)) == FRAMES


def _wide(source: EvalSource) -> torch.Tensor:
    """Frames as they are before the middle is cut out, so that all bars can be read."""
    media = source.media
    pictures = media.reader.read(source.videos[0].stretch, lambda length: (np.arange(8) + 0.5) * length / 8)
    return torch.from_numpy(np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures]))


def test_broken_videos(tree: Path) -> None:
    (tree / "train" / "videos" / "2.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"train/videos/2\.mp4: the video cannot be decoded"):
        read(**of(tree))
    said: list[str] = []
    found = read(said, **of(tree), loader={"bad_samples": "skip"})
    assert isinstance(found.train, TrainSource)
    assert [text for _, text in found.train.pairs] == ["clip 0", "clip 1", "clip 3", "clip three", "clip 4", "clip 5"]
    assert any(line.startswith("left out: ") and "2.mp4" in line for line in said)
    assert [found.train.clips[clip].text for clip, _ in found.train.pairs][2:4] == ["clip 3", "clip 3"]
    with pytest.raises(DataError, match=r"1 bad videos; loader\.max_bad is 0"):
        read(**of(tree), loader={"bad_samples": "skip", "max_bad": 0})
    (tree / "val" / "videos" / "1.mp4").write_bytes(b"no video either")
    with pytest.raises(DataError, match=r"val: .*val/videos/1\.mp4: the video cannot be decoded"):
        read(**of(tree), loader={"bad_samples": "skip"})


def test_broken_videos_that_are_not_kept_are_found_when_they_are_read(tree: Path) -> None:
    (tree / "train" / "videos" / "2.mp4").write_bytes(b"no video at all")
    found = read(**of(tree, frame_cache="none"))
    with pytest.raises(DataError, match=r"2\.mp4: the video cannot be decoded"):
        found.train.example(2, 0)


def test_pictures_are_videos_of_one_frame() -> None:
    found = read(data={"format": "synthetic", "options": {"variants": 1}}, model={"frames": 2, "groups": {3: 2}})
    example = found.train.example(0, 0)
    assert example["video"].shape == (2, 3, SIDE, SIDE)
    assert torch.equal(example["video"][0], example["video"][1])


@pytest.mark.parametrize("name", ["msrvtt", "didemo", "activitynet", "vatex"])
def test_what_lies_there_is_found(tmp_path: Path, name: str) -> None:
    root = getattr(trees, name)(tmp_path / "data")
    assert detect(root, name) == name
    other = "vatex" if name != "vatex" else "didemo"
    with pytest.raises(DataError, match=f"holds {name} .*, but data.datatype is {other}"):
        detect(root, other)
    trees.plain(root, {"train": [{"video": "a.mp4", "caption": "x"}]})
    with pytest.raises(DataError, match=f"more than one data set: .*{name}.*videos.*name one"):
        detect(root, name)


def test_where_nothing_lies_all_that_was_looked_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        detect(tmp_path, "msrvtt")
    for sign in ("MSRVTT_data.json", "train_data.json", "train_ids.json", "ref_captions.json", "manifest.jsonl"):
        assert sign in str(caught.value)
    assert "train/annotations.json (videos)" in str(caught.value)
    with pytest.raises(ConfigError, match=r"set data\.root"):
        detect(None, "msrvtt")
    with pytest.raises(DataError, match="no such folder"):
        detect(tmp_path / "elsewhere", "msrvtt")


def test_parts_may_be_named_one_by_one(tree: Path) -> None:
    found = read(data={"format": "auto", "train": str(tree / "train"), "val": str(tree / "test")})
    assert isinstance(found.val, EvalSource)
    assert (found.val.captions, found.test) == (("test 0", "test 1"), None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"root": "a", "train": "b", "format": "auto"}, "root and train are both given"),
        ({"val": "b"}, "val and test are given without train"),
        ({"train": "a", "format": "msrvtt"}, "format 'msrvtt' is not"),
        ({"sampling": "random"}, "data.sampling"),
    ],
)
def test_what_contradicts_itself_is_refused(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read(data=data)


def test_a_video_in_two_splits_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a.mp4")
    lines = [{"id": split, "split": split, "text": "x", "video": "a.mp4"} for split in ("train", "test")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"a\.mp4 stands in train and in test"):
        read(**of(tmp_path))


def test_missing_files_are_said_before_anything_slow(tmp_path: Path) -> None:
    lines = [{"id": f"{n}", "split": "train", "text": "x", "video": f"{n}.mp4"} for n in range(3)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"0\.mp4: no such file \(3 videos are missing\)"):
        read(**of(tmp_path))


def test_the_fingerprint_follows_the_data(tree: Path) -> None:
    before = read(**of(tree))
    assert read(**of(tree)).train.fingerprint == before.train.fingerprint
    path = tree / "train" / "annotations.json"
    path.write_text(path.read_text().replace("clip 4", "clip four"))
    after = read(**of(tree))
    assert after.train.fingerprint != before.train.fingerprint
    assert isinstance(after.val, EvalSource)
    assert isinstance(before.val, EvalSource)
    assert after.val.fingerprint == before.val.fingerprint
    make(tree / "val" / "videos" / "0.mp4", Make(frames=33))
    changed = read(**of(tree)).val
    assert isinstance(changed, EvalSource)
    assert changed.fingerprint != before.val.fingerprint
