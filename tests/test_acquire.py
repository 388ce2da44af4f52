"""A data set is there whole or it is said what is missing; a kill at any point costs nothing that was proved."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from http_server import Page, Server, publish, serve
from packs import zipped

from sensorium.data import acquire
from sensorium.data.acquire import Choices
from sensorium.data.catalog import Remote, Source
from sensorium.data.transfer import Patience, Watch
from sensorium.errors import DataError

QUICK = Choices(patience=Patience(attempts=2, pause=0.001, timeout=5))
NOISE = np.random.default_rng(0).bytes(400_000)
TREE = {"pictures/1.jpg": NOISE, "pictures/2.jpg": b"two", "list.txt": b"a list"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as state:
        yield state


def tree_of(root: Path) -> dict[str, bytes]:
    """What the user sees: all files but the manifest."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != acquire.MANIFEST)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@dataclass
class Person:
    """Asks for data sets in ``root``."""

    root: Path
    said: list[str] = field(default_factory=list)

    def get(self, *sources: Source, choices: Choices = QUICK) -> list[str]:
        watch = Watch(self.said.append, lambda what, done, total: None)
        return acquire.acquire(sources, self.root, choices, watch)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "data" / "toy")


@pytest.fixture
def toy(server: Server) -> Source:
    return Source("toy", "a toy", "CC0", (publish(server, Remote("pack.zip", "", "zip"), zipped(TREE)),))


def test_a_data_set_arrives_once(person: Person, toy: Source, server: Server) -> None:
    assert person.get(toy) == []
    assert tree_of(person.root) == TREE
    record = json.loads((person.root / acquire.MANIFEST).read_text())["files"]["pack.zip"]
    content = server.pages["/pack.zip"].body
    assert record.pop("date").endswith("+00:00")
    assert record == {
        "set": "toy",
        "url": f"{server.url}/pack.zip",
        "bytes": len(content),
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "proof": "md5 as published",
        "licence": "CC0",
        "content": {"list.txt": 6, "pictures/1.jpg": 400_000, "pictures/2.jpg": 3},
        "digests": {name: hashlib.sha256(data).hexdigest() for name, data in TREE.items()},
    }
    assert acquire.jobs([toy], person.root) == []
    before = {path: path.stat().st_mtime_ns for path in person.root.rglob("*") if path.is_file()}
    assert person.get(toy) == []
    assert {path: path.stat().st_mtime_ns for path in person.root.rglob("*") if path.is_file()} == before
    assert len(server.asked) == 1


def test_what_is_there_is_hashed_again_when_that_is_asked_for(person: Person, toy: Source, server: Server) -> None:
    person.get(toy)
    assert person.get(toy, choices=replace(QUICK, rehash=True)) == []
    (person.root / "pictures" / "2.jpg").write_bytes(b"owt")  # as large as before
    assert person.get(toy) == []
    problem = f"toy: {person.root / 'pictures' / '2.jpg'}: changed since it was downloaded; move it away, and the same"
    assert person.get(toy, choices=replace(QUICK, rehash=True))[0].startswith(problem)
    watch = Watch(person.said.append, lambda what, done, total: None)
    assert acquire.unchanged([toy], person.root, watch)[0].startswith(problem)
    (person.root / "pictures" / "2.jpg").unlink()
    assert acquire.unchanged([toy], person.root, watch) == ["toy: pack.zip is not there, or not as large as it was"]
    assert len(server.asked) == 1
    assert person.get(toy, choices=replace(QUICK, rehash=True)) == []
    assert acquire.unchanged([toy], person.root, watch) == []
    assert len(server.asked) == 2


def test_a_manifest_of_before_there_were_digests_still_counts(person: Person, toy: Source, server: Server) -> None:
    person.get(toy)
    path = person.root / acquire.MANIFEST
    content = json.loads(path.read_text())
    del content["files"]["pack.zip"]["digests"]
    path.write_text(json.dumps(content))
    assert person.get(toy, choices=replace(QUICK, rehash=True)) == []
    assert len(server.asked) == 1


def test_without_py7zr_nothing_comes(
    person: Person, toy: Source, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py7zr", None)
    seven = replace(toy, files=(*toy.files, Remote("pack.7z", f"{server.url}/pack.7z", "7z")))
    with pytest.raises(DataError, match=r"run: pip install 'sensorium\[downloads\]'"):
        person.get(seven)
    assert server.asked == []
    assert not person.root.exists()


def test_what_was_deleted_comes_back_and_the_rest_stays(person: Person, toy: Source) -> None:
    person.get(toy)
    (person.root / "pictures" / "1.jpg").unlink()
    (person.root / "pictures" / "mine.jpg.txt").write_bytes(b"mine")
    kept = (person.root / "pictures" / "2.jpg").stat().st_mtime_ns
    assert person.get(toy) == []
    assert person.get(toy) == []
    assert tree_of(person.root) == TREE | {"pictures/mine.jpg.txt": b"mine"}
    assert (person.root / "pictures" / "2.jpg").stat().st_mtime_ns == kept


def test_what_was_proved_may_move(person: Person, toy: Source) -> None:
    person.get(toy)
    moved = replace(toy.files[0], url="https://elsewhere/pack.zip")
    assert acquire.jobs([replace(toy, files=(moved,))], person.root) == []
    assert acquire.jobs([replace(toy, files=(replace(moved, md5=None),))], person.root) != []


def test_another_edition_is_not_taken_for_the_old_one(person: Person, toy: Source, server: Server) -> None:
    person.get(toy)
    newer = replace(toy, files=(publish(server, toy.files[0], zipped(TREE | {"list.txt": b"new"})),))
    assert len(acquire.jobs([newer], person.root)) == 1
    assert "list.txt: there already with other content; nothing is overwritten" in person.get(newer)[0]
    assert tree_of(person.root).keys() - TREE.keys() == {"archives/pack.zip", "archives/pack.zip.state"}
    (person.root / "list.txt").unlink()
    assert person.get(newer) == []
    assert tree_of(person.root) == TREE | {"list.txt": b"new"}
    assert len(server.asked) == 2


def test_archives_are_kept_on_request(person: Person, toy: Source, server: Server) -> None:
    choices = replace(QUICK, keep_archives=True)
    assert person.get(toy, choices=choices) == []
    assert tree_of(person.root) == TREE | {"archives/pack.zip": server.pages["/pack.zip"].body}


def test_copies_are_used_and_left_alone(person: Person, toy: Source, server: Server, tmp_path: Path) -> None:
    (tmp_path / "pack.zip").write_bytes(server.pages["/pack.zip"].body)
    choices = replace(QUICK, copies=tmp_path)
    assert person.get(toy, choices=choices) == []
    assert tree_of(person.root) == TREE
    assert (tmp_path / "pack.zip").exists()
    assert server.asked == []
    (tmp_path / "pack.zip").write_bytes(b"other")
    other = Person(tmp_path / "other")
    assert "is published" in other.get(toy, choices=choices)[0]
    assert not other.root.exists()


def test_a_file_that_is_no_archive_is_kept_as_it_is(person: Person, server: Server) -> None:
    remote = replace(publish(server, Remote("list.csv", "", "file", folder="lists"), b"a,b"), md5=None)
    assert person.get(Source("lists", "", "", (remote,))) == []
    assert tree_of(person.root) == {"lists/list.csv": b"a,b"}
    assert f"sha256 {hashlib.sha256(b'a,b').hexdigest()} recorded" in person.said[0]


def test_what_fails_is_said_at_the_end_and_the_rest_is_done(person: Person, toy: Source, server: Server) -> None:
    gone = Source("gone", "", "", (Remote("gone.zip", f"{server.url}/gone.zip", "zip"),))
    form = Source("form", "", "", manual="fill in the form")
    problems = person.get(gone, form, toy)
    assert problems == [
        f"gone: {server.url}/gone.zip: the server answers 404: it is not there; look at its publisher's page where it "
        "is now",
    ]
    assert tree_of(person.root) == TREE


def test_when_nothing_comes_nothing_is_left(person: Person, server: Server) -> None:
    person.get(Source("gone", "", "", (Remote("gone.zip", f"{server.url}/gone.zip", "zip"),)))
    assert not person.root.exists()


@pytest.mark.parametrize("published", [True, False])
def test_a_damaged_archive_is_fetched_again_only_if_that_may_help(
    person: Person, toy: Source, server: Server, published: bool
) -> None:
    remote = publish(server, toy.files[0], b"<html>come back later</html>")
    source = replace(toy, files=(remote if published else replace(remote, md5=None),))
    assert "damaged (File is not a zip file)" in person.get(source)[0]
    assert tree_of(person.root).keys() & {"archives/pack.zip", "archives/pack.zip.bad"} == {
        "archives/pack.zip" if published else "archives/pack.zip.bad"
    }
    server.pages["/pack.zip"] = Page(zipped(TREE))
    assert (person.get(source) == []) is not published
    assert len(server.asked) == 2 - published


def test_a_hostile_archive_leaves_nothing_but_itself(person: Person, toy: Source, server: Server) -> None:
    remote = publish(server, toy.files[0], zipped({"good.txt": b"", "../../evil.txt": b""}))
    assert "would leave the folder; nothing was unpacked" in person.get(replace(toy, files=(remote,)))[0]
    assert tree_of(person.root.parent.parent).keys() == {
        f"data/toy/archives/pack.zip{suffix}" for suffix in ("", ".state")
    }


def test_the_disk_is_checked_before_the_first_byte(person: Person, toy: Source, server: Server) -> None:
    large = replace(toy, files=(replace(toy.files[0], unpacked=10**18),))
    with pytest.raises(
        DataError, match=r"1,000,000,000,000,\d+,\d+ bytes are needed, [\d,]+ are free; nothing was down"
    ):
        person.get(large)
    assert server.asked == []
    assert not person.root.exists()


def test_the_space_that_is_needed(tmp_path: Path) -> None:
    pack = Remote("a.zip", "", "zip", 100, unpacked=300)
    source = Source("x", "", "", (pack, replace(pack, name="b.zip"), Remote("c", "", "file", 50)))
    todo = acquire.jobs([source], tmp_path)
    assert acquire.needed_space(todo, tmp_path, Choices()) == 300 + 400
    assert acquire.needed_space(todo, tmp_path, Choices(keep_archives=True)) == 400 + 400 + 50
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "b.zip.part").write_bytes(bytes(60))
    assert acquire.needed_space(todo, tmp_path, Choices()) == 300 + 300 + 50
    assert acquire.needed_space(todo, tmp_path, Choices(copies=tmp_path / "archives")) == 300 + 300 + 50


def test_two_downloads_do_not_meet_in_one_folder(person: Person, toy: Source) -> None:
    person.root.mkdir(parents=True)
    with (person.root / acquire.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another download is going on there"):
            person.get(toy)
    assert person.get(toy) == []


@pytest.mark.parametrize("text", ["{", '{"format": 2}', '{"format": 1, "files": {"pack.zip": {"url": ""}}}', "[]"])
def test_a_damaged_manifest_is_named(person: Person, toy: Source, text: str) -> None:
    person.root.mkdir(parents=True)
    (person.root / acquire.MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"\.sensorium-download\.json: damaged .*; remove it"):
        person.get(toy)


KILLED = """
import os, sys, time
from pathlib import Path
from sensorium.data import acquire
from sensorium.data.catalog import Remote, Source
from sensorium.data.transfer import Watch

url, md5, root, point = sys.argv[1:]
def stop(*_):
    print("here", flush=True)
    time.sleep(60)
def move(what, done, total):
    if what == point:
        stop()
if point == "settled":
    os.sync = stop
elif point == "recorded":
    acquire._tidy = stop
elif point == "settling":
    rename = acquire.archives.rename
    acquire.archives.rename = lambda *paths: (rename(*paths), stop())
source = Source("toy", "a toy", "CC0", (Remote("pack.zip", url, "zip", md5=md5),))
acquire.acquire([source], Path(root), acquire.Choices(), Watch(print, move))
"""


@pytest.mark.parametrize("point", ["pack.zip", "check pack.zip", "unpack pack.zip", "settling", "settled", "recorded"])
def test_a_killed_download_goes_on(person: Person, toy: Source, server: Server, point: str) -> None:
    remote = toy.files[0]
    command = [sys.executable, "-c", KILLED, remote.url, str(remote.md5), str(person.root), point]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "here\n" for line in process.stdout)
        process.kill()
    left = {path.name for path in person.root.iterdir()}
    assert left >= {acquire.LOCK, "archives"}.union([".unpack-pack.zip"] if "unpack" in point else [])
    assert (acquire.MANIFEST in left) == (point == "recorded")
    assert person.get(toy) == []
    assert tree_of(person.root) == TREE
    assert acquire.jobs([toy], person.root) == []
    ranges = [wanted for _, wanted, _ in server.asked]
    if point == "pack.zip":
        assert 0 < int(ranges.pop().removeprefix("bytes=").removesuffix("-")) < len(server.pages["/pack.zip"].body)
    assert ranges == [""]
