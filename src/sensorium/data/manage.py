"""What can be done with any data set that was read: check it, and turn it into the native format."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sensorium import reading
from sensorium.data import histories, trees
from sensorium.data.items import SPLITS, DataSet, Item, Split
from sensorium.data.media import load_audio, load_image
from sensorium.data.readers import flickr8k, native
from sensorium.data.video import load_video
from sensorium.errors import DataError
from sensorium.files import make_folder, new_folder, write_file

Progress = Callable[[int, int], None]
"""Called with what is done and the whole."""


@dataclass(frozen=True)
class Report:
    """``counts``: for each split the items, groups, and different texts, pictures and recordings."""

    counts: dict[Split, dict[str, int]]
    problems: tuple[str, ...]


def verify_dataset(dataset: DataSet, decode: bool = True, progress: Progress | None = None) -> Report:
    """Check everything that can be wrong with a data set; problems are gathered, one line each.

    Files that are missing, outside the root or (with ``decode``) broken; ids given twice; items with nothing in them
    and empty texts; groups, and files of the same bytes, in two splits (of a set of histories: targets); for Flickr8k
    the counts of the whole set.
    """
    problems = [*_item_problems(dataset), *_group_problems(dataset.items)]
    media = _media(dataset)
    digests: dict[Path, str] = {}
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda entry: _check_file(entry[0], entry[1] if decode else ""), media.items())
        for done, (path, (digest, problem)) in enumerate(zip(media, checks, strict=True), start=1):
            digests[path] = digest
            problems += [problem] if problem else []
            if progress:
                progress(done, len(media))
    known = {path: digest for path, digest in digests.items() if digest}
    problems += _twins(dataset, known) if dataset.history is None else histories.problems(dataset, known)
    if dataset.name == flickr8k.NAME and not (dataset.root / native.MANIFEST).is_file():  # an import keeps the name
        problems += flickr8k.shortfall(dataset.root)
    return Report({split: _counts(dataset.of_split(split)) for split in SPLITS}, tuple(problems))


def _counts(items: Sequence[Item]) -> dict[str, int]:
    return {
        "items": len(items),
        "groups": len({item.group for item in items}),
        "texts": len({item.text for item in items if item.text is not None}),
        "images": len({item.image for item in items if item.image is not None}),
        "audio": len({item.audio for item in items if item.audio is not None}),
        "videos": len({item.video for item in items if item.video is not None}),
    }


def _item_problems(dataset: DataSet) -> Iterator[str]:
    root = _plain(dataset.root)
    for name, count in Counter(item.id for item in dataset.items).items():
        if count > 1:
            yield f"{name}: the id is given {count} times"
    for item in dataset.items:
        if item.text is None and not item.files:
            yield f"{item.id}: has none of text, image, audio, video"
        if item.text is not None and not item.text.strip():
            yield f"{item.id}: empty text"
        for path in item.files.values():
            if not _plain(path).is_relative_to(root):
                yield f"{item.id}: {path} lies outside {dataset.root}"


def _plain(path: Path) -> Path:
    """Absolute and without ``..``; links are not followed: where they lead is the business of who made them."""
    return Path(os.path.normpath(path.absolute()))


def _group_problems(items: Sequence[Item]) -> Iterator[str]:
    splits: dict[str, set[Split]] = {}
    for item in items:
        splits.setdefault(item.group, set()).add(item.split)
    for group, found in splits.items():
        if len(found) > 1:
            yield f"group {group!r} stands in {_join(found)}"


def _media(dataset: DataSet) -> dict[Path, str]:
    """Every file once, and what it is."""
    media: dict[Path, str] = {}
    for item in dataset.items:
        media |= {path: medium for medium, path in item.files.items()}
    return media


def _check_file(path: Path, kind: str) -> tuple[str, str]:
    """Digest of the bytes ("" if there are none) and what is wrong ("" if nothing is)."""
    try:
        with reading.open_plain(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if kind == "image":
            load_image(path)
        elif kind == "audio":
            load_audio(path)
        elif kind == "video":
            load_video(path)
    except OSError as error:
        return "", f"{path}: cannot be read ({error.strerror})"
    except DataError as error:
        return digest, str(error)
    return digest, ""


def _twins(dataset: DataSet, digests: dict[Path, str]) -> Iterator[str]:
    """Files of the same bytes in two splits."""
    splits: dict[str, dict[Split, Path]] = {}
    for item in dataset.items:
        for path in item.files.values():
            if path in digests:
                splits.setdefault(digests[path], {}).setdefault(item.split, path)
    for found in splits.values():
        if len(found) > 1:
            names = ", ".join(str(path) for path in found.values())
            yield f"the same file stands in {_join(found)}: {names}"


def _join(splits: Sequence[Split] | set[Split] | dict[Split, Path]) -> str:
    return " and ".join(split for split in SPLITS if split in splits)


def import_dataset(dataset: DataSet, target: Path, copy: bool = False) -> Path:
    """Write ``dataset`` in the native format and return its folder, which appears by one rename::

        manifest.jsonl   dataset.json   image/   audio/   video/

    ``copy``: files are copied; otherwise they are symbolic links, and the originals have to stay. Raises DataError: the
    target holds something already, a file is missing, the place cannot be written.
    """
    paths = _relative_paths(_media(dataset))
    _require_possible(dataset.name, target, paths)
    with new_folder(target) as folder:
        for path, relative in paths.items():
            trees.place(path, _inside(folder, relative), copy)
        native.write(folder, dataset, paths)
    return target


def write_tree(dataset: DataSet, target: Path, form: str, copy: bool = False) -> int:
    """Write ``dataset`` in another form (see ``trees``), likewise; the number of items that are in it.

    Raises as ``import_dataset`` and ``trees.plan`` do.
    """
    plan = trees.plan(dataset, form)
    _require_possible(dataset.name, target, set(plan.files.values()))
    with new_folder(target) as folder:
        for relative, path in plan.files.items():
            trees.place(path, _inside(folder, relative), copy)
        for relative, text in plan.texts.items():
            write_file(_inside(folder, relative), text.encode())
    return plan.items


def _require_possible(name: str, target: Path, files: Collection[Path]) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists and is not empty; name a new folder")
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(f"{name}: {len(missing)} files are missing (first: {missing[0]}); nothing was written")


def _inside(folder: Path, relative: str) -> Path:
    """A place in ``folder``, whose own folder is there."""
    place = folder / relative
    make_folder(place.parent)
    return place


def _relative_paths(media: dict[Path, str]) -> dict[Path, str]:
    """A new place for every file: modality, name of its folder, its own name; with a digest where two would clash."""
    paths = {path: f"{kind}/{path.absolute().parent.name}/{path.name}" for path, kind in media.items()}
    taken = Counter(paths.values())
    for path, place in paths.items():
        if taken[place] > 1:
            digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
            paths[path] = f"{place.removesuffix(path.suffix)}-{digest}{path.suffix}"
    return paths
