"""Strict JSON, sealed documents, and files that are files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium import proof, reading

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aä\n\"[{€"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"}"), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(content=st.dictionaries(st.text(), JSON, max_size=4), indent=st.sampled_from([None, 1]))
def test_what_was_sealed_is_read_back_by_anybody(content: dict[str, Any], indent: int | None) -> None:
    content = {**content, "format": 3}
    content.pop("checksum", None)
    try:
        data = proof.seal(content, indent=indent)
    except UnicodeEncodeError:  # half a pair of surrogates is no text
        return
    assert proof.unseal(data, 3) == content
    whole = json.loads(data)
    assert len(whole.pop("checksum")) == 64
    assert whole == content


def test_every_change_of_every_byte_is_found() -> None:
    data = proof.seal({"format": 1, "name": "x", "values": [1, 2.5, None]})
    for place in range(len(data)):
        for other in (0, 10, 32, 48, data[place] ^ 1, data[place] ^ 32, 255):
            if other != data[place]:
                with pytest.raises(ValueError, match=r"."):
                    proof.unseal(data[:place] + bytes([other]) + data[place + 1 :], 1)
        with pytest.raises(ValueError, match=r"."):
            proof.unseal(data[:place], 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 1}', "key 'a' is given twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[Infinity]", "Infinity is no number"),
        (b"\xff", "utf-8"),
        (b"\xef\xbb\xbf1", "BOM"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "limit"),
        (b"", "Expecting value"),
        (b"1 2", "Extra data"),
    ],
)
def test_json_is_read_strictly(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        reading.parse_json(text)


def test_what_is_usual_is_read() -> None:
    deep: Any = 1
    for _ in range(reading.DEEPEST):
        deep = [deep]
    assert reading.parse_json(json.dumps(deep).encode()) == deep
    assert reading.parse_json(b'"' + b"[" * 1000 + b'"') == "[" * 1000
    assert reading.parse_json(json.dumps([[1]] * 200).encode()) == [[1]] * 200
    assert reading.parse_json(b"[Infinity, -Infinity]", infinite=True) == [float("inf"), float("-inf")]
    with pytest.raises(ValueError, match="NaN"):
        reading.parse_json(b"[NaN]", infinite=True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "directory"),
        (lambda path: os.mkfifo(path), "no plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "no plain file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: None, "No such file"),
    ],
)
def test_only_files_are_read(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match=reason):
        reading.read_bytes(tmp_path / "x")


def test_a_link_is_followed_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "x").symlink_to("real")
    assert reading.read_bytes(tmp_path / "x") == b"1"
    with pytest.raises(OSError, match="is a link"):
        reading.read_bytes(tmp_path / "x", follow=False)
