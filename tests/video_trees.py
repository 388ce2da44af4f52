"""Small sets of videos in exactly the forms in which they are published: MSR-VTT, DiDeMo, ActivityNet, VATEX, and plain
folders. The files are no videos: readers do not open them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def put(path: Path, content: Any) -> Path:
    """A text as it is, rows as CSV, everything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, list) and content and isinstance(content[0], tuple):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(content)
    else:
        path.write_text(json.dumps(content))
    return path


def video(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or f"video {path.name}")
    return path


def msrvtt(root: Path, train: int = 20, test: int = 3) -> Path:
    """Twenty captions a video, one with stray blanks; the last videos are the test."""
    names = [f"video{n}" for n in range(train)] + [f"video{7010 + n}" for n in range(test)]
    videos = [
        {
            "category": n % 20,
            "url": f"https://www.youtube.com/watch?v={name}",
            "video_id": name,
            "start time": 137.72,
            "end time": 149.44,
            "split": "train" if n < train else "test",
            "id": n,
        }
        for n, name in enumerate(names)
    ]
    sentences = [
        {"caption": f"caption {k}  of {name}\n", "video_id": name, "sen_id": 20 * n + k}
        for n, name in enumerate(names)
        for k in range(20)
    ]
    put(root / "MSRVTT_data.json", {"info": {"year": "2016"}, "videos": videos, "sentences": sentences})
    put(root / "MSRVTT_train.9k.csv", [("video_id",), *((name,) for name in names[:train])])
    put(root / "MSRVTT_train.7k.csv", [("video_id",), *((name,) for name in names[: train // 2])])
    rows = [(f"ret{n}", f"msr{7010 + n}", name, f"a test, of {name}") for n, name in enumerate(names[train:])]
    put(root / "MSRVTT_JSFUSION_test.csv", [("key", "vid_key", "video_id", "sentence"), *rows])
    for name in names:
        video(root / "MSRVTT_Videos" / f"{name}.mp4")
    return root


DIDEMO = {
    "train": ("12090392@N02_13482799053_87ef417396.mov", "54322086@N00_2408598493_274c77d26a.avi"),
    "val": ("77475667@N00_3193459774_4e2ef6b1a6.3gp",),
    "test": ("20463461@N05_4713142545_50ed1e0d5f.mov", "31538130@N00_5104640113_7ee6ae5a27.m4v"),
}


def didemo(root: Path) -> Path:
    """Files with the ending of the list, with another one, and with a second .mp4."""
    for part, names in DIDEMO.items():
        put(root / f"{part}_list.txt", "".join(f"{name}\n" for name in names))
        entries = [
            {
                "num_segments": 6,
                "description": f"moment  {k} of {name[:8]}",
                "dl_link": "https://www.flickr.com/video_download.gne?id=1",
                "times": [[k, k + 1], [0, 0], [k, k + 1], [5, 5]],
                "video": name,
                "annotation_id": 10 * n + k,
                "context": None,
                "reference_description": None,
            }
            for n, name in enumerate(names)
            for k in (1, 2, 3)
        ]
        put(root / f"{part}_data.json", entries)
    stems = {part: [name.rpartition(".")[0] for name in names] for part, names in DIDEMO.items()}
    video(root / "videos" / DIDEMO["train"][0])
    video(root / "videos" / f"{stems['train'][1]}.mp4")
    video(root / "videos" / f"{DIDEMO['val'][0]}.mp4")
    video(root / "videos" / f"{stems['test'][0]}.webm")
    video(root / "videos" / f"{DIDEMO['test'][1]}.mp4")
    return root


def activitynet(root: Path, train: int = 14) -> Path:
    """One id of the test has no captions; one pair of times runs backwards, one has no length."""
    ids = {"train": [f"v_{n:011}" for n in range(train)], "val": ["v_QOlSCBRmfWY", "v_ehGHCYKzyZ8", "v_nothingsaid"]}
    for part, file in (("train", "train.json"), ("val", "val_1.json")):
        put(root / f"{part}_ids.json", ids[part])
        captions = {
            name: {
                "duration": 82.73,
                "timestamps": [[0.83, 19.86], [60.81, 17.37], [70, 70]],
                "sentences": ["A woman walks.", " She sits\ndown.", "The end."],
            }
            for name in ids[part][: None if part == "train" else 2]
        }
        put(root / file, captions)
    for number, name in enumerate([*ids["train"], *ids["val"]]):
        video(root / "Activity_Videos" / (f"{name}.mp4" if number % 2 else f"{name.removeprefix('v_')}.mkv"))
    return root


def vatex(root: Path, train: int = 14, val: bool = False) -> Path:
    names = {"train": [f"Ptf_2VRj-V0_{n:06}_{n + 10:06}" for n in range(train)]}
    names |= {"test": [f"_l8Pi-{n}_000001_000011" for n in range(2)]}
    names |= {"val": [f"V-l{n}_000001_000011" for n in range(2)]} if val else {}
    for part, some in names.items():
        put(root / f"{part}_list.txt", "\n".join(some))
    every = [name for some in names.values() for name in some]
    put(root / "ref_captions.json", {name: [f"caption {k} of {name}" for k in range(10)] for name in every})
    for name in every:
        video(root / "videos" / f"{name}.mp4")
    return root


def plain(root: Path, parts: Mapping[str, Sequence[Any] | Mapping[str, Any]]) -> Path:
    """Folders of videos; what each part says is its annotations.json. Videos that it names are there."""
    for part, said in parts.items():
        put(root / part / "annotations.json", said)
        names = said if isinstance(said, Mapping) else [entry["video"] for entry in said if "video" in entry]
        for name in names:
            video(root / part / "videos" / name, f"{part} {name}")
    return root
