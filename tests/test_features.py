"""The feature cache: every entry by content, whole or not at all, whoever fills it and however it is interrupted."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from disks import Failing, on
from PIL import Image

from sensorium import proof
from sensorium.data.feature_keys import ContentKeys
from sensorium.data.feature_shards import Entry, open_shard, write_shard
from sensorium.data.features import (
    FeatureStore,
    FillOptions,
    LiveFeatures,
    cache_info,
    cached,
    clear,
    default_root,
)
from sensorium.errors import DataError, DiskError
from sensorium.files import TEMPORARY, disk, remove_leftovers
from sensorium.parts.encoders import Encoded, EncoderOptions, FrozenEncoder, open_encoder

TEXTS = [
    f"{size} {colour} {thing}" for size in ("a", "one") for colour in ("red", "dark blue") for thing in ("dog", "été")
]
IDENTITY = {"weights": "w", "width": 3, "pooled_width": 3, "has_vector": False}
# From Python 3.12 on a fork of a process with threads is warned of; these children use none of them.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SPECS: dict[Any, str] = {"text": "random:text", "image": "random:vision", "audio": "random:audio"}


def opened(modality: Any = "text", **options: Any) -> FrozenEncoder:
    return open_encoder(modality, SPECS[modality], EncoderOptions(window_seconds=1.0, **options), Path("unused"), "cpu")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[Any]]:
    """Contents by modality: captions, five pictures, five recordings."""
    random = np.random.default_rng(0)
    contents: dict[str, list[Any]] = {"text": TEXTS, "image": [], "audio": []}
    for number in range(5):
        picture, sound = tmp_path / f"{number}.png", tmp_path / f"{number}.wav"
        Image.fromarray(random.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)).save(picture)
        soundfile.write(sound, random.uniform(-0.5, 0.5, 8000 + 3000 * number), 16000)
        contents["image"].append(picture)
        contents["audio"].append(sound)
    return contents


class Counting:
    """An encoder that notes what it was asked for; a stand-in only where the real ones cannot count or fail."""

    name, modality, width, pooled_width, has_vector, batch_size = "counting", "text", 3, 3, False, 2
    max_seconds = None

    def __init__(self, factor: float = 1.0, die_after: int | None = None, pause: float = 0.0) -> None:
        self.identity = {**IDENTITY, "factor": str(factor)}
        self.asked: list[str] = []
        self._factor, self._die_after, self._pause = factor, die_after, pause

    def prepare(self, sample: str) -> str:
        if "broken" in sample:
            raise DataError("it is broken")
        return sample

    def encode(self, prepared: Sequence[str]) -> list[Encoded]:
        time.sleep(self._pause * len(prepared))
        self.asked += prepared
        if self._die_after is not None and len(self.asked) > self._die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Encoded(self._tokens(text), self._tokens(text).mean(0)) for text in prepared]

    def _tokens(self, text: str) -> np.ndarray:
        values = np.frombuffer(text.encode(), np.uint8)[:, None] * np.array([1.0, 0.1, 0.001])
        return (values * self._factor).astype(np.float32)


def contents_of(store: FeatureStore, contents: Sequence[Any]) -> list[tuple[bytes, bytes]]:
    return [(f.tokens.tobytes(), f.pooled.tobytes()) for f in map(store.get, store.keys(contents))]


def shards(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*.shard"))


# ---------------------------------------------------------------- the same features as without a cache


@pytest.mark.parametrize("modality", SPECS)
def test_a_float32_cache_is_bit_equal_to_live_features(
    modality: str, files: dict[str, list[Any]], tmp_path: Path
) -> None:
    encoder, contents = opened(modality), files[modality]
    live = LiveFeatures(encoder)
    store = cached(encoder, contents, tmp_path / "cache", FillOptions(dtype="float32"))
    half = cached(encoder, contents, tmp_path / "cache")
    assert half.namespace != store.namespace == live.namespace
    for key in live.keys(contents):
        one, two, three = live.get(key), store.get(key), half.get(key)
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.pooled, two.pooled)
        assert three.tokens.dtype == np.float16
        # float16 keeps 11 bits: half a unit in the last place of values below 16
        np.testing.assert_allclose(three.tokens, one.tokens, atol=2**-8, rtol=2**-11)
        assert (store.width, store.pooled_width, store.has_vector) == (
            encoder.width,
            encoder.pooled_width,
            encoder.has_vector,
        )


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    first, second, third = Counting(), Counting(), Counting()
    before = contents_of(cached(first, TEXTS, tmp_path), TEXTS)
    store = cached(second, TEXTS, tmp_path)
    assert sorted(first.asked) == sorted(TEXTS)
    assert second.asked == []
    assert contents_of(store, TEXTS) == before
    cached(third, [*TEXTS, "new", "new"], tmp_path)
    assert third.asked == ["new"]  # exactly what is missing, once


def test_features_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    store = cached(Counting(), TEXTS, tmp_path)
    features = store.get(store.key(TEXTS[0]))
    assert not features.tokens.flags.owndata
    assert type(features.tokens) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        features.tokens[0] = 1


def test_pooled_features_alone_can_be_stored(tmp_path: Path) -> None:
    encoder, live = opened(features="pooled"), LiveFeatures(opened())
    store = cached(encoder, TEXTS, tmp_path, FillOptions(dtype="float32"))
    features = store.get(store.key(TEXTS[0]))
    assert features.tokens.shape == (0, 32)
    assert np.array_equal(features.pooled, live.get(live.key(TEXTS[0])).pooled)


def test_a_store_travels_to_other_processes(tmp_path: Path) -> None:
    store = cached(Counting(), TEXTS, tmp_path)
    data = pickle.dumps(store)
    assert len(data) < 2000  # the folder's name, not the features
    assert contents_of(pickle.loads(data), TEXTS) == contents_of(store, TEXTS)


# ---------------------------------------------------------------- what is a hit and what is a miss


def test_one_changed_pixel_is_a_miss_for_that_picture_only(files: dict[str, list[Any]], tmp_path: Path) -> None:
    encoder, pictures = opened("image"), files["image"]
    store = cached(encoder, pictures, tmp_path / "cache")
    before = store.keys(pictures)
    image = Image.open(pictures[2])
    image.putpixel((3, 4), (1, 2, 3))
    image.save(pictures[2])
    again = FeatureStore(tmp_path / "cache", encoder.identity)
    after = again.keys(pictures)
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False, True, True]
    assert again.missing(after) == [after[2]]


def test_the_name_of_a_file_means_nothing(files: dict[str, list[Any]], tmp_path: Path) -> None:
    store = cached(opened("image"), files["image"], tmp_path / "cache")
    moved = files["image"][0].rename(tmp_path / "moved.png")
    assert store.missing(store.keys([moved])) == []


@pytest.mark.parametrize("options", [{"prefix": "query: "}, {"max_tokens": 16}])
def test_another_preprocessing_is_a_miss_for_everything(options: dict[str, Any], tmp_path: Path) -> None:
    store = cached(opened(), TEXTS, tmp_path)
    other = FeatureStore(tmp_path, opened(**options).identity)
    assert store.missing(store.keys(TEXTS)) == []
    assert len(other.missing(other.keys(TEXTS))) == len(TEXTS)


def test_one_changed_weight_is_a_miss_for_everything(tmp_path: Path) -> None:
    cached(opened(), TEXTS, tmp_path)
    encoder = open_encoder("text", "random:text?seed=1", EncoderOptions(window_seconds=1.0), Path("unused"), "cpu")
    assert encoder.identity.keys() == opened().identity.keys()
    changed = {**opened().identity, "weights": encoder.identity["weights"]}
    assert len(FeatureStore(tmp_path, changed)) == 0
    assert len(FeatureStore(tmp_path, opened().identity)) == len(TEXTS)


def test_a_remembered_hash_is_used_only_while_nothing_changed(tmp_path: Path) -> None:
    path, memo = tmp_path / "a.bin", tmp_path / "hashes.sqlite"
    path.write_bytes(b"one")
    old = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(old, old))
    first = ContentKeys(memo).key(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(old, old))  # same size and time: the memo cannot know
    assert ContentKeys(memo).key(path) == first
    os.utime(path, ns=(old + 1, old + 1))
    assert ContentKeys(memo).key(path) == ContentKeys(None).key(path) != first


def test_a_file_that_just_changed_is_hashed_again(tmp_path: Path) -> None:
    path, keys = tmp_path / "a.bin", ContentKeys(tmp_path / "hashes.sqlite")
    path.write_bytes(b"one")
    first, stamp = keys.key(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # two writes within one tick of the clock
    assert keys.key(path) != first


def test_a_damaged_memo_only_costs_time(tmp_path: Path) -> None:
    path, memo = tmp_path / "a.bin", tmp_path / "hashes.sqlite"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    memo.write_bytes(b"no database at all " * 100)
    assert ContentKeys(memo).key(path) == ContentKeys(None).key(path)
    assert ContentKeys(memo).key(path) == ContentKeys(None).key(path)


# ---------------------------------------------------------------- order, ranks, crashes: the same bytes


def test_the_order_of_filling_changes_no_byte(files: dict[str, list[Any]], tmp_path: Path) -> None:
    for modality, contents in files.items():
        encoder = opened(modality)
        one = cached(encoder, contents, tmp_path / "one")
        for count in range(1, len(contents) + 1):  # backwards, in calls of one new sample
            two = cached(encoder, contents[-count:], tmp_path / "two", FillOptions(workers=1))
        assert contents_of(one, contents) == contents_of(two, contents)


def _rank(rank: int, root: Path, barrier: Any, asked: Any) -> None:
    encoder = Counting(pause=0.01)
    options = FillOptions(rank=rank, world_size=2, barrier=lambda: barrier.wait(60) and None, shard_entries=3)
    store = cached(encoder, TEXTS, root, options)
    asked.put((rank, encoder.asked, store.missing(store.keys(TEXTS)), contents_of(store, TEXTS)))


@forks
def test_two_ranks_share_the_work_and_see_the_whole(tmp_path: Path) -> None:
    alone = contents_of(cached(Counting(), TEXTS, tmp_path / "alone"), TEXTS)
    context = multiprocessing.get_context("fork")
    barrier, asked = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_rank, args=(rank, tmp_path / "two", barrier, asked)) for rank in range(2)]
    for process in processes:
        process.start()
    results = [asked.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    shares = [set(mine) for _, mine, _, _ in results]
    assert shares[0] | shares[1] == set(TEXTS)
    assert not shares[0] & shares[1]
    assert [len(share) for share in shares] == [4, 4]
    assert all(missing == [] and found == alone for _, _, missing, found in results)


def _die(root: Path, texts: Sequence[str]) -> None:
    cached(Counting(die_after=70), texts, root, FillOptions(shard_entries=32))


@forks
def test_a_kill_while_filling_loses_only_the_unfinished_shard(tmp_path: Path) -> None:
    texts = [f"caption {number:03d}" for number in range(100)]
    alone = contents_of(cached(Counting(), texts, tmp_path / "alone"), texts)
    process = multiprocessing.get_context("fork").Process(target=_die, args=(tmp_path / "cache", texts))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    encoder = Counting()
    assert len(FeatureStore(tmp_path / "cache", encoder.identity)) == 64  # two shards of 32 were finished
    store = cached(encoder, texts, tmp_path / "cache")
    assert len(encoder.asked) == 36
    assert contents_of(store, texts) == alone


def test_a_kill_while_writing_leaves_a_temporary_that_the_next_run_removes(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
import numpy as np
from sensorium.data.feature_shards import Entry, write_shard
from sensorium import files
files.disk.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
write_shard(Path({str(tmp_path)!r}), [Entry("ab" * 32, np.ones((2, 3)), np.ones(3))])
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(TEMPORARY)
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_that_is_being_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []

    def between(handle: int) -> None:
        removed.append(remove_leftovers(tmp_path))

    monkeypatch.setattr(disk, "fsync", between)
    path = write_shard(tmp_path, [Entry("ab" * 32, np.ones((2, 3)), np.ones(3))])
    assert removed == [0, 0]
    assert open_shard(path).keys == ("ab" * 32,)


def test_what_was_encoded_before_an_error_is_kept(tmp_path: Path) -> None:
    texts = ["a", "bb", "a broken caption"]
    with pytest.raises(DataError, match="caption 'a broken caption': it is broken"):
        cached(Counting(), texts, tmp_path)
    encoder = Counting()
    assert len(cached(encoder, texts[:2], tmp_path)) == 2
    assert encoder.asked == []


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["body", "index", "head", "cut", "longer", "empty"])
def test_a_damaged_shard_is_said_and_encoded_again(damage: str, tmp_path: Path) -> None:
    whole = contents_of(cached(Counting(), TEXTS, tmp_path, FillOptions(shard_entries=3)), TEXTS)
    encoder, said = Counting(), []
    victim = shards(FeatureStore(tmp_path, encoder.identity))[0]
    data = bytearray(victim.read_bytes())
    lost = len(open_shard(victim).keys)
    if damage in ("body", "index", "head"):
        place = {"body": len(data) - 1, "index": data.index(b"}") + 5, "head": 60}[damage]
        data[place] ^= 1
    changed = {"cut": data[:-7], "longer": data + b"\0", "empty": bytearray()}.get(damage, data)
    victim.write_bytes(changed)
    store = cached(encoder, TEXTS, tmp_path, FillOptions(say=said.append))
    assert len(encoder.asked) == lost
    (line,) = said
    assert str(victim) in line
    assert "damaged" in line
    assert contents_of(store, TEXTS) == whole
    assert contents_of(FeatureStore(tmp_path, encoder.identity, say=said.append), TEXTS) == whole
    assert len(said) == 1  # the damaged file is gone


def test_reading_alone_refuses_a_damaged_shard_too(tmp_path: Path) -> None:
    encoder = Counting()
    (path,) = shards(cached(encoder, TEXTS, tmp_path))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    store = FeatureStore(tmp_path, encoder.identity)
    with pytest.raises(DataError, match="damaged, its sha256"):
        store.get(store.key(TEXTS[0]))


def test_a_foreign_identity_is_refused(tmp_path: Path) -> None:
    encoder = Counting()
    path = cached(encoder, TEXTS, tmp_path).folder / "identity.json"
    content = json.loads(path.read_text())
    assert content["identity"] == encoder.identity
    assert content["recorded"]["encoder"] == "counting"
    assert "torch" in content["recorded"]
    del content["checksum"]
    path.write_bytes(proof.seal(content | {"recorded": {"torch": "9"}}))
    assert len(FeatureStore(tmp_path, encoder.identity)) == len(TEXTS)  # versions are no part of the key
    path.write_bytes(proof.seal(content | {"identity": {"weights": "others"}}))
    with pytest.raises(DataError, match="belongs to another encoder"):
        FeatureStore(tmp_path, encoder.identity)
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        FeatureStore(tmp_path, encoder.identity)


def test_a_missing_entry_is_said(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, IDENTITY)
    assert not store.folder.exists()  # looking writes nothing
    with pytest.raises(DataError, match="has no entry"):
        store.get(store.key("never encoded"))
    with pytest.raises(DataError, match="no content is known"):
        LiveFeatures(Counting()).get("00" * 32)


# ---------------------------------------------------------------- values and broken files


def test_features_beyond_float16_are_refused(tmp_path: Path) -> None:
    encoder = Counting(factor=1000.0)  # "z" is 122: 122,000 against the largest float16, 65,504
    with pytest.raises(DataError, match=r"caption 'zz': encoder counting .* float16 cannot hold \(largest 1.22e\+05\)"):
        cached(encoder, ["zz"], tmp_path)
    assert len(FeatureStore(tmp_path, encoder.identity)) == 0
    store = cached(encoder, ["zz"], tmp_path, FillOptions(dtype="float32"))
    assert store.get(store.key("zz")).tokens[0, 0] == 122_000
    with pytest.raises(DataError, match="float32 cannot hold"):
        cached(Counting(factor=float("inf")), ["zz"], tmp_path, FillOptions(dtype="float32"))


@pytest.mark.parametrize("kind", ["broken", "missing"])
@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_bad_file_stops_or_is_reported(modality: str, kind: str, files: dict[str, list[Any]], tmp_path: Path) -> None:
    bad = files[modality][1]
    if kind == "broken":
        bad.write_bytes(bad.read_bytes()[:60])
    else:
        bad.unlink()
    with pytest.raises(DataError, match=f"{bad.name}: "):
        cached(opened(modality), files[modality], tmp_path / "cache")
    store = cached(opened(modality), files[modality], tmp_path / "cache", FillOptions(policy="skip"))
    assert list(store.skipped) == [str(bad)]
    assert len(store) == 4
    good = [path for path in files[modality] if path != bad]
    assert store.missing(store.keys(good)) == []


def test_an_empty_caption_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="caption ' ': the text is empty"):
        cached(opened(), ["a dog", " "], tmp_path)


def test_a_path_given_as_text_is_a_mistake_of_the_caller(files: dict[str, list[Any]], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="content for image must be a Path"):
        cached(opened("image"), [str(files["image"][0])], tmp_path / "cache")


def test_no_space_is_said(tmp_path: Path) -> None:
    match = rf"^{tmp_path}: cannot be written: No space left on device .*SENSORIUM_CACHE"
    with on(Failing(errno.ENOSPC, ("fsync",))), pytest.raises(DiskError, match=match):
        write_shard(tmp_path, [Entry("ab" * 32, np.ones((2, 3)), np.ones(3))])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- progress, figures, tidying up


def test_progress_and_shards(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    texts = [f"caption {number:03d}" for number in range(80)]
    options = FillOptions(progress=lambda done, total: seen.append((done, total)), shard_entries=32)
    store = cached(Counting(), texts, tmp_path, options)
    assert seen == [(32, 80), (64, 80), (80, 80)]
    assert [len(open_shard(path).keys) for path in shards(store)].count(32) == 2
    seen.clear()
    cached(Counting(), texts, tmp_path, options)
    assert seen == []


def test_cache_info_and_clear(tmp_path: Path) -> None:
    small, large = Counting(), Counting(factor=2.0)
    one = cached(small, TEXTS[:2], tmp_path)
    two = cached(large, TEXTS, tmp_path)
    info = cache_info(tmp_path)
    assert [(n.name, n.encoder, n.dtype, n.entries, n.damaged) for n in info] == [
        (two.namespace, "counting", "float16", 8, 0),
        (one.namespace, "counting", "float16", 2, 0),
    ]
    assert info[0].bytes == sum(path.stat().st_size for path in two.folder.iterdir())
    with pytest.raises(DataError, match=f"no namespace 'nonsense'; there are: .*{one.namespace}"):
        clear(tmp_path, "nonsense")
    assert clear(tmp_path, two.namespace) == info[0].bytes
    assert [n.name for n in cache_info(tmp_path)] == [one.namespace]
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert cache_info(tmp_path / "nowhere") == []


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_root() == tmp_path / "cache"  # set for all tests
    monkeypatch.delenv("SENSORIUM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "sensorium" / "features"
