"""A download ends with the right bytes or with one clear line, whatever server and connection do."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from http_server import Fault, Page, Server, serve

from sensorium.data import transfer
from sensorium.data.catalog import Remote
from sensorium.data.transfer import BLOCK, Patience, Watch
from sensorium.errors import DataError, DiskError

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()
PLAIN = Remote("data.bin", "/data.bin", "file")
PROVED = replace(PLAIN, md5=MD5)
QUICK = Patience(attempts=4, pause=0.001, timeout=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as state:
        yield state


@dataclass
class Client:
    """Fetches the page ``/data.bin`` into ``folder``."""

    folder: Path
    server: Server
    said: list[str] = field(default_factory=list)
    moved: list[tuple[str, int, int | None]] = field(default_factory=list)

    def fetch(self, remote: Remote = PLAIN, patience: Patience = QUICK) -> bytes:
        """The content of the page that ``remote`` names by its path."""
        watch = Watch(self.said.append, lambda *step: self.moved.append(step))
        located = replace(remote, url=self.server.url + remote.url)
        found, digest = transfer.fetch(located, self.folder, patience, watch)
        content = found.read_bytes()
        assert digest == transfer.Digest(
            len(content), hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
        )
        return content

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def ranges(self) -> list[str]:
        return [wanted for _, wanted, _ in self.server.asked]


@pytest.fixture
def client(tmp_path: Path, server: Server) -> Client:
    (tmp_path / "archives").mkdir()
    return Client(tmp_path / "archives", server)


def test_a_good_server_is_asked_once(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY)
    assert client.fetch(replace(PROVED, size=len(BODY), exact=True, sha256=SHA256)) == BODY
    assert client.files() == ["data.bin", "data.bin.state"]
    assert client.said == ["data.bin: md5 and sha256 as published"]
    assert ("data.bin", len(BODY), len(BODY)) in client.moved
    assert client.fetch(PROVED) == BODY
    assert len(client.server.asked) == 1


def test_a_checksum_that_nobody_published_is_recorded_and_held_against_the_file(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY)
    client.fetch()
    assert client.said == [f"data.bin: checksum: none published; sha256 {SHA256} recorded"]
    (client.folder / "data.bin").write_bytes(BODY[:-1])
    assert client.fetch() == BODY
    assert "it is downloaded again" in client.said[1]


@pytest.mark.parametrize("remote", [PLAIN, PROVED])
def test_a_broken_connection_is_taken_up_where_it_broke(client: Client, remote: Remote) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(cut=1000), Fault(cut=200_000)])
    assert client.fetch(remote) == BODY
    assert client.ranges() == ["", "bytes=1000-", "bytes=201000-"]
    assert client.server.asked[1][2] == '"first"'
    assert client.said[0] == "data.bin: the connection ended after 1,000 of 300,000 bytes; trying again in 0 s"


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(cut=1000), *[Fault(cut=0)] * 3])
    with pytest.raises(DataError, match=r"of 300,000 bytes; given up after 4 attempts\. What came is kept"):
        client.fetch()
    assert client.files() == ["data.bin.part", "data.bin.state"]
    assert client.fetch() == BODY
    assert client.ranges()[-1] == "bytes=1000-"


def test_progress_is_no_failure(client: Client) -> None:
    """Ten breaks are more than four attempts, but each brought a megabyte."""
    body = random.Random(2).randbytes(11 * BLOCK)
    client.server.pages["/data.bin"] = Page(body, faults=[Fault(cut=BLOCK)] * 10)
    assert client.fetch() == body
    assert len(client.server.asked) == 11


def test_starting_again_for_ever_is_no_progress(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY * 8, ranges=False, faults=[Fault(cut=2 * BLOCK), Fault(cut=0)] * 10)
    with pytest.raises(DataError, match="given up after 4 attempts"):
        client.fetch()
    assert len(client.server.asked) == 4


def test_a_silent_connection_is_given_up(client: Client) -> None:
    hold = threading.Event()
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(cut=500, hold=hold)])
    assert client.fetch(patience=Patience(4, 0.001, timeout=0.2)) == BODY
    hold.set()
    assert client.ranges() == ["", "bytes=500-"]
    assert "timed out" in client.said[0]


def test_a_whole_body_needs_no_closed_connection(client: Client) -> None:
    hold = threading.Event()
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(hold=hold)])
    assert client.fetch(patience=Patience(4, 0.001, timeout=0.2)) == BODY
    hold.set()
    assert len(client.server.asked) == 1


def test_a_server_that_ignores_ranges_sends_all_again(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, ranges=False, faults=[Fault(cut=1000)])
    assert client.fetch() == BODY
    assert client.ranges() == ["", "bytes=1000-"]


def test_content_that_changed_between_two_requests_is_not_mixed(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(cut=1000)])
    with pytest.raises(DataError, match="given up"):
        client.fetch(patience=Patience(1))
    client.server.pages["/data.bin"] = Page(OTHER, {"ETag": '"second"'})
    assert client.fetch() == OTHER


@pytest.mark.parametrize(
    "lie", [{"ETag": '"second"'}, {"Content-Range": "bytes 7-9/10"}, {"Content-Range": "nonsense"}]
)
def test_a_range_that_does_not_fit_is_thrown_away(client: Client, lie: dict[str, str]) -> None:
    faults = [Fault(cut=1000), Fault(headers=tuple(lie.items()))]
    client.server.pages["/data.bin"] = Page(BODY, faults=faults)
    assert client.fetch() == BODY
    assert client.ranges() == ["", "bytes=1000-", ""]
    assert "the file on the server has changed" in client.said[1]


def test_without_version_and_checksum_nothing_is_taken_up(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, {"ETag": 'W/"weak"'}, faults=[Fault(cut=1000)])
    assert client.fetch() == BODY
    assert client.ranges() == ["", ""]


def test_the_date_serves_where_there_is_no_tag(client: Client) -> None:
    date = "Wed, 01 Jan 2020 00:00:00 GMT"
    client.server.pages["/data.bin"] = Page(BODY, {"Last-Modified": date}, faults=[Fault(cut=1000)])
    assert client.fetch() == BODY
    assert client.server.asked[1] == ("/data.bin", "bytes=1000-", date)


def test_a_body_of_unknown_length_ends_with_the_connection(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, length=False)
    assert client.fetch(PROVED) == BODY
    client.server.pages["/data.bin"] = Page(BODY, length=False, faults=[Fault(cut=9)])
    (client.folder / "data.bin").unlink()
    with pytest.raises(DataError, match=f"the md5 is .*, {MD5} is published; set aside as"):
        client.fetch(PROVED)


def test_a_body_in_chunks_is_taken_up_too(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, chunked=True, faults=[Fault(cut=200_000), Fault(cut=50_000)])
    assert client.fetch() == BODY
    assert len(client.server.asked) == 3
    assert client.ranges()[1].startswith("bytes=199")  # less the frame of the chunk


def test_a_body_longer_than_declared_is_refused(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(declare=len(BODY), trail=b"!")])
    with pytest.raises(DataError, match="sent more than the 300,000 bytes that it declared"):
        client.fetch()
    assert client.files() == []


def test_a_declared_length_that_never_comes_is_given_up(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, ranges=False, faults=[Fault(declare=400_000)] * 9)
    with pytest.raises(DataError, match=r"ended after 300,000 of 400,000 bytes; given up"):
        client.fetch()


def test_another_size_than_the_published_one_is_refused_before_the_first_byte(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY)
    with pytest.raises(DataError, match="offers 300,000 bytes, 5 are published"):
        client.fetch(replace(PLAIN, size=5, exact=True))
    assert client.files() == []


def test_a_file_larger_than_the_disk_is_refused_before_the_first_byte(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(declare=10**18)])
    with pytest.raises(DiskError, match=r"data\.bin needs 1,000,000,000,000,000,000 bytes in"):
        client.fetch()
    assert "data.bin.part" not in client.files()


def test_wrong_bytes_never_get_the_final_name(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(OTHER)
    with pytest.raises(DataError, match=f"the md5 is .*, {MD5} is published; set aside as .*data.bin.bad") as caught:
        client.fetch(PROVED)
    assert "\n" not in str(caught.value)
    assert client.files() == ["data.bin.bad"]
    client.server.pages["/data.bin"] = Page(BODY)
    assert client.fetch(PROVED) == BODY


def test_a_file_laid_there_by_hand_is_used_and_a_wrong_one_is_left_alone(client: Client) -> None:
    path = client.folder / "data.bin"
    path.write_bytes(BODY)
    assert client.fetch(PROVED) == BODY
    path.write_bytes(OTHER)
    with pytest.raises(DataError, match=f"{MD5} is published; remove it"):
        client.fetch(PROVED)
    assert path.read_bytes() == OTHER
    assert client.server.asked == []


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_server_in_trouble_is_asked_again(client: Client, status: int) -> None:
    faults = [Fault(status), Fault(status, headers=(("Retry-After", "0"),))]
    client.server.pages["/data.bin"] = Page(BODY, faults=faults)
    assert client.fetch() == BODY
    assert client.said[0] == f"data.bin: the server answers {status}; trying again in 0 s"


def test_the_server_says_how_long_to_wait(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    after = (("Retry-After", "7"),)
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(503, headers=after), Fault(503), Fault(503)])
    client.fetch(patience=Patience(4, pause=1))
    assert [pause for pause in pauses if pause >= 1] == [7, 2, 4]


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "it is not there"), (403, "it is forbidden"), (410, "it is gone")]
)
def test_what_is_gone_is_asked_for_once(client: Client, status: int, reason: str) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(status)])
    with pytest.raises(DataError, match=f"data.bin: the server answers {status}: {reason}"):
        client.fetch()
    assert len(client.server.asked) == 1
    assert client.files() == []


def test_nobody_listens(client: Client) -> None:
    with pytest.raises(DataError, match=r"no connection \(Connection refused\); given up after 2 attempts"):
        transfer.fetch(
            Remote("x", "http://127.0.0.1:9/x", "file"), client.folder, Patience(2, 0.001), Watch(print, print)
        )


def test_redirects_are_followed_but_not_out_of_the_web(client: Client) -> None:
    client.server.pages["/data.bin"] = Page(BODY, faults=[Fault(cut=1000)])
    client.server.pages["/old"] = Page(b"", faults=[Fault(302, headers=(("Location", "/data.bin"),))] * 2)
    assert client.fetch(replace(PLAIN, url="/old")) == BODY
    assert client.server.asked[3] == ("/data.bin", "bytes=1000-", '"first"')
    client.server.pages["/evil"] = Page(b"", faults=[Fault(302, headers=(("Location", "file:///etc/passwd"),))])
    with pytest.raises(DataError, match="is not allowed"):
        client.fetch(replace(PLAIN, url="/evil", md5="0"))


def test_a_whole_part_is_not_asked_for_again(client: Client) -> None:
    """Killed after the last byte, before the check; then the same where the length was not known."""
    client.server.pages["/data.bin"] = Page(BODY)
    client.fetch()
    (client.folder / "data.bin").rename(client.folder / "data.bin.part")
    assert client.fetch() == BODY
    assert client.ranges() == [""]
    (client.folder / "data.bin").rename(client.folder / "data.bin.part")
    state = json.loads((client.folder / "data.bin.state").read_text())
    (client.folder / "data.bin.state").write_text(json.dumps(state | {"total": None}))
    assert client.fetch() == BODY
    assert client.ranges() == ["", "bytes=300000-"]


@pytest.mark.parametrize("state", ["", "{}", "[1]", '{"url": "elsewhere"}', None])
def test_a_part_of_unknown_origin_is_not_continued(client: Client, state: str | None) -> None:
    client.server.pages["/data.bin"] = Page(BODY)
    (client.folder / "data.bin.part").write_bytes(b"stranger")
    if state is not None:
        (client.folder / "data.bin.state").write_text(state)
    assert client.fetch(PROVED) == BODY
    assert client.ranges() == [""]
