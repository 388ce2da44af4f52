"""Large JSON files element by element: the same values and the same refusals as parse_json, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sensorium import reading

VALUE = {
    "info": {"images": [9]},
    "images": [{"id": 1}, {"id": [2, {"x": None}]}],
    "n": 1.5,
    "more": [1, -2.5e3, "ä]"],
    "e": [],
}


def put(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 1])
def test_any_cut_gives_the_same_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
) -> None:
    """Numbers, words and escapes that are cut by the end of what was read are read on."""
    monkeypatch.setattr(reading, "_PIECE", piece)
    path = put(tmp_path, f"\ufeff{json.dumps(VALUE, indent=indent)}\n")
    found = list(reading.json_lists(path, ("images", "more", "e")))
    assert found == [
        *(("images", n, value) for n, value in enumerate(VALUE["images"])),  # type: ignore[arg-type]
        *(("more", n, value) for n, value in enumerate(VALUE["more"])),  # type: ignore[arg-type]
    ]
    assert list(reading.json_lists(put(tmp_path, " [12, 345]"), ("",))) == [("", 0, 12), ("", 1, 345)]
    assert list(reading.json_lists(put(tmp_path, "{}"), ())) == []


REFUSED = [
    "",
    "7",
    '{"images": [1, 2',
    '{"images": [1 2]}',
    '{"images": [1,]}',
    '{"images": [{]}',
    '{"images": [1]} x',
    '{"images": [1], "images": [2]}',
    '{"images": [{"a": 1, "a": 2}]}',
    '{"images": [NaN]}',
    '{"images": ["\\ud800"]}',
    '{"images": ["\ud800"]}',
    '{"images": [' + "[" * 100 + "]" * 100 + "]}",
    '{"images": [' + "[" * 100_000 + "]" * 100_000 + "]}",
    "{images: []}",
    '{"images"',
]


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_json_is_refused_as_by_parse_json(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        list(reading.json_lists(path, ("images",)))
    assert "\n" not in str(caught.value)
    if text != "7":
        with pytest.raises(ValueError):  # noqa: PT011
            reading.parse_json(path.read_bytes())


@pytest.mark.parametrize(
    ("text", "wanted", "reason"),
    [
        ("[12]", "images", "the list 'images' is missing"),
        ('{"images": {}}', "images", "the list 'images' is missing"),
        ('{"images": []}', "", "expected a list"),
    ],
)
def test_a_list_that_is_missing_is_named(tmp_path: Path, text: str, wanted: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(reading.json_lists(put(tmp_path, text), (wanted,)))


def test_a_mistake_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PIECE", 1000)
    text = '{"images": [' + "1, " * 5000 + "]}"
    with pytest.raises(ValueError, match=f"at character {len(text) - 2:,}"):
        list(reading.json_lists(put(tmp_path, text), ("images",)))


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PIECE", 1 << 17)
    entries: list[Any] = [{"segmentation": [[1.25] * 100], "id": n} for n in range(4000)]
    path = put(tmp_path, json.dumps({"annotations": entries}))
    del entries
    assert path.stat().st_size > 2_400_000

    def peak() -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in reading.json_lists(path, ("annotations",))) == 4000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak() < 800_000


def test_one_endless_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PIECE", 1000)
    monkeypatch.setattr(reading, "_LARGEST_PIECE", 8000)
    assert len(list(reading.json_lists(put(tmp_path, json.dumps(["x" * 7000])), ("",)))) == 1
    with pytest.raises(ValueError, match="Unterminated string"):
        list(reading.json_lists(put(tmp_path, json.dumps(["x" * 70_000])), ("",)))
