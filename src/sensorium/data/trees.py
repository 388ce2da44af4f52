"""Writing any data set in the forms of COCO, Clotho and plain folders of videos, so that whatever reads those can be
tried on local data.

::

    coco     train2017/ val2017/       %012d, as the original ends; val2017 holds what is val or test, as in Karpathy's
             annotations/              captions_{train,val}2017.json; instances_{train,val}2017.json where labels exist
             dataset_coco.json         the split, in the form of Karpathy
    clotho   development/ validation/ evaluation/                  %06d.wav; what is no WAV is decoded, 44.1 kHz mono
             clotho_captions_*.csv     up to five captions; what has more gets further files
             clotho_items_*.csv        the group of each sound, the id of each caption
    videos   {train,val,test}/         videos/ and annotations.json, see readers/videos.py

Ids and groups survive by two keys that the published files do not have (``item`` of a caption, ``group`` of a picture)
and by the list of items; of videos groups survive, and the id of the first caption. What lacks a caption, or what the
form is made of, is left out. Labels of COCO hold for whole pictures here: there are no boxes and outlines.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from sensorium.data.items import SPLITS, DataSet, Item, Medium, Split
from sensorium.data.media import load_audio
from sensorium.data.readers import clotho, coco, videos
from sensorium.errors import ConfigError, DataError
from sensorium.files import copy_file, symlink, write_by_library

FORMS: dict[str, Medium] = {"coco": "image", "clotho": "audio", "videos": "video"}
"""What each form holds beside the captions."""

_YEAR = 2017
_RATE = 44_100  # Hz, as the sounds of Clotho
_CAPTIONS = 5  # of a sound of Clotho


@dataclass(frozen=True)
class Plan:
    """A tree that is to be written: where each file goes, the texts, and how many items are in it."""

    files: Mapping[str, Path]
    texts: Mapping[str, str]
    items: int


def plan(dataset: DataSet, form: str) -> Plan:
    """How ``dataset`` is written in a form. Raises ConfigError: no such form; DataError: nothing in it can be, or a
    picture or sound stands in two groups or splits."""
    if form not in FORMS:
        raise ConfigError(f"no form {form!r} to write; there are native, {', '.join(FORMS)}")
    medium = FORMS[form]
    owned: dict[Path, list[Item]] = {}
    for item in dataset.items:
        path = item.files.get(medium)
        if path is not None and item.text is not None:
            owned.setdefault(path, []).append(item)
    for path, items in owned.items():
        if len({(item.group, item.split) for item in items}) > 1:
            raise DataError(f"{path}: stands in two groups or splits, which the form {form!r} cannot say")
    if not owned:
        raise DataError(f"{dataset.name}: nothing has both text and {medium}, which the form {form!r} consists of")
    return _PLANS[form](owned)


def place(source: Path, target: Path, copy: bool) -> None:
    """Put a file where a plan wants it: as a link or a copy; a sound that is no WAV is decoded and written as one."""
    if target.suffix == ".wav" and source.suffix.lower() != ".wav":
        samples = load_audio(source, _RATE)
        write_by_library(target, lambda path: soundfile.write(path, samples, _RATE, subtype="PCM_16", format="WAV"))
    elif copy:
        copy_file(source, target)
    else:
        symlink(source, target)


Owned = Mapping[Path, Sequence[Item]]
"""The items of each file."""


def _coco(owned: Owned) -> Plan:
    files: dict[str, Path] = {}
    images: list[dict[str, Any]] = []
    captions = 0
    for number, (path, items) in enumerate(owned.items(), start=1):
        folder = f"{'train' if items[0].split == 'train' else 'val'}{_YEAR}"
        name = f"{number:012}{path.suffix.lower()}"
        files[f"{folder}/{name}"] = path
        sentences = [_sentence(item, number, captions + k) for k, item in enumerate(items)]
        captions += len(items)
        images.append(
            {
                "filepath": folder,
                "filename": name,
                "imgid": number - 1,
                "cocoid": number,
                "split": items[0].split,
                "group": items[0].group,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    texts = {coco.KARPATHY: _json({"images": images, "dataset": "coco"})}
    labels = {number: _labels(items) for number, items in enumerate(owned.values(), start=1)}
    names = sorted({label for found in labels.values() for label in found})
    for part in ("train", "val"):
        of_part = [image for image in images if image["filepath"] == f"{part}{_YEAR}"]
        listed = [{"id": one["cocoid"], "file_name": one["filename"], "group": one["group"]} for one in of_part]
        texts[f"annotations/captions_{part}{_YEAR}.json"] = _json(
            {"images": listed, "annotations": [_annotation(s, one) for one in of_part for s in one["sentences"]]}
        )
        if names:
            texts[f"annotations/instances_{part}{_YEAR}.json"] = _instances(listed, labels, names)
    return Plan(files, texts, captions)


def _sentence(item: Item, number: int, sentence: int) -> dict[str, Any]:
    tokens = re.findall(r"\w+", (item.text or "").lower())
    return {"tokens": tokens, "raw": item.text, "imgid": number - 1, "sentid": sentence, "item": item.id}


def _annotation(sentence: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    caption = {"id": sentence["sentid"], "caption": sentence["raw"], "item": sentence["item"]}
    return {"image_id": image["cocoid"], **caption}


def _labels(items: Sequence[Item]) -> list[str]:
    return sorted({label for item in items for label in item.labels})


def _instances(images: Sequence[Mapping[str, Any]], labels: Mapping[int, Sequence[str]], names: Sequence[str]) -> str:
    ids = {name: number for number, name in enumerate(names, start=1)}
    found = [(image["id"], ids[label]) for image in images for label in labels[image["id"]]]
    annotations = [
        {"id": number, "image_id": image, "category_id": category} for number, (image, category) in enumerate(found)
    ]
    categories = [{"id": number, "name": name, "supercategory": name} for name, number in ids.items()]
    return _json({"images": images, "annotations": annotations, "categories": categories})


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _clotho(owned: Owned) -> Plan:
    files: dict[str, Path] = {}
    rows: dict[Split, list[tuple[str, Sequence[Item]]]] = {split: [] for split in clotho.PARTS}
    for path, items in owned.items():
        for some in _pieces(items, _CAPTIONS):
            split = some[0].split
            name = f"{len(files) + 1:06}.wav"
            files[f"{clotho.PARTS[split]}/{name}"] = path
            rows[split].append((name, some))
    texts: dict[str, str] = {}
    for split, part in clotho.PARTS.items():
        captions = [[name, *_five([item.text or "" for item in items])] for name, items in rows[split]]
        ids = [[name, items[0].group, *_five([item.id for item in items])] for name, items in rows[split]]
        texts[f"clotho_captions_{part}.csv"] = _table(clotho.CAPTIONS, captions)
        texts[f"clotho_items_{part}.csv"] = _table(clotho.ITEMS, ids)
    return Plan(files, texts, sum(len(items) for items in owned.values()))


def _pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _five(words: Sequence[str]) -> list[str]:
    return [*words, *[""] * (_CAPTIONS - len(words))]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def _videos(owned: Owned) -> Plan:
    files: dict[str, Path] = {}
    entries: dict[Split, list[dict[str, Any]]] = {}
    for number, (path, items) in enumerate(owned.items(), start=1):
        split, name = items[0].split, path.name
        if f"{split}/{videos.FOLDER}/{name}" in files:
            name = f"{number:06}-{name}"
        files[f"{split}/{videos.FOLDER}/{name}"] = path
        stretches: dict[tuple[float, float] | None, list[Item]] = {}
        for item in items:
            stretches.setdefault(item.span, []).append(item)
        entries.setdefault(split, []).extend(_stretch(name, span, some) for span, some in stretches.items())
    texts = {f"{split}/{videos.SIGN}": _json(entries[split]) for split in SPLITS if split in entries}
    return Plan(files, texts, sum(len(items) for items in owned.values()))


def _stretch(name: str, span: tuple[float, float] | None, items: Sequence[Item]) -> dict[str, Any]:
    moments = dict.fromkeys(moment for item in items for moment in item.moments)
    entry: dict[str, Any] = {"video": name, "id": items[0].id, "group": items[0].group}
    entry["captions"] = list(dict.fromkeys(item.text for item in items))
    if span is not None:
        entry |= {"start": span[0], "end": span[1]}
    if moments:
        entry["events"] = [{"start": one.start, "end": one.end, "caption": one.text} for one in moments]
    return entry


_PLANS: dict[str, Callable[[Owned], Plan]] = {"coco": _coco, "clotho": _clotho, "videos": _videos}
