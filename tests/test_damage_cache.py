"""Damage of what can be made again: the feature cache, its memo of hashes, the search index. None of it is believed."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wrecks import FLIPS, WRECKS, flipped

from sensorium import proof
from sensorium.data import search_index as index
from sensorium.data.feature_keys import ContentKeys
from sensorium.data.feature_shards import open_shard
from sensorium.data.feature_store import IDENTITY, MEMO
from sensorium.data.features import FeatureStore, FillOptions, cached
from sensorium.errors import CheckpointError, DataError, DiskError
from sensorium.parts.encoders import Encoded

OLD = 1_600_000_000_000_000_000  # a time long ago: the memo remembers only what has settled


class Colours:
    """The smallest encoder of pictures: its one token is the mean colour."""

    name, modality, width, pooled_width, has_vector, batch_size, max_seconds = "colours", "image", 3, 3, False, 4, None

    def __init__(self) -> None:
        self.identity = {"weights": "none", "width": 3, "pooled_width": 3, "has_vector": False, "modality": "image"}

    def prepare(self, sample: Any) -> np.ndarray:
        return np.asarray(sample, np.float32)

    def encode(self, prepared: Sequence[np.ndarray]) -> list[Encoded]:
        means = [picture.mean((0, 1)) for picture in prepared]
        return [Encoded(mean[None], mean) for mean in means]


ENCODER = Colours()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (2, 2), (number, 10 * number, 40 * number)).save(path)
        os.utime(path, ns=(OLD, OLD))
    return paths


@pytest.fixture
def root(pictures: list[Path], tmp_path: Path) -> Path:
    """A filled cache."""
    cached(ENCODER, pictures, tmp_path / "features", FillOptions(workers=1))
    return tmp_path / "features"


def colours(root: Path, pictures: list[Path]) -> tuple[list[list[float]], list[str]]:
    """The features that a new process finds or makes in the cache, and what it says."""
    said: list[str] = []
    store = cached(ENCODER, pictures, root, FillOptions(workers=1, say=said.append))
    return [store.get(key).pooled.tolist() for key in store.keys(pictures)], said


TRUTH = [[number, 10 * number, 40 * number] for number in range(4)]


def file_of(root: Path, kind: str) -> Path:
    folder = FeatureStore(root, ENCODER.identity).folder
    return {"shard": next(folder.glob("*.shard")), "identity": folder / IDENTITY, "memo": root / MEMO}[kind]


# ---------------------------------------------------------------- one byte


def test_each_flipped_byte_of_a_shard_is_said_and_its_entries_are_missing(root: Path, pictures: list[Path]) -> None:
    path = file_of(root, "shard")
    for place in flipped(path, FLIPS // 4, 1):
        said: list[str] = []
        store = FeatureStore(root, ENCODER.identity, say=said.append)
        keys = store.keys(pictures)
        assert store.missing(keys) == keys
        assert len(said) == 1, place
        assert f"{path}: damaged" in said[0]
    assert colours(root, pictures) == (TRUTH, [])
    next(flipped(path, 1, 1))
    found, said = colours(root, pictures)
    assert (found, len(said)) == (TRUTH, 1)  # encoded again
    assert colours(root, pictures) == (TRUTH, [])


def test_each_flipped_byte_of_an_identity_is_refused(root: Path, pictures: list[Path]) -> None:
    path = file_of(root, "identity")
    for place in flipped(path, FLIPS // 4, 2):
        with pytest.raises(DataError, match=r"identity\.json: damaged \(.*\); delete it, and it is written anew") as e:
            FeatureStore(root, ENCODER.identity)
        assert "\n" not in str(e.value), place
    before = path.read_bytes()
    path.unlink()
    assert colours(root, pictures) == (TRUTH, [])
    assert path.read_bytes() == before


def test_no_flipped_byte_of_the_memo_gives_a_file_another_key(root: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Most of the file is unused; what is used is proven row by row, or SQLite finds it."""
    memo, keys = file_of(root, "memo"), ContentKeys(None).keys(pictures)
    intact, said = memo.read_bytes(), []
    used = [row for row in range(len(intact)) if intact[row]]
    draws = np.random.default_rng(3)
    for place, other in zip(draws.choice(used, FLIPS // 10), draws.integers(1, 256, FLIPS // 10), strict=True):
        memo.write_bytes(intact[:place] + bytes([intact[place] ^ other]) + intact[place + 1 :])
        assert ContentKeys(memo, said.append).keys(pictures) == keys, place
        assert ContentKeys(memo, said.append).keys(pictures) == keys, place
        for path in memo.parent.glob(f"{MEMO}*"):
            path.unlink()
    assert len(said) > FLIPS // 30
    assert not any("\n" in line for line in said)
    assert all(f"{memo}: damaged (" in line for line in said)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """An index of three pictures, of which the last two are one."""
    item = {"text": None, "audio": None}
    items = [{**item, "id": str(number), "image": f"{number}.png"} for number in range(3)]
    table = {"digest": "d" * 64, "rows": {"image": [0, 1]}, "items": items}
    index.write(tmp_path / "index", table, {"image": np.eye(2, 3, dtype=np.float32)})
    return tmp_path / "index"


def look(folder: Path) -> tuple[index.Table, list[list[float]]]:
    table = index.read(folder, "d" * 64)
    return table, index.open_matrix(folder, table, "image").tolist()


@pytest.mark.parametrize("name", ["index.json", "image.npy"])
def test_each_flipped_byte_of_an_index_is_refused(built: Path, name: str) -> None:
    before = look(built)
    for place in flipped(built / name, FLIPS // 8, 4):
        with pytest.raises(CheckpointError, match=rf"{name}: damaged \(.*delete {built} to build") as caught:
            look(built)
        assert "\n" not in str(caught.value), place
    assert look(built) == before


# ---------------------------------------------------------------- whole files


KINDS = ("shard", "identity", "memo")


@pytest.mark.parametrize("wreck", [name for name in WRECKS if name not in ("deleted", "a link")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrecked_file_of_the_cache_is_never_believed(root: Path, pictures: list[Path], kind: str, wreck: str) -> None:
    path = file_of(root, kind)
    WRECKS[wreck](path)
    if kind == "identity":
        with pytest.raises(DataError, match=r"identity\.json: damaged"):
            colours(root, pictures)
        return
    if (kind, wreck) == ("shard", "a folder"):
        with pytest.raises(DiskError, match="Is a directory"):  # nobody knows what it holds: it stays
            colours(root, pictures)
        return
    found, said = colours(root, pictures)
    assert found == TRUTH
    if kind == "shard" or wreck in ("a folder", "a FIFO", "nowhere", "deep", "a list"):
        assert len(said) == 1
        assert str(path) in said[0]
        assert "\n" not in said[0]
    assert colours(root, pictures) == (TRUTH, [])


@pytest.mark.parametrize("wreck", ["deleted", "a link"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_gone_is_made_again_and_a_link_is_followed(
    root: Path, pictures: list[Path], kind: str, wreck: str
) -> None:
    WRECKS[wreck](file_of(root, kind))
    assert colours(root, pictures) == (TRUTH, [])
    assert file_of(root, kind).is_file()


def test_a_folder_named_like_a_shard_stays(root: Path, pictures: list[Path]) -> None:
    stranger = file_of(root, "shard").with_name("0" * 24 + ".shard")
    stranger.mkdir()
    (stranger / "note").write_text("not ours")
    found, said = colours(root, pictures)
    assert found == TRUTH
    assert said == [f"{stranger}: damaged, not a regular file; its entries will be encoded again"]
    assert (stranger / "note").exists()


def test_a_damaged_memo_is_set_aside_once(root: Path, pictures: list[Path]) -> None:
    memo = root / MEMO
    memo.write_bytes(b"no database at all " * 100)
    found, said = colours(root, pictures)
    assert found == TRUTH
    assert said == [f"{memo}: damaged (file is not a database); set aside as {MEMO}.1, files are hashed anew"]
    assert colours(root, pictures) == (TRUTH, [])


def test_a_busy_memo_is_not_a_damaged_one(root: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.01))
    with connect(root / MEMO, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        said: list[str] = []
        assert ContentKeys(root / MEMO, said.append).keys(pictures) == ContentKeys(None).keys(pictures)
        assert said == []
    other.close()
    assert [path.name for path in root.glob(f"{MEMO}*")] == [MEMO]


def test_a_name_that_is_no_text_and_a_time_beyond_all_numbers_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.bin")
    path.write_bytes(b"one")
    os.utime(path, ns=(OLD, 15_000_000_000_000_000_000))
    keys = ContentKeys(tmp_path / MEMO)
    assert keys.key(path) == hashlib.sha256(b"one").hexdigest()


# ---------------------------------------------------------------- the checksums are right


def reseal_shard(path: Path, change: Callable[[dict[str, Any]], object], index_bytes: bytes | None = None) -> None:
    """Change the head, or the index, of a shard, and compute its sha256 anew."""
    data = path.read_bytes()
    magic, head_size, index_size, _ = struct.unpack_from("<8sQQ32s", data)
    fixed = struct.calcsize("<8sQQ32s")
    head = json.loads(data[fixed : fixed + head_size])
    rest = data[fixed + head_size : fixed + head_size + index_size] if index_bytes is None else index_bytes
    body = data[-head["body"] :]
    change(head)
    written = json.dumps(head).encode()
    digest = hashlib.sha256(written + rest).digest()
    start = -(-(fixed + len(written) + len(rest)) // 64) * 64
    front = struct.pack("<8sQQ32s", magic, len(written), len(rest), digest) + written + rest
    path.write_bytes(front.ljust(start, b"\0") + body)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda head: head.update(entries=10**30), "contradicts its index"),
        (lambda head: head.update(entries=-1), "not that of a shard"),
        (lambda head: head.update(entries=True), "not that of a shard"),
        (lambda head: head.update(width=5), "contradicts its index"),
        (lambda head: head.update(width=6, pooled_width=0), "a shard of another encoder"),
        (lambda head: head.update(dtype="object"), "not that of a shard"),
        (lambda head: head.pop("sha256"), "not that of a shard"),
        (lambda head: head.update(sha256="0" * 64), "its sha256 is not the one noted"),
    ],
)
def test_a_forged_shard_is_said_and_encoded_again(
    root: Path, pictures: list[Path], change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    reseal_shard(file_of(root, "shard"), change)
    found, said = colours(root, pictures)
    assert found == TRUTH
    assert len(said) == 1
    assert reason in said[0]


def test_forged_numbers_of_tokens_are_found(root: Path) -> None:
    path = file_of(root, "shard")
    keys = b"".join(bytes.fromhex(key) for key in open_shard(path).keys)
    for counts in ([2**62, 2**62, 2**62, 2**62 + 4], [-1, 3, 1, 1], [1, 1, 1, 2]):  # the first overflow to 4
        reseal_shard(path, lambda head: None, keys + struct.pack("<4q", *counts))
        with pytest.raises(DataError, match="contradicts its index"):
            open_shard(path)
    reseal_shard(path, lambda head: None, keys + struct.pack("<4q", 1, 1, 1, 1))
    assert len(open_shard(path).keys) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.update(digest="e" * 64), "an index of other weights"),
        (lambda table: table.update(format=2), "format 2; this version reads format 1"),
        (lambda table: table["rows"].update(image=[0, 9]), "does not fit the table"),
        (lambda table: table["rows"].update(image=[0, -1]), "does not fit the table"),
        (lambda table: table["rows"].update(image=[0]), "does not fit the table"),
        (lambda table: table["files"].pop("image"), "its checksum differs"),
        (lambda table: table["items"][0].update(more="x"), "items are not ours"),
        (lambda table: table["items"][0].update(id=1), "not one of ours"),
        (lambda table: table.update(items=None), "not one of ours"),
    ],
)
def test_a_forged_index_is_refused(built: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    path = built / index.TABLE
    table = proof.unseal(path.read_bytes(), index.FORMAT)
    change(table)
    path.write_bytes(proof.seal(table))
    with pytest.raises(CheckpointError, match=reason):
        look(built)


@pytest.mark.parametrize("name", ["index.json", "image.npy"])
@pytest.mark.parametrize("wreck", [name for name in WRECKS if name != "a link"])
def test_a_wrecked_file_of_an_index_is_refused(built: Path, name: str, wreck: str) -> None:
    WRECKS[wreck](built / name)
    with pytest.raises(CheckpointError, match=rf"{name}: damaged"):
        look(built)
