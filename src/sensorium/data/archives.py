"""Unpack zip and tar files that nobody vouches for, and put their content where it belongs without losing a file."""

from __future__ import annotations

import filecmp
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from sensorium.data.catalog import Remote
from sensorium.data.transfer import BLOCK, Watch
from sensorium.errors import DataError
from sensorium.files import make_folder, open_file, rename, require_space, told

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeError)


class DamagedArchiveError(DataError):
    """The bytes are no whole archive."""


def unpack(remote: Remote, archive: Path, folder: Path, watch: Watch) -> None:
    """Fill the empty ``folder`` with the members of ``archive`` that ``remote`` wants, each where it belongs.

    Resource forks of macOS are left out. Raises DamagedArchiveError, and DataError: a member would leave the folder, is
    a link or a device, comes twice or is encrypted; a wanted file is missing; the disk is too small. OSError: the disk
    fails. The caller removes the folder then.
    """
    try:
        if remote.kind == "zip":
            _unzip(remote, archive, folder, watch)
        else:
            _untar(remote, archive, folder, watch)
    except _DAMAGE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
        raise DamagedArchiveError(f"{archive}: damaged ({reason})") from error
    except NotImplementedError as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    lacking = [pattern for pattern in remote.keep or ("*",) if not any(fnmatchcase(name, pattern) for name in names)]
    if lacking:
        raise DataError(f"{archive}: holds no {', '.join(lacking)}")


def destination(remote: Remote, member: str) -> PurePosixPath | None:
    """Where a member goes, relative to the root; None: it is not wanted. Raises DataError: it leads out of the root."""
    path, strict = PurePosixPath(member), PureWindowsPath(member)  # the latter knows drives and both separators
    if strict.anchor or ".." in strict.parts or "\0" in member:
        raise DataError(f"{remote.name}: the member {member!r} would leave the folder; nothing was unpacked")
    parts = path.parts
    if not parts or "__MACOSX" in parts or path.name.startswith("._") or path.name == ".DS_Store":
        return None
    if remote.keep and not any(fnmatchcase(path.name, pattern) for pattern in remote.keep):
        return None
    if remote.folder:
        levels = [number for number, part in enumerate(parts[:-1]) if part == remote.folder]
        parts = (remote.folder, *parts[levels[-1] + 1 if levels else 0 :])
    return PurePosixPath(*parts)


def _unzip(remote: Remote, archive: Path, folder: Path, watch: Watch) -> None:
    with zipfile.ZipFile(archive) as file:
        wanted: dict[PurePosixPath, zipfile.ZipInfo] = {}
        for info in file.infolist():
            place = destination(remote, info.filename)
            if place is None or info.is_dir():
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _no_plain_file(remote, info.filename)
            if info.flag_bits & 1:
                raise DataError(f"{remote.name}: {info.filename} is encrypted; nothing was unpacked")
            if place in wanted:
                raise _twice(remote, place)
            wanted[place] = info
        total = sum(info.file_size for info in wanted.values())
        require_space(folder, total, f"the content of {remote.name}")
        done = 0
        for place, info in wanted.items():
            with file.open(info) as content:  # never more than the declared size; checks the CRC there
                done += _write(content, folder / place, info.file_size)
            watch.move(f"unpack {remote.name}", done, total)


def _untar(remote: Remote, archive: Path, folder: Path, watch: Watch) -> None:
    total = archive.stat().st_size
    with archive.open("rb") as packed, tarfile.open(fileobj=packed, mode="r:*") as file:
        for member in file:
            place = destination(remote, member.name)
            if place is None or member.isdir():
                continue
            content = file.extractfile(member) if member.isreg() else None
            if content is None:
                raise _no_plain_file(remote, member.name)
            if (folder / place).exists():
                raise _twice(remote, place)
            require_space(folder, member.size, f"{member.name} in {remote.name}")
            _write(content, folder / place, member.size)
            watch.move(f"unpack {remote.name}", packed.tell(), total)
        while file.fileobj and file.fileobj.read(BLOCK):  # to the checksum at the end of a compressed one
            pass


def _write(content: IO[bytes], target: Path, size: int) -> int:
    """The number of bytes. Only plain files are ever made in a new folder, so no path in it can lead elsewhere."""
    make_folder(target.parent)
    with content, told(target), open_file(target, "xb") as file:
        shutil.copyfileobj(content, file, BLOCK)
        if file.tell() != size:
            raise EOFError(f"{target.name} has {file.tell():,} of {size:,} bytes")
    return size


def _no_plain_file(remote: Remote, member: str) -> DataError:
    return DataError(f"{remote.name}: {member} is a link or a device, which no data set needs; nothing was unpacked")


def _twice(remote: Remote, place: PurePosixPath) -> DataError:
    return DataError(f"{remote.name}: holds {place} twice; nothing was unpacked")


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below ``folder``, by its path relative to it."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def settle(source: Path, root: Path) -> None:
    """Move all that lies in ``source`` into ``root``, whole folders by one rename where none is there.

    A file that is there already with the same bytes stays. Raises DataError, and moves nothing, when one differs.
    """
    moves = list(_moves(source, root))
    differing = [target for _, target in moves if os.path.lexists(target)]
    if differing:
        more = f" and {len(differing) - 1:,} more" if len(differing) > 1 else ""
        raise DataError(
            f"{differing[0]}{more}: there already with other content; nothing is overwritten. Move it away, or take "
            "another --root"
        )
    for found, target in moves:
        rename(found, target)


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """What has to be moved where; a target that exists is one that differs."""
    for found in sorted(source.iterdir()):
        place = target / found.name
        if not os.path.lexists(place):
            yield found, place
        elif found.is_dir() and place.is_dir():
            yield from _moves(found, place)
        elif not (found.is_file() and place.is_file() and filecmp.cmp(found, place, shallow=False)):
            yield found, place
