"""Writing the processed samples of personalised pictures, in the layout of the published preprocessing::

FOLDER/
    train.json  val.json  test.json   as `tastes.py` reads them, one sample a line, paths absolute
    user_preferences.json             where styles were given
    split_report.json                 what was dropped, what each split holds, and the sha256 of the files; last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sensorium.data.histories import Sample, name_of, samples
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.files import make_folder, remove, replacing, write_json

REPORT, PREFERENCES = "split_report.json", "user_preferences.json"


def write_processed(
    dataset: DataSet, facts: Mapping[str, Any], folder: Path, user: str, styles: Mapping[str, str] | None = None
) -> dict[Split, int]:
    """Write the samples of a set of histories; the number of them by split. Files of before are replaced.

    ``facts``: what the report says besides. ``user``: ``user`` or ``worker``, how users are called in the files.
    ``styles``: text by user. Raises DataError as ``samples`` does, and DiskError.
    """
    make_folder(folder)
    remove(folder / REPORT)
    found: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    for one in samples(dataset):
        found[one.target.split].append(one)
    digests: dict[str, str] = {}
    for split, chosen in found.items():
        lines = (_line(one, dataset.root, user, styles) for one in chosen)
        digests[f"{split}.json"] = _write_list(folder / f"{split}.json", lines)
    about: dict[str, Any] = {"preferences": "none"}
    if styles is not None:
        users = dict.fromkeys(one.target.group for chosen in found.values() for one in chosen)
        told = [{user: name, "style": styles[name]} for name in users if name in styles]
        digests[PREFERENCES] = _write_list(folder / PREFERENCES, iter(told))
        about = {"preferences": "supplied; they may have seen targets", "users_with_preferences": len(told)}
    else:
        remove(folder / PREFERENCES)
    write_json(folder / REPORT, {**facts, **about, "sha256": digests})
    return {split: len(chosen) for split, chosen in found.items()}


def _line(one: Sample, root: Path, user: str, styles: Mapping[str, str] | None) -> dict[str, Any]:
    """A sample as an object."""
    history = [_info(item, root) for item in one.history]
    target = _info(one.target, root)
    style = {f"{user}_style": styles[one.target.group]} if styles and one.target.group in styles else {}
    return {
        f"{user}_id": one.target.group,
        "history_item_ids": [item["item_id"] for item in history],
        "history_items_info": history,
        "target_item_id": target["item_id"],
        "target_item_info": target,
        **style,
        "num_interactions": len(history),
        "window_position": int(one.history[0].time or 0),
        "sample_index": one.number,
    }


def _info(item: Item, root: Path) -> dict[str, Any]:
    assert item.image is not None  # samples refuses items without one
    found: dict[str, Any] = {
        "item_id": name_of(item, root),
        "caption": item.text or "",
        "image_path": str(item.image.absolute()),
    }
    if "score" in item.meta:
        found["score"] = int(item.meta["score"])
    if "aesthetic" in item.meta:
        found["aesthetic_score"] = float(item.meta["aesthetic"])
    return found


def _write_list(path: Path, entries: Iterator[Mapping[str, Any]]) -> str:
    """Write a list of objects, one a line, whole or not at all; the sha256 of the file."""
    digest = hashlib.sha256()
    with replacing(path) as file:
        for part in _parts(entries):
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _parts(entries: Iterator[Mapping[str, Any]]) -> Iterator[bytes]:
    before = b"[\n"
    for entry in entries:
        yield before + json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"
