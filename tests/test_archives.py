"""Archives are unpacked where they belong; hostile and damaged ones do no harm, and no file is overwritten."""

from __future__ import annotations

import gzip
import io
import stat
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import py7zr
import pytest
from packs import sevened, tarred, zipped

from sensorium.data import archives, sevenzip
from sensorium.data.catalog import Kind, Remote
from sensorium.data.transfer import Watch
from sensorium.errors import DataError, DiskError

WATCH = Watch(lambda text: None, lambda what, done, total: None)
TREE = {"set/a.txt": b"one", "set/deep/b.txt": b"two" * 1000, "c.jpg": b"three"}
KINDS: tuple[Kind, ...] = ("zip", "tar", "7z")
PACK = {"zip": zipped, "tar": tarred, "7z": sevened}


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def packed(kind: Kind, tree: Mapping[str, bytes]) -> bytes:
    return PACK[kind](tree)  # type: ignore[operator]


def unpacked(tmp_path: Path, remote: Remote, content: bytes) -> dict[str, bytes]:
    """What comes out, by path. Nothing may lie outside the folder."""
    archive, folder = tmp_path / "archives" / remote.name, tmp_path / "root" / "new"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        archives.unpack(remote, archive, folder, WATCH)
    finally:
        assert {path.name for path in tmp_path.iterdir()} <= {"archives", "root", "secret"}
        assert [path.name for path in (tmp_path / "root").iterdir()] == ["new"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def announce(header: Any, size: int) -> None:
    """Let the first member of a 7z file claim that it has this size."""
    header.main_streams.substreamsinfo.unpacksizes[0] = size
    header.main_streams.unpackinfo.folders[0].unpacksizes[-1] = size


def remote(kind: Kind, folder: str = "", keep: tuple[str, ...] = ()) -> Remote:
    return Remote(f"pack.{kind}", "", kind, folder=folder, keep=keep)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_comes_out(tmp_path: Path, kind: Kind) -> None:
    assert unpacked(tmp_path, remote(kind), packed(kind, TREE)) == TREE
    assert archives.sizes(tmp_path / "root" / "new") == {name: len(content) for name, content in TREE.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_resource_forks_are_left_out(tmp_path: Path, kind: Kind) -> None:
    forks = {"__MACOSX/set/._a.txt": b"x", "set/._a.txt": b"x", "set/.DS_Store": b"x"}
    assert unpacked(tmp_path, remote(kind), packed(kind, forks | TREE)) == TREE


@pytest.mark.parametrize("above", ["", "sounds/", "outer/sounds/", "sounds/sounds/"])
def test_the_folder_is_the_wanted_one_whatever_stands_above(tmp_path: Path, above: str) -> None:
    tree = {f"{above}wavs/1.wav": b"1", f"{above}list.txt": b"2", f"{above}readme": b"3"}
    found = unpacked(tmp_path, remote("tar", "sounds", ("*.wav", "list.txt")), tarred(tree))
    assert found == {"sounds/wavs/1.wav": b"1", "sounds/list.txt": b"2"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../x", "set/../../x", "{outside}/x", "C:/x", "..\\x", "\\x"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, kind: Kind, name: str) -> None:
    member = name.format(outside=tmp_path)
    with pytest.raises(DataError, match=f"pack.{kind}: the member .* would leave the folder"):
        unpacked(tmp_path, remote(kind), packed(kind, TREE | {member: b"evil"}))


@pytest.mark.parametrize(
    "member",
    [
        special("set/evil", tarfile.SYMTYPE, "../../../secret"),
        special("set/evil", tarfile.SYMTYPE, "/etc/passwd"),
        special("set/evil", tarfile.SYMTYPE, "a.txt"),
        special("set/evil", tarfile.LNKTYPE, "../secret"),
        special("set/evil", tarfile.CHRTYPE),
        special("set/evil", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(DataError, match="set/evil is a link or a device"):
        unpacked(tmp_path, remote("tar"), tarred(TREE, member))
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        link = zipfile.ZipInfo("evil")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="evil is a link"):
        unpacked(tmp_path, remote("zip"), stream.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_two_members_of_one_place_are_refused(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(DataError, match=r"holds set/a\.txt twice"):
        unpacked(tmp_path, remote(kind, "set"), packed(kind, {"set/a.txt": b"1", "a.txt": b"2"}))


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_the_disk_holds_is_refused_before_a_byte_is_written(tmp_path: Path, kind: Kind) -> None:
    if kind == "zip":
        content = zipped({"big": b"x"}, declared=1 << 60)
    elif kind == "7z":
        content = sevened({"big": b"x"}, lambda header: announce(header, 1 << 60))
    else:
        member = special("big", tarfile.REGTYPE)
        member.size = 1 << 60
        content = gzip.compress(member.tobuf())
    with pytest.raises(DiskError, match=r"needs [\d,]+ bytes in .*, [\d,]+ are free"):
        unpacked(tmp_path, remote(kind), content)
    assert list((tmp_path / "root" / "new").iterdir()) == []


@pytest.mark.parametrize(("declared", "reason"), [(50, "Bad CRC-32"), (5001, "big has 5,000 of 5,001 bytes")])
def test_a_member_that_is_not_as_large_as_it_says_is_damage(tmp_path: Path, declared: int, reason: str) -> None:
    with pytest.raises(archives.DamagedArchiveError, match=reason):
        unpacked(tmp_path, remote("zip"), zipped({"big": bytes(5000)}, declared))


@pytest.mark.parametrize("size", [4990, 5001])
def test_a_member_of_7z_that_is_not_as_large_as_it_says_is_damage(tmp_path: Path, size: int) -> None:
    content = sevened({"big": bytes(range(250)) * 20}, lambda header: announce(header, size))
    with pytest.raises(archives.DamagedArchiveError):
        unpacked(tmp_path, remote("7z"), content)


def test_no_member_of_a_7z_gets_more_bytes_than_were_counted(tmp_path: Path) -> None:
    """Whatever the library makes of the archive in the end."""
    place = PurePosixPath("big")
    for size in (4999, 5001):
        with io.BytesIO(sevened({"big": bytes(5000)})) as file, pytest.raises(EOFError, match=r"big|4,999 bytes"):
            sevenzip.extract(file, {"big": (place, size)}, lambda at: (tmp_path / at).open("wb"), lambda done: None)
        assert (tmp_path / "big").stat().st_size <= size


def test_a_link_in_a_7z_is_refused(tmp_path: Path) -> None:
    def link(header: Any) -> None:
        header.files_info.files[0]["attributes"] = (stat.S_IFLNK | 0o777) << 16 | 0x8000

    with pytest.raises(DataError, match="evil is a link or a device"):
        unpacked(tmp_path, remote("7z"), sevened({"evil": b"/etc/passwd"}, link))


def test_an_encrypted_7z_is_refused(tmp_path: Path) -> None:
    for hidden in (False, True):
        stream = io.BytesIO()
        with py7zr.SevenZipFile(stream, "w", password="secret", header_encryption=hidden) as file:
            file.writestr(b"x", "a")
        with pytest.raises(DataError, match=r"pack\.7z: is encrypted; nothing was unpacked"):
            unpacked(tmp_path / f"{hidden}", remote("7z"), stream.getvalue())


def test_a_7z_is_unpacked_wherever_the_process_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link of the user's that is named like a folder in the archive is not followed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "set").symlink_to(tmp_path / "outside")
    monkeypatch.chdir(tmp_path / "here")
    assert unpacked(tmp_path / "t", remote("7z", keep=("*.txt",)), packed("7z", TREE)).keys() == {
        "set/a.txt",
        "set/deep/b.txt",
    }
    assert list((tmp_path / "outside").iterdir()) == []


def test_without_py7zr_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py7zr", None)
    with pytest.raises(DataError, match=r"unpacks \.7z files; run: pip install 'sensorium\[downloads\]'"):
        unpacked(tmp_path, remote("7z"), b"")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"a": b"x"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="a is encrypted"):
        unpacked(tmp_path, remote("zip"), bytes(content))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 20, 200, -1, -9])
def test_a_torn_archive_is_damage(tmp_path: Path, kind: Kind, cut: int) -> None:
    noise = {f"{number}.txt": bytes((number * k * k) % 251 for k in range(5000)) for number in range(9)}
    whole = packed(kind, noise)
    assert unpacked(tmp_path / "whole", remote(kind), whole) == noise
    torn = whole[:cut] if cut else b"<html>no archive</html>"
    with pytest.raises(archives.DamagedArchiveError, match=r"archives/pack\.\w+: damaged \([^\n]+\)$"):
        unpacked(tmp_path / "torn", remote(kind), torn)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_damage(tmp_path: Path, kind: Kind) -> None:
    content = bytearray(packed(kind, {"a.txt": bytes(range(256)) * 40}))
    content[len(content) // 2 - 60] ^= 4
    with pytest.raises(archives.DamagedArchiveError):
        unpacked(tmp_path, remote(kind), bytes(content))


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_without_the_wanted_files_is_refused(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(DataError, match=r"pack\.\w+: holds no list\.txt, \*\.wav$"):
        unpacked(tmp_path, remote(kind, keep=("*.jpg", "list.txt", "*.wav")), packed(kind, TREE))
    with pytest.raises(DataError, match=r"holds no \*$"):
        unpacked(tmp_path / "empty", remote(kind), packed(kind, {}))


def laid(folder: Path, tree: Mapping[str, bytes]) -> Path:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_content_is_moved_beside_what_is_there(tmp_path: Path) -> None:
    root = laid(tmp_path / "root", {"set/mine.txt": b"mine", "c.jpg": b"three", "other": b"o"})
    source = laid(tmp_path / "new", TREE)
    archives.settle(source, root)
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == TREE | {"set/mine.txt": b"mine", "other": b"o"}


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        ({"c.jpg": b"mine"}, "c.jpg: "),
        ({"set": b"a file"}, "set: "),
        ({"c.jpg/mine": b""}, "c.jpg: "),
        ({"c.jpg": b"mine", "set/deep/b.txt": b"mine"}, "c.jpg and 1 more: "),
    ],
)
def test_nothing_is_overwritten_or_half_moved(tmp_path: Path, mine: dict[str, bytes], named: str) -> None:
    root = laid(tmp_path / "root", mine)
    source = laid(tmp_path / "new", TREE)
    with pytest.raises(DataError, match=f"{named}there already with other content; nothing is overwritten"):
        archives.settle(source, root)
    assert {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()} == mine


def test_a_dangling_link_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    root = laid(tmp_path / "root", {"x": b""})
    (root / "c.jpg").symlink_to(tmp_path / "unplugged")
    with pytest.raises(DataError, match=r"c\.jpg: there already"):
        archives.settle(laid(tmp_path / "new", TREE), root)
