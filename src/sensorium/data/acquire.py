"""Get the data sets of the catalogue: download, prove, unpack, put in place, and write down what was done.

::

    ROOT/
        archives/                        NAME.part, NAME.state, NAME; gone when all is unpacked, unless they are kept
        .unpack-NAME/                    what is being unpacked; thrown away by whoever comes next
        .sensorium-download.json         what is there and what proved it; written last, one archive after the other
        .sensorium-download.lock         held while somebody downloads into ROOT

A kill at any point costs at most the archive that was being unpacked its unpacking; what came over the network stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sensorium import reading
from sensorium.data import archives
from sensorium.data.catalog import Remote, Source
from sensorium.data.transfer import (
    Digest,
    Patience,
    Watch,
    check_copy,
    fetch,
    set_aside,
    state_file,
    statement,
)
from sensorium.errors import DataError, DiskError
from sensorium.files import link_or_copy, make_folder, open_file, remove, write_json

MANIFEST, ARCHIVES, LOCK = ".sensorium-download.json", "archives", ".sensorium-download.lock"


@dataclass(frozen=True)
class Job:
    """One file of one data set that is not there yet."""

    source: Source
    remote: Remote


@dataclass(frozen=True)
class Choices:
    """``copies``: a folder whose archives are used, and left alone, instead of downloading them. ``rehash``: what is
    there already is compared with the checksums of when it came, not with its sizes alone."""

    keep_archives: bool = False
    copies: Path | None = None
    rehash: bool = False
    patience: Patience = field(default_factory=Patience)


def jobs(sources: Sequence[Source], root: Path) -> list[Job]:
    """What has to be done for ``sources`` to be there. Raises DataError when the manifest is damaged."""
    done = _read_manifest(root)
    return [
        Job(source, remote)
        for source in sources
        for remote in source.files
        if not _is_there(remote, root, done.get(remote.name))
    ]


def records(root: Path) -> list[dict[str, Any]]:
    """What came into ``root``: name, address, bytes, checksums, licence and date of each file that was downloaded."""
    kept = ("url", "bytes", "md5", "sha256", "proof", "licence", "date")
    return [{"path": name, **{key: one[key] for key in kept}} for name, one in _read_manifest(root).items()]


def unchanged(sources: Sequence[Source], root: Path, watch: Watch) -> list[str]:
    """What is wrong with what should be there, one line each; nothing is fetched or changed. Raises DataError when the
    manifest is damaged."""
    done = _read_manifest(root)
    problems = []
    for source in sources:
        for remote in source.files:
            record = done.get(remote.name)
            if not _is_there(remote, root, record):
                problems.append(f"{source.name}: {remote.name} is not there, or not as large as it was")
            elif record is not None:
                problems += [f"{source.name}: {problem}" for problem in _changes(remote, root, record, watch)]
    return problems


def _changes(remote: Remote, root: Path, record: Mapping[str, Any], watch: Watch) -> list[str]:
    """The files of an archive that are not any more what came."""
    digests: Mapping[str, str] = record.get("digests", {})
    found = archives.digests(root, list(digests), f"check {remote.name}", watch)
    changed = [name for name, digest in digests.items() if found[name] != digest]
    more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
    advice = f"move it away, and the same command gets {remote.name} again"
    return [f"{root / changed[0]}{more}: changed since it was downloaded; {advice}"] if changed else []


def needed_space(todo: Sequence[Job], root: Path, choices: Choices) -> int:
    """The most bytes that are taken at any one time, as far as the sizes are known; what came already counts as had."""
    lasting = most = 0
    for job in todo:
        remote = job.remote
        size = remote.size or 0
        path = root / ARCHIVES / remote.name
        copied = choices.copies is not None and (choices.copies / remote.name).is_file()
        had = next((p.stat().st_size for p in (path, path.with_name(f"{path.name}.part")) if p.is_file()), 0)
        archive = 0 if copied else max(size - had, 0)
        unpacked = size if remote.unpacked is None else remote.unpacked
        content = 0 if remote.kind == "file" and not copied else unpacked
        most = max(most, lasting + archive + content)
        lasting += content if remote.kind != "file" and not choices.keep_archives else archive + content
    return most


def free_space(root: Path) -> int:
    """Bytes that are free where ``root`` is or will be."""
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    return shutil.disk_usage(place).free


def check_space(todo: Sequence[Job], root: Path, choices: Choices) -> None:
    """Raise DataError when archives and content together will not fit on the disk of ``root``."""
    needed, free = needed_space(todo, root, choices), free_space(root)
    if needed > free:
        raise DataError(
            f"{root}: {needed:,} bytes are needed, {free:,} are free; nothing was downloaded. Make room, or take "
            "another --root"
        )


def acquire(sources: Sequence[Source], root: Path, choices: Choices, watch: Watch) -> list[str]:
    """Do all that a program can do and return what failed, one line each; what is there already is left alone.

    A second call goes on where the first was killed. Files that are there already are never overwritten. Raises
    DataError when ``root`` cannot be used, is too small, or somebody else downloads into it, or when .7z files would
    come that cannot be unpacked here.
    """
    problems: list[str] = []
    if not any(source.files for source in sources):
        return problems
    todo = jobs(sources, root)
    if any(job.remote.kind == "7z" for job in todo):
        archives.require_7z()
    with locked(root):
        check_space(todo, root, choices)
        for source in sources:
            for remote in source.files:
                try:
                    _obtain(Job(source, remote), root, choices, watch)
                except DataError as error:
                    problems.append(f"{source.name}: {error}")
                except OSError as error:
                    problems.append(f"{source.name}: {root} cannot be used ({error.strerror}: {error.filename})")
    return problems


def _obtain(job: Job, root: Path, choices: Choices, watch: Watch) -> None:
    remote, done = job.remote, _read_manifest(root)
    if not _is_there(remote, root, done.get(remote.name)):
        path, digest = _archive(remote, root, choices, watch)
        with _unpacking(root / f".unpack-{remote.name}") as folder:
            _fill(remote, path, folder, watch)
            content = archives.sizes(folder)
            digests = archives.digests(folder, list(content), f"record {remote.name}", watch)
            archives.settle(folder, root)
        os.sync()  # the archive goes next: what came out of it has to be on the disk
        done[remote.name] = _record(job, digest, content) | {"digests": digests}
        write_json(root / MANIFEST, {"format": 1, "files": done})
        watch.say(f"{remote.name}: {len(content):,} files, {sum(content.values()):,} bytes, are in place")
    elif choices.rehash and (changes := _changes(remote, root, done[remote.name], watch)):
        raise DataError(changes[0])
    _tidy(remote, root / ARCHIVES, choices.keep_archives)


def _archive(remote: Remote, root: Path, choices: Choices, watch: Watch) -> tuple[Path, Digest]:
    """The whole and proved file, and what it is."""
    if choices.copies and (path := choices.copies / remote.name).is_file():
        return path, check_copy(remote, path, watch)
    make_folder(root / ARCHIVES)
    return fetch(remote, root / ARCHIVES, choices.patience, watch)


def _fill(remote: Remote, path: Path, folder: Path, watch: Watch) -> None:
    if remote.kind == "file":
        make_folder(folder / remote.folder)
        link_or_copy(path, folder / remote.folder / remote.name)
        return
    try:
        archives.unpack(remote, path, folder, watch)
    except archives.DamagedArchiveError as error:
        if not state_file(path).exists() or remote.md5 or remote.sha256:  # not ours, or the same would come again
            raise
        bad = set_aside(path, path)
        raise DataError(f"{error}; set aside as {bad}, the same command downloads it again") from None


@contextmanager
def _unpacking(folder: Path) -> Iterator[Path]:
    """A new folder for the time being; one that a killed process left is thrown away."""
    remove(folder)
    make_folder(folder)
    try:
        yield folder
    finally:
        with suppress(DiskError):
            remove(folder)


def _tidy(remote: Remote, folder: Path, keep: bool) -> None:
    """Delete the archive that was downloaded; one without a state was laid there by somebody else and stays."""
    path = folder / remote.name
    if state_file(path).exists():
        if not keep or remote.kind == "file":
            remove(path)
        for left in (f"{path.name}.part", f"{path.name}.bad", f".{path.name}.state.tmp"):
            remove(path.with_name(left))
        remove(state_file(path))


def _record(job: Job, digest: Digest, content: dict[str, int]) -> dict[str, Any]:
    return {
        "set": job.source.name,
        "url": job.remote.url,
        **asdict(digest),
        "proof": statement(job.remote, digest),
        "licence": job.source.licence,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "content": content,
    }


def _is_there(remote: Remote, root: Path, record: dict[str, Any] | None) -> bool:
    """The manifest vouches for what is published today, and every file has still its size."""
    if record is None:
        return False
    published = {name: value for name, value in (("md5", remote.md5), ("sha256", remote.sha256)) if value}
    expected = published or {"url": remote.url}  # what is proved may have moved since
    if any(record[name] != value for name, value in expected.items()):
        return False
    try:
        return all((root / name).stat().st_size == size for name, size in record["content"].items())
    except OSError:
        return False


def _read_manifest(root: Path) -> dict[str, dict[str, Any]]:
    path = root / MANIFEST
    if not path.exists():
        return {}
    try:
        content = reading.parse_json(reading.read_bytes(path))
        if content["format"] != 1:
            raise ValueError(f"format {content['format']}")
        files: dict[str, dict[str, Any]] = content["files"]
        for record in files.values():
            _ = record["url"], record["md5"], record["sha256"], record["content"].items()
            _ = record.get("digests", {}).items()  # older ones have none
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it, and what is there is checked anew") from error
    return files


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Own ``root`` until the block ends; the lock goes with the process, however it ends."""
    made, path = not root.exists(), root / LOCK
    make_folder(root)
    with open_file(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(path.stat(), os.fstat(lock.fileno()))  # not one that its owner has just removed
        except OSError:
            ours = False
        if not ours:
            raise DataError(f"{root}: another download is going on there; wait for it, or take another --root")
        try:
            yield
        finally:
            remove(path)
            for folder in (root / ARCHIVES, root) if made else (root / ARCHIVES,):
                if folder.is_dir() and not any(folder.iterdir()):  # nothing came, or nothing is left
                    remove(folder)
