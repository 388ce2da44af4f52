"""A web server on this machine that does everything wrong on request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sensorium.data.catalog import Remote


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer.

    ``cut``: bytes of the body after which the connection breaks; ``hold``: instead it is left silent until this is set;
    ``declare``: a false Content-Length; ``trail``: bytes after the end.
    """

    status: int = 0
    cut: int | None = None
    hold: threading.Event | None = None
    declare: int | None = None
    trail: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Page:
    """A file on the server. ``faults`` are used up, one a request; then all is well."""

    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"first"'})
    ranges: bool = True
    length: bool = True
    chunked: bool = False
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Server:
    """``asked``: path, Range and If-Range of every request so far."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        wanted, condition = self.headers.get("Range", ""), self.headers.get("If-Range", "")
        self.state.asked.append((self.path, wanted, condition))
        self.close_connection = True
        page = self.state.pages.get(self.path)
        if page is None:
            self._empty(404, {})
            return
        fault = page.faults.pop(0) if page.faults else Fault()
        if fault.status:
            self._empty(fault.status, dict(fault.headers))
            return
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", wanted)
        if match and page.ranges and condition in ("", *page.headers.values()):
            start = int(match[1])
        if start >= len(page.body) and start:
            self._empty(416, {"Content-Range": f"bytes */{len(page.body)}"})
            return
        self._body(page, fault, start)

    def _body(self, page: Page, fault: Fault, start: int) -> None:
        body = page.body[start:]
        headers = dict(page.headers)
        if page.chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif page.length or fault.declare is not None:
            headers["Content-Length"] = str(len(body) if fault.declare is None else fault.declare)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"
        self._head(206 if start else 200, headers | dict(fault.headers))
        self.wfile.write(body[: fault.cut] + fault.trail)
        self.wfile.flush()
        if fault.hold:
            fault.hold.wait(20)

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self._head(status, {"Content-Length": "0", **headers})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side hung up: that is what the tests are about."""


@contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port, in threads of this process."""
    handler = type("Handler", (_Handler,), {})
    with _Quiet(("127.0.0.1", 0), handler) as server:
        state = Server(f"http://127.0.0.1:{server.server_port}")
        handler.state = state  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def publish(server: Server, remote: Remote, content: bytes) -> Remote:
    """``remote`` as this server has it, with its true size and checksum."""
    server.pages[f"/{remote.name}"] = Page(content)
    url, md5 = f"{server.url}/{remote.name}", hashlib.md5(content).hexdigest()
    return replace(remote, url=url, md5=md5, size=len(content), unpacked=None)
