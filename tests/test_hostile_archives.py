"""Archives made to do harm, beyond what test_archives.py has: impossible names, more than announced, fat headers."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hostile import soon
from packs import sevened, tarred, zipped

from sensorium.data import archives
from sensorium.data.catalog import Kind, Remote
from sensorium.data.transfer import Watch
from sensorium.errors import DataError

WATCH = Watch(lambda text: None, lambda what, done, total: None)
KINDS: tuple[Kind, ...] = ("zip", "tar", "7z")
PACK = {"zip": zipped, "tar": tarred, "7z": sevened}


def packed(kind: Kind, *names: str) -> bytes:
    return PACK[kind](dict.fromkeys(names, b"x"))  # type: ignore[operator]


def unpacked(tmp_path: Path, kind: Kind, content: bytes, announced: int | None = None) -> list[str]:
    """The names that come out; nothing may lie beside them."""
    root = tmp_path / "root"
    (root / "new").mkdir(parents=True)
    (root / "pack").write_bytes(content)
    remote = Remote("pack", "", kind, unpacked=announced)
    try:
        with soon():
            archives.unpack(remote, root / "pack", root / "new", WATCH)
    finally:
        assert sorted(path.name for path in root.iterdir()) == ["new", "pack"]
    return sorted(archives.sizes(root / "new"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["a\x1b[2Jb", "a\nb", "a\tb\x7f", "\u202egnp.exe", "x" * 256, "é" * 128, "a/" * 1500 + "b"]
)
def test_an_impossible_name_is_refused_and_shown_harmlessly(tmp_path: Path, kind: Kind, name: str) -> None:
    with pytest.raises(DataError, match="has no possible name; nothing was unpacked") as caught:
        unpacked(tmp_path, kind, packed(kind, "good", name))
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_names_are_possible(tmp_path: Path, kind: Kind) -> None:
    names = ["a b", "x" * 255, "é" * 127, "日本語.jpg"]
    assert unpacked(tmp_path, kind, packed(kind, *names)) == sorted(names)


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    content = gzip.decompress(tarred({"aQb": b"x"})).replace(b"aQb", b"a\xffb")
    content = content.replace(content[148:156], b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512])))
    with pytest.raises(DataError, match="has no possible name"):
        unpacked(tmp_path, "tar", content)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_differ_in_case_are_two_files_where_the_disk_can(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "probe").touch()
    if (tmp_path / "PROBE").exists():
        with pytest.raises((DataError, FileExistsError)):
            unpacked(tmp_path, kind, packed(kind, "a.txt", "A.txt"))
    else:
        assert unpacked(tmp_path, kind, packed(kind, "a.txt", "A.txt")) == ["A.txt", "a.txt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("a", "a/b/c"), ("a/b/c", "a"), ("a/b/c", "a/b")])
def test_a_member_that_is_a_file_and_a_folder_is_refused(tmp_path: Path, kind: Kind, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"as a file and as a folder|holds a(/b)? twice"):
        unpacked(tmp_path, kind, packed(kind, *names))


@pytest.mark.parametrize("kind", KINDS)
def test_far_more_than_announced_is_refused(tmp_path: Path, kind: Kind) -> None:
    """Twenty megabytes of zeros in twenty kilobytes."""
    content = PACK[kind]({f"{number}": bytes(1_000_000) for number in range(20)})  # type: ignore[operator]
    assert len(content) < 50_000
    with pytest.raises(DataError, match=r"holds more than [\d,]+ bytes, about 1,500,000 are announced"):
        unpacked(tmp_path / "bomb", kind, content, announced=1_500_000)
    assert sum(archives.sizes(tmp_path / "bomb" / "root" / "new").values()) <= 3_000_000
    assert len(unpacked(tmp_path / "known", kind, content, announced=15_000_000)) == 20


def test_a_sparse_member_counts_as_large_as_it_is(tmp_path: Path) -> None:
    """Eight gigabytes of nothing, in one block of the archive."""
    member = tarfile.TarInfo("sparse")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"00000000000\x0000000000000\0"[:24].ljust(24, b"\0")
    block[483:495] = b"77777777777\0"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    with pytest.raises(DataError, match=r"holds more than 8,589,934,591 bytes"):
        unpacked(tmp_path, "tar", bytes(block) + bytes(1024), announced=1000)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("long")
    member.type, member.size = kind, 1 << 33
    stream = io.BytesIO()
    with gzip.open(stream, "wb") as file:
        file.write(tarfile.TarInfo("first").tobuf())
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(50_000_000))
    with pytest.raises(archives.DamagedArchiveError, match="a header of 8,589,934,592 bytes"):
        unpacked(tmp_path, "tar", stream.getvalue())


def test_a_broken_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(gzip.decompress(tarred({"a": b"one", "b": b"two"})))
    assert unpacked(tmp_path / "whole", "tar", bytes(content)) == ["a", "b"]
    content[1024] ^= 1  # the name of the second member: its checksum is wrong now
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        assert file.getnames() == ["a"]  # the twin: the library says nothing
    with pytest.raises(archives.DamagedArchiveError, match="a broken header"):
        unpacked(tmp_path / "broken", "tar", bytes(content))


def test_endless_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = packed("tar", *map(str, range(6)))
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 6)
    assert len(unpacked(tmp_path / "few", "tar", content)) == 6
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 5)
    with pytest.raises(DataError, match="more than 5 members"):
        unpacked(tmp_path / "many", "tar", content)


def test_a_directory_that_points_out_of_the_archive_is_damage(tmp_path: Path) -> None:
    content = zipped({"a": b"x"})
    with pytest.raises(archives.DamagedArchiveError, match="damaged"):
        unpacked(tmp_path, "zip", content[1:])


def test_members_that_share_their_bytes_are_counted_each(tmp_path: Path) -> None:
    """The bombs that need no nesting: every entry of the directory names the same packed bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0", bytes(1_000_000))
        for number in range(1, 50):
            twin = zipfile.ZipInfo(f"{number}")
            for name in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(twin, name, getattr(file.filelist[0], name))
            file.filelist.append(twin)
    with pytest.raises(DataError, match=r"holds more than 50,000,000 bytes, about 2,000,000 are announced"):
        unpacked(tmp_path, "zip", stream.getvalue(), announced=2_000_000)
