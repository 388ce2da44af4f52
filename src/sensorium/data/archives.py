"""Unpack zip, tar and 7z files that nobody vouches for, and put their content where it belongs; no file is lost."""

from __future__ import annotations

import errno
import filecmp
import gzip
import hashlib
import importlib.util
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Self

from sensorium import reading
from sensorium.data.catalog import Remote
from sensorium.data.transfer import BLOCK, Watch
from sensorium.errors import DataError, DiskError, printable
from sensorium.files import make_folder, open_file, rename, require_space, told

_LONGEST_PART, _LONGEST_NAME = 255, 2000  # bytes of a file's name and of a member's whole path
_MOST_MEMBERS = 10_000_000
_LARGEST_HEADER = 1 << 20  # bytes of a long name or of pax fields, which are read into memory at once
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeError)


class DamagedArchiveError(DataError):
    """The bytes are no whole archive."""


def unpack(remote: Remote, archive: Path, folder: Path, watch: Watch) -> None:
    """Fill the empty ``folder`` with the members of ``archive`` that ``remote`` wants, each where it belongs.

    Resource forks of macOS are left out. Raises DamagedArchiveError, and DataError: a member would leave the folder, is
    a link or a device, comes twice, is encrypted or has an impossible name; a wanted file is missing; the content is
    far larger than announced, or the disk too small. OSError: the disk fails. The caller removes the folder then.
    """
    try:
        _UNPACK[remote.kind](remote, archive, folder, watch)
    except _DAMAGE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
        raise DamagedArchiveError(f"{archive}: damaged ({reason})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DamagedArchiveError(f"{archive}: damaged (its directory points out of it)") from error
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
        raise DataError(f"{remote.name}: the member {_cut(member)!r} would leave the folder; nothing was unpacked")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if (
        printable(member) != member
        or set("\n\t") & set(member)
        or longest > _LONGEST_PART
        or len(os.fsencode(member)) > _LONGEST_NAME
    ):
        raise DataError(f"{remote.name}: the member {_cut(member)!r} has no possible name; nothing was unpacked")
    parts = path.parts
    if not parts or "__MACOSX" in parts or path.name.startswith("._") or path.name == ".DS_Store":
        return None
    if remote.keep and not any(fnmatchcase(path.name, pattern) for pattern in remote.keep):
        return None
    if remote.folder:
        levels = [number for number, part in enumerate(parts[:-1]) if part == remote.folder]
        parts = (remote.folder, *parts[levels[-1] + 1 if levels else 0 :])
    return PurePosixPath(*parts)


def _cut(member: str) -> str:
    return member if len(member) <= 100 else f"{member[:100]} …"


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
        _require_announced(remote, total)
        require_space(folder, total, f"the content of {remote.name}")
        done = 0
        for place, info in wanted.items():
            with file.open(info) as content:  # never more than the declared size; checks the CRC there
                done += _write(content, folder / place, info.file_size)
            watch.move(f"unpack {remote.name}", done, total)


def _untar(remote: Remote, archive: Path, folder: Path, watch: Watch) -> None:
    total, done = archive.stat().st_size, 0
    with archive.open("rb") as packed, tarfile.open(fileobj=packed, mode="r:*", tarinfo=_Member) as file:
        for number in count():
            member = file.next()
            if member is None:
                break
            if number >= _MOST_MEMBERS:
                raise DataError(f"{remote.name}: more than {_MOST_MEMBERS:,} members; nothing was unpacked")
            file.members.clear()  # type: ignore[attr-defined]  # it would remember them all
            place = destination(remote, member.name)
            if place is None or member.isdir():
                continue
            content = file.extractfile(member) if member.isreg() else None
            if content is None:
                raise _no_plain_file(remote, member.name)
            if (folder / place).exists():
                raise _twice(remote, place)
            _require_announced(remote, done + member.size)
            require_space(folder, member.size, f"{member.name} in {remote.name}")
            done += _write(content, folder / place, member.size)
            watch.move(f"unpack {remote.name}", packed.tell(), total)
        while file.fileobj and file.fileobj.read(BLOCK):  # to the checksum at the end of a compressed one
            pass


def _un7z(remote: Remote, archive: Path, folder: Path, watch: Watch) -> None:
    require_7z()
    from sensorium.data import sevenzip

    try:
        with reading.open_plain(archive) as file:
            members = sevenzip.members(file)
            wanted: dict[str, tuple[PurePosixPath, int]] = {}
            taken: set[PurePosixPath] = set()
            if len(members) > _MOST_MEMBERS:
                raise DataError(f"{remote.name}: more than {_MOST_MEMBERS:,} members; nothing was unpacked")
            for member in members:
                place = destination(remote, member.filename)
                if place is None or member.is_directory:
                    continue
                if not member.is_file:
                    raise _no_plain_file(remote, member.filename)
                if place in taken or member.filename in wanted:
                    raise _twice(remote, place)
                taken.add(place)
                wanted[member.filename] = place, member.uncompressed
            total = sum(size for _, size in wanted.values())
            _require_announced(remote, total)
            require_space(folder, total, f"the content of {remote.name}")
            watched = f"unpack {remote.name}"
            with told(folder):
                sevenzip.extract(
                    file, wanted, lambda at: _new(folder / at), lambda done: watch.move(watched, done, total)
                )
    except sevenzip.EncryptedError:
        raise DataError(f"{remote.name}: is encrypted; nothing was unpacked") from None
    except sevenzip.DAMAGE as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DamagedArchiveError(f"{archive}: damaged ({reason})") from error


def require_7z() -> None:
    """Raise DataError when .7z files cannot be unpacked here: to be known before gigabytes of them come."""
    if importlib.util.find_spec("py7zr") is None:
        raise DataError("py7zr is not installed, which unpacks .7z files; run: pip install 'sensorium[downloads]'")


_UNPACK = {"zip": _unzip, "tar": _untar, "7z": _un7z}


class _Member(tarfile.TarInfo):
    """Refuses headers that would fill the memory, and broken ones, which tarfile takes for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if buf.strip(b"\0"):
                raise tarfile.ReadError("a broken header") from None
            raise
        if member.type in _EXTENSIONS and member.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _require_announced(remote: Remote, size: int) -> None:
    """Archives of which nobody published a checksum may be anything, and the disk may be large."""
    if remote.unpacked is not None and size > 2 * remote.unpacked:
        raise DataError(
            f"{remote.name}: holds more than {size:,} bytes, about {remote.unpacked:,} are announced; nothing was "
            "unpacked"
        )


def _write(content: IO[bytes], target: Path, size: int) -> int:
    """The number of bytes. Only plain files are ever made in a new folder, so no path in it can lead elsewhere."""
    with content, _new(target) as file, told(target):
        shutil.copyfileobj(content, file, BLOCK)
        if file.tell() != size:
            raise EOFError(f"{target.name} has {file.tell():,} of {size:,} bytes")
    return size


def _new(target: Path) -> IO[bytes]:
    try:
        make_folder(target.parent)
        return open_file(target, "xb")
    except DiskError as error:
        if isinstance(error.__cause__, FileExistsError | NotADirectoryError | IsADirectoryError):
            raise DataError(
                f"{target.name}: in the archive as a file and as a folder, or in capitals and small letters that this "
                "disk cannot tell apart; nothing was unpacked"
            ) from None
        raise


def _no_plain_file(remote: Remote, member: str) -> DataError:
    return DataError(f"{remote.name}: {member} is a link or a device, which no data set needs; nothing was unpacked")


def _twice(remote: Remote, place: PurePosixPath) -> DataError:
    return DataError(f"{remote.name}: holds {place} twice; nothing was unpacked")


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below ``folder``, by its path relative to it."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def digests(folder: Path, names: Sequence[str], what: str, watch: Watch) -> dict[str, str]:
    """The sha256 of files below ``folder``, by name; ``what``: what the watch is told. Raises DataError."""
    found: dict[str, str] = {}
    done, total = 0, sum((folder / name).stat().st_size for name in names)
    with ThreadPoolExecutor() as pool:
        for name, (digest, size) in zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True):
            found[name] = digest
            done += size
            watch.move(what, done, total)
    return found


def _digest(path: Path) -> tuple[str, int]:
    """The sha256, and the bytes."""
    try:
        with reading.open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


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
