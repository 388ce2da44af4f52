"""Pictures by their addresses, from a server on this machine that does some things wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import history_trees
import pytest
from http_server import Fault, Page, Server, serve

from sensorium.data import links
from sensorium.data.transfer import Patience, Tally
from sensorium.errors import DataError

QUICK = Patience(attempts=2, pause=0.0, timeout=5.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as state:
        for number in range(4):
            state.pages[f"/{number}.jpg"] = Page(history_trees.picture(number))
        yield state


def fetched(server: Server, folder: Path, *names: str) -> tuple[Tally, list[tuple[int, int]]]:
    moved: list[tuple[int, int]] = []
    found = {name: f"{server.url}/{name}.jpg" for name in names}
    return links.fetch_pictures(found, folder, lambda done, total: moved.append((done, total)), QUICK), moved


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    tally, moved = fetched(server, tmp_path, "0", "1")
    assert (tally.fetched, tally.there) == (2, 0)
    assert moved == [(1, 2), (2, 2)]
    assert visible(tmp_path) == {"0.jpg", "1.jpg"}
    assert (tmp_path / "1.jpg").read_bytes() == history_trees.picture(1)
    server.asked.clear()
    tally, _ = fetched(server, tmp_path, "0", "1", "2")
    assert (tally.fetched, tally.there) == (1, 2)
    assert [path for path, *_ in server.asked] == ["/2.jpg"]


def test_dead_links_are_listed_and_left_alone(server: Server, tmp_path: Path) -> None:
    server.pages["/3.jpg"] = Page(b"<html>sold out</html>")
    tally, _ = fetched(server, tmp_path, "0", "gone", "3")
    assert (tally.fetched, tally.gone, tally.failed) == (1, 2, 0)
    assert visible(tmp_path) == {"0.jpg", links.GONE}
    listed = (tmp_path / links.GONE).read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["gone", "3"]
    assert "the server answers 404" in listed[0]
    assert "no picture came" in listed[1]
    with (tmp_path / links.GONE).open("a") as file:
        file.write("torn by a ki")
    server.asked.clear()
    tally, _ = fetched(server, tmp_path, "0", "gone", "3")
    assert (tally.there, tally.gone, server.asked) == (1, 2, [])
    assert "torn" not in (tmp_path / links.GONE).read_text()


def test_a_broken_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    """What fails for today is no dead link: the next call asks for the rest of it."""
    server.pages["/1.jpg"].faults += [Fault(cut=100), Fault(status=503)]
    tally, _ = fetched(server, tmp_path, "0", "1")
    assert (tally.fetched, tally.gone, tally.failed) == (1, 0, 1)
    assert "given up after 2 attempts" in tally.reason
    assert (tmp_path / ".links" / "1.jpg.part").stat().st_size == 100
    tally, _ = fetched(server, tmp_path, "0", "1")
    assert (tally.there, tally.fetched) == (1, 1)
    assert server.asked[-1][:2] == ("/1.jpg", "bytes=100-")
    assert (tmp_path / "1.jpg").read_bytes() == history_trees.picture(1)
    assert visible(tmp_path) == {"0.jpg", "1.jpg"}


def test_a_machine_that_is_refused_stops(tmp_path: Path, server: Server) -> None:
    names = [f"busy{number}" for number in range(60)]
    for name in names:
        server.pages[f"/{name}.jpg"] = Page(b"", faults=[Fault(status=503)] * 9)
    with pytest.raises(DataError, match=r"40 pictures in a row could not be fetched .*the server answers 503"):
        fetched(server, tmp_path, *names)
    assert not (tmp_path / links.GONE).exists()


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be the name of a picture"):
        links.fetch_pictures({name: "http://127.0.0.1/x.jpg"}, tmp_path, lambda done, total: None)


def test_what_is_no_address_is_a_dead_link(tmp_path: Path) -> None:
    tally = links.fetch_pictures({"a": "file:///etc/passwd", "b": ""}, tmp_path, lambda done, total: None)
    assert (tally.gone, tally.fetched) == (2, 0)
