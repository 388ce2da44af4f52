"""One file over HTTP, whatever the connection does: to ``NAME.part``, resumed, counted, proved, renamed.

::

    NAME.part    what has come            NAME.state   where from, which version of it, and its sha256 once it is proved
    NAME         whole and proved         NAME.bad     the last one whose checksum was wrong
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from sensorium.data.catalog import Remote
from sensorium.errors import DataError
from sensorium.files import open_file, remove, rename, require_space, sync, told, write_json

BLOCK = 1 << 20
_LONGEST_PAUSE = 60.0  # seconds
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_PASSING = (408, 425, 429)  # timed out, too early, too many requests: asked again, as is every 5xx


@dataclass(frozen=True)
class Patience:
    """``attempts`` in a row that bring less than ``BLOCK`` bytes each; ``pause`` before the second one, doubled for
    each further one; ``timeout`` of a silent connection. Seconds."""

    attempts: int = 6
    pause: float = 1.0
    timeout: float = 30.0


@dataclass(frozen=True)
class Watch:
    """Who is told: ``say`` a line, ``move(what, bytes done, bytes in all or None)``."""

    say: Callable[[str], None]
    move: Callable[[str, int, int | None], None]


@dataclass
class Tally:
    """What became of many that were asked for, of which some may be gone for ever. ``what`` they are; ``record``: the
    file that names those that are gone."""

    what: str
    record: str
    asked: int = 0
    there: int = 0
    fetched: int = 0
    gone: int = 0
    failed: int = 0
    reason: str = ""  # of the last failure

    @property
    def line(self) -> str:
        said = f"; last: {self.reason}" if self.reason else ""
        return (
            f"{self.what}: of {self.asked:,} {self.there:,} were there, {self.fetched:,} came, {self.gone:,} are gone "
            f"for ever ({self.record}), {self.failed:,} failed{said}"
        )


@dataclass(frozen=True)
class Digest:
    """What the bytes of a file are."""

    bytes: int
    md5: str
    sha256: str


@dataclass(frozen=True)
class _State:
    """``validator``: the ETag or date by which the server tells versions apart; ``total``: bytes of the whole."""

    url: str = ""
    validator: str = ""
    total: int | None = None
    sha256: str = ""


class _BrokenError(Exception):
    """It may work the next time. ``after``: seconds for which the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def fetch(remote: Remote, folder: Path, patience: Patience, watch: Watch) -> tuple[Path, Digest]:
    """``folder / remote.name``, whole and proved; nothing is fetched that is there already.

    A file without a published checksum is taken at its length, and from then on at the sha256 that it had. Raises
    DataError: the file is gone or refused, the server cannot be reached any more, the bytes are not the published ones
    (they are set aside as ``NAME.bad``), or the disk is full. What came of an unfinished file stays for the next call.
    """
    path = folder / remote.name
    if path.exists():
        digest = hash_file(path, watch)
        state = _read_state(path)
        if not (problem := _mismatch(remote, digest, state.sha256)):
            watch.say(f"{remote.name}: downloaded before; {statement(remote, digest)}")
            return path, digest
        if state == _State():  # not ours: somebody laid it there
            raise DataError(f"{path}: {problem}; remove it, and it is downloaded")
        watch.say(f"{path}: {problem}; it is downloaded again")
        set_aside(path, path)
    part = path.with_name(f"{path.name}.part")
    _download(remote, path, patience, watch)
    digest = hash_file(part, watch)
    if problem := _mismatch(remote, digest, ""):
        raise DataError(f"{remote.url}: {problem}; set aside as {set_aside(part, path)}, nothing else was kept")
    state = _read_state(path)
    write_json(state_file(path), asdict(_State(state.url, state.validator, digest.bytes, digest.sha256)))
    rename(part, path)
    watch.say(f"{remote.name}: {statement(remote, digest)}")
    return path, digest


def statement(remote: Remote, digest: Digest) -> str:
    """What proves a file."""
    published = [name for name, value in (("md5", remote.md5), ("sha256", remote.sha256)) if value]
    if published:
        return f"{' and '.join(published)} as published"
    return f"checksum: none published; sha256 {digest.sha256} recorded"


def set_aside(found: Path, path: Path) -> Path:
    """Call ``found``, which should have been ``path``, ``NAME.bad``, and forget where it came from."""
    bad = path.with_name(f"{path.name}.bad")
    rename(found, bad)
    remove(state_file(path))
    return bad


def check_copy(remote: Remote, path: Path, watch: Watch) -> Digest:
    """Prove a file that somebody else brought. Raises DataError when it is not the published one."""
    digest = hash_file(path, watch)
    if problem := _mismatch(remote, digest, ""):
        raise DataError(f"{path}: {problem}")
    watch.say(f"{path}: {statement(remote, digest)}")
    return digest


def hash_file(path: Path, watch: Watch) -> Digest:
    """Read a file once. Raises DataError when it cannot be read."""
    md5, sha256, done = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                md5.update(block)
                sha256.update(block)
                done += len(block)
                watch.move(f"check {path.name.removesuffix('.part')}", done, total)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Digest(done, md5.hexdigest(), sha256.hexdigest())


def _mismatch(remote: Remote, digest: Digest, recorded: str) -> str:
    """How a file differs from what was published or recorded; empty when it does not."""
    if remote.exact and remote.size != digest.bytes:
        return f"has {digest.bytes:,} bytes, {remote.size:,} are published"
    for name, found, wanted in (("md5", digest.md5, remote.md5), ("sha256", digest.sha256, remote.sha256)):
        if wanted and found != wanted:
            return f"the {name} is {found}, {wanted} is published"
    if recorded and digest.sha256 != recorded:
        return f"the sha256 is {digest.sha256}, {recorded} was downloaded"
    return ""


def _download(remote: Remote, path: Path, patience: Patience, watch: Watch) -> None:
    """Ask for what is missing of ``NAME.part`` until it is whole."""
    part = path.with_name(f"{path.name}.part")
    failures, reached = 0, _size(part)
    while True:
        try:
            _attempt(remote, path, patience.timeout, watch)
            return
        except _BrokenError as broken:
            failures = 1 if _size(part) >= reached + BLOCK else failures + 1
            reached = max(reached, _size(part))  # never less, so that starting again for ever is no progress
            if failures >= patience.attempts:
                raise DataError(
                    f"{remote.url}: {broken}; given up after {failures} attempts. What came is kept: the same command "
                    "continues there"
                ) from None
            pause = min(max(patience.pause * 2 ** (failures - 1), broken.after), _LONGEST_PAUSE)
            watch.say(f"{remote.name}: {broken}; trying again in {pause:.0f} s")
        time.sleep(pause)


def _attempt(remote: Remote, path: Path, timeout: float, watch: Watch) -> None:
    """One request. Returns when the file is whole; raises _BrokenError or DataError."""
    part = path.with_name(f"{path.name}.part")
    state, start = _read_state(path), _size(part)
    published = remote.md5 or remote.sha256
    if state.url != remote.url or not (state.validator or state.sha256 or published) or (state.total or start) < start:
        start = 0  # nothing would show that the two halves belong together
    if start and start == state.total:
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and state.validator:
        headers["If-Range"] = state.validator
    try:
        response = _open(remote.url, headers, timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if _range(error.headers)[1] == start:  # it came whole, the length had not been known
                    return
                _forget(path)
                raise _BrokenError("the file on the server has changed") from None
            raise _refusal(remote.url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _no_connection(remote.url, error) from None
    with response:
        _receive(remote, path, response, start, watch)


def _open(url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    """Redirects are followed, proxies of the environment are used; only http and https are spoken."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    agent = {"User-Agent": "sensorium", "Accept-Encoding": "identity"}
    return cast(
        http.client.HTTPResponse, opener.open(urllib.request.Request(url, headers=agent | headers), timeout=timeout)
    )


def _refusal(url: str, error: urllib.error.HTTPError) -> _BrokenError | DataError:
    if error.code >= 500 or error.code in _PASSING:
        after = error.headers.get("Retry-After", "")
        return _BrokenError(f"the server answers {error.code}", float(after) if after.isdecimal() else 0.0)
    why = {401: "it wants a login", 403: "it is forbidden", 404: "it is not there", 410: "it is gone for good"}
    reason = why.get(error.code, str(error.reason))
    return DataError(f"{url}: the server answers {error.code}: {reason}; look at its publisher's page where it is now")


def _no_connection(url: str, error: OSError | http.client.HTTPException) -> _BrokenError | DataError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(f"{url}: the server's certificate is not good ({reason.verify_message})")
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return _BrokenError(f"no connection ({text or type(reason).__name__})")


def _receive(remote: Remote, path: Path, response: http.client.HTTPResponse, start: int, watch: Watch) -> None:
    """Append the body, or begin anew with it where the server sent the whole file."""
    declared = None if response.chunked else response.length
    validator = _validator(response)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        first, total = _range(response.headers)
        state = _read_state(path)
        validator = validator or state.validator  # it need not be said again
        whole = total is None or declared is None or start + declared == total
        if first != start or not whole or validator != state.validator or state.total not in (None, total):
            _forget(path)
            raise _BrokenError("the file on the server has changed")
    elif response.status == http.HTTPStatus.OK:
        start, total = 0, declared
        _forget(path)
    else:
        raise DataError(f"{remote.url}: the server answers {response.status}, which is no file")
    if total is None and declared is not None:
        total = start + declared
    if remote.exact and total is not None and total != remote.size:
        raise DataError(f"{remote.url}: the server offers {total:,} bytes, {remote.size:,} are published")
    require_space(path.parent, (total or 0) - start, remote.name)
    write_json(state_file(path), asdict(_State(remote.url, validator, total)))
    response.length = None  # read to the true end: a body longer than declared would be cut without a word
    part = path.with_name(f"{path.name}.part")
    with told(part):
        with open_file(part, "ab") as file:
            _copy(remote.name, response, file, start, total, watch)
        sync(part)
    if total is not None and _size(part) > total:
        _forget(path)
        raise DataError(f"{remote.url}: the server sent more than the {total:,} bytes that it declared")


def _copy(name: str, response: http.client.HTTPResponse, file: Any, start: int, end: int | None, watch: Watch) -> None:
    """Write the body as it comes. Raises _BrokenError when it ends before ``end``."""
    done = start
    while end is None or done <= end:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            if done == end:  # whole; only the connection was not closed
                return
            raise _BrokenError(f"the connection broke after {done:,} bytes ({error or type(error).__name__})") from None
        if not block:
            break
        file.write(block)
        done += len(block)
        watch.move(name, done, end)
    if end is not None and done < end:
        raise _BrokenError(f"the connection ended after {done:,} of {end:,} bytes")


def _validator(response: http.client.HTTPResponse) -> str:
    """A strong ETag, else the date; a weak ETag does not vouch for single bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _range(headers: Any) -> tuple[int | None, int | None]:
    """First byte and size of the whole file, as far as ``Content-Range`` says them."""
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    first, total = found.groups() if found else (None, None)
    return (int(first) if first else None), (int(total) if total and total != "*" else None)


def state_file(path: Path) -> Path:
    """Where it is written what is known of a download."""
    return path.with_name(f"{path.name}.state")


def _read_state(path: Path) -> _State:
    """What is known of ``NAME.part``; nothing when the file is missing or not ours."""
    try:
        return _State(**json.loads(state_file(path).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return _State()


def _forget(path: Path) -> None:
    remove(path.with_name(f"{path.name}.part"))
    remove(state_file(path))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
