"""ActivityNet Captions (Krishna 2017): videos of some minutes, every event in them described.

::

    train_ids.json, val_ids.json    ["v_…", …]
    train.json, val_1.json          {"v_…": {"duration": …, "timestamps": [[start, end], …], "sentences": ["…", …]}}
    video_path.json                 optional: {"v_…": "path below the root"}
    anywhere below                  v_….mp4 or ….mp4, with any ending

Retrieval takes all sentences of a video as one paragraph (``paragraphs``) and tests on ``val_1``, so that validation is
held out from training (``val_videos``). One Item is one paragraph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from sensorium import reading
from sensorium.data import parsing
from sensorium.data.items import DataSet, Moment, Split
from sensorium.data.readers.native import leaves
from sensorium.data.video_lists import CarvedOptions, Entry, Lists, bare, carve, dataset, described
from sensorium.errors import DataError

NAME = "activitynet"
SUMMARY = "ActivityNet Captions: 15,000 videos with a paragraph each; the test is val_1"
LICENCE = "captions: as its page says, for research; the videos belong to their makers"
SIGN = "train_ids.json"
DEFAULT_ROOT = Path("data/activitynet")
PUBLISHED: dict[Split, int] = {"train": 10024, "test": 4917}
PATHS, PREFIX = "video_path.json", "v_"
_PARTS: dict[Split, tuple[str, str]] = {"train": (SIGN, "train.json"), "test": ("val_ids.json", "val_1.json")}


class Options(CarvedOptions):
    """How sentences are taken."""

    paragraphs: bool = Field(True, description="Join all sentences of a video; false: each is a query of its own.")


def read(root: Path | None, options: Options) -> DataSet:
    """Read the data set. Raises DataError naming the file, and the video in it, that is missing or damaged."""
    root = root or DEFAULT_ROOT
    parsing.require_folder(root, "get the captions and videos of ActivityNet, or name its folder (root=FOLDER)")
    wanted = [name for names in _PARTS.values() for name in names]
    places = parsing.find_places(root, {*wanted, PATHS})
    if missing := [name for name in wanted if name not in places]:
        raise DataError(f"ActivityNet Captions in {root}: {', '.join(missing)} missing")
    splits: dict[Split, list[Entry]] = {}
    notes: list[str] = []
    for split, (ids, captions) in _PARTS.items():
        said = _captions(places[captions])
        names, note = described(places[ids], _ids(places[ids]), said)
        splits[split] = [_entry(name, said[name], options.paragraphs) for name in names]
        notes += [note] if note else []
    splits["train"], splits["val"] = carve(splits["train"], options.val_videos)
    notes.append(f"ActivityNet Captions: val: {len(splits['val']):,} training videos")
    published = PUBLISHED | {"train": PUBLISHED["train"] - len(splits["val"])}
    paths = _paths(places[PATHS], root) if PATHS in places else None
    lists = Lists("ActivityNet Captions", root, published, splits, prefix=PREFIX, paths=paths)
    return dataset(NAME, LICENCE, lists, options, notes)


def _json(path: Path, kind: type) -> Any:
    with parsing.told_of(path):
        content = reading.parse_json(reading.read_bytes(path))
        if not isinstance(content, kind):
            raise ValueError(f"expected {'a list' if kind is list else 'an object'} (found {str(content)[:40]!r})")
    return content


def _full(name: str) -> str:
    """Ids with and without their prefix are the same."""
    return PREFIX + bare(name).removeprefix(PREFIX)


def _ids(path: Path) -> list[str]:
    names = _json(path, list)
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of ids of videos")
    return list(dict.fromkeys(_full(name) for name in names))


def _paths(path: Path, root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, place in _json(path, dict).items():
        if not isinstance(place, str) or leaves(place):
            raise DataError(f"{path}: {name}: expected a path below {root} (found {str(place)[:60]!r})")
        if (root / place).is_file():
            found[_full(name)] = root / place
    return found


def _captions(path: Path) -> dict[str, list[Moment]]:
    found: dict[str, list[Moment]] = {}
    for name, about in _json(path, dict).items():
        times, sentences = (about.get(key) if isinstance(about, dict) else None for key in ("timestamps", "sentences"))
        if not (isinstance(times, list) and isinstance(sentences, list) and 0 < len(times) == len(sentences)):
            raise DataError(f"{path}: {name}: expected as many timestamps as sentences, one at least")
        found[_full(name)] = [_moment(path, name, *pair) for pair in zip(times, sentences, strict=True)]
    return found


def _moment(path: Path, name: str, when: Any, text: Any) -> Moment:
    """Some published pairs run backwards, and some are of no length: the first are turned round."""
    sound = isinstance(when, list) and len(when) == 2 and all(type(one) in (int, float) for one in when)
    if not (sound and isinstance(text, str) and min(when) >= 0):
        raise DataError(
            f"{path}: {name}: expected a time [start, end] and a sentence (found {str(when)[:40]}, {text!r})"
        )
    return Moment(float(min(when)), float(max(when)), parsing.collapsed(text))


def _entry(name: str, moments: list[Moment], paragraphs: bool) -> Entry:
    texts = tuple(moment.text for moment in moments if moment.text)
    lasting = tuple(moment for moment in moments if moment.start < moment.end and moment.text)
    return Entry(name, (" ".join(texts),) if paragraphs else texts, None, lasting)
