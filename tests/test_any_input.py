"""Whatever a file or an option holds: a result, or an error of ours that can be printed. Never another exception.

``SENSORIUM_EXAMPLES=10000 pytest tests/test_any_input.py`` draws so many examples a property, other ones each time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile
import torch
import yaml
from any_values import LEAVES, TREES, WORDS, as_json, near, near_bytes, near_text
from helpers import TOY, toy_config
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import tarred, zipped
from PIL import Image
from run_folder import judged

from sensorium import config, exported, families
from sensorium.data import archives, manage, readers
from sensorium.data.catalog import Remote
from sensorium.data.media import load_audio, load_image
from sensorium.data.readers import native
from sensorium.data.transfer import Watch
from sensorium.engine import checkpoint, continuation, loop, portable, session
from sensorium.engine.contract import Card, Gallery, Shown
from sensorium.engine.files import json_line
from sensorium.engine.listener import Saved
from sensorium.engine.report import write_report
from sensorium.engine.results import evaluation_to_json
from sensorium.engine.settings import resolve
from sensorium.errors import SensoriumError, printable

T = TypeVar("T")
WATCH = Watch(lambda text: None, lambda what, done, total: None)


def judge(call: Callable[[], T]) -> T | None:
    """What ``call`` gives; None when it says no in words that can be shown. Anything else it raises is a bug."""
    try:
        return call()
    except SensoriumError as error:
        said = printable(str(error))
        assert said.strip()
        assert len(said.encode()) < 100_000
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return path


# --- configuration


FAMILIES = [TOY, families.load("thinking")]
NAMES = sorted(
    {name for family in FAMILIES for name, _ in config.walk(type(resolve(family, next(iter(family.presets)))))}
)
RIGHT = {family.name: config.dump(resolve(family, next(iter(family.presets)))) for family in FAMILIES}


@st.composite
def overrides(draw: st.DrawFn) -> str:
    name = draw(st.one_of(st.sampled_from(NAMES), near_text(st.sampled_from(NAMES)), WORDS))
    value = draw(st.one_of(WORDS, LEAVES.map(str), TREES.map(as_json), near_text(TREES.map(as_json))))
    return draw(st.sampled_from(["{}={}", "{}={}", "{}={}", "{} {}", "{}=={}", "{}.{}"])).format(name, value)


@given(st.sampled_from(FAMILIES), st.data())
def test_any_tree_is_a_configuration_or_refused(family: Any, data: st.DataObject) -> None:
    tree = data.draw(st.one_of(near(RIGHT[family.name], 4), st.dictionaries(WORDS, TREES, max_size=4)))
    preset = next(iter(family.presets))
    found = judge(lambda: resolve(family, preset, tree))
    if found is not None and config.reading.problem_of(tree) is None:
        assert config.build(type(found), config.dump(found)) == found


@given(st.sampled_from(FAMILIES), st.lists(overrides(), max_size=4))
def test_any_overrides_are_a_configuration_or_refused(family: Any, words: list[str]) -> None:
    def run() -> Any:
        return resolve(family, next(iter(family.presets)), config.parse_overrides(words))

    found = judge(run)
    if found is not None:
        assert config.build(type(found), yaml.load(config.dump_yaml(found), config._Yaml)) == found


@st.composite
def configuration_texts(draw: st.DrawFn) -> tuple[str, str]:
    """A file's ending and its text."""
    tree = draw(st.one_of(near(RIGHT["toy"]), TREES))
    kind = draw(st.sampled_from(["yaml", "json", "toml"]))
    if kind == "toml":
        lines = st.tuples(st.one_of(st.sampled_from(NAMES), WORDS), TREES.map(as_json))
        text = "\n".join(f"{name} = {value}" for name, value in draw(st.lists(lines, max_size=5)))
    else:
        text = as_json(tree) if kind == "json" else yaml.safe_dump(json.loads(as_json(tree)), allow_unicode=True)
    return kind, draw(
        near_text(st.one_of(st.just(text), st.text(max_size=40), st.text("{}[]:,-&*!|>'\"\n ab1.#", max_size=40)))
    )


@given(configuration_texts())
def test_any_text_is_a_configuration_file_or_refused(place: Path, file: tuple[str, str]) -> None:
    path = written(place / f"a.{file[0]}", file[1])
    found = judge(lambda: config.load_file(path))
    if found is not None:
        judge(lambda: resolve(TOY, found.get("preset", "tiny"), found))
        json.dumps(found, allow_nan=False).encode()


# --- readers


LINE = {
    "id": "1", "split": "train", "group": "g", "text": "a dog", "image": "i/a.png", "audio": "a/b.wav",
    "labels": ["x", "y"], "time": 2.5, "meta": {"k": "v"},
}  # fmt: skip
ABOUT = {"name": "n", "licence": "l", "notes": ["x"]}
LINES = near_text(st.one_of(near(LINE).map(as_json), TREES.map(as_json), WORDS))


@given(st.lists(LINES, max_size=4), st.one_of(st.none(), near_text(near(ABOUT).map(as_json))))
def test_any_manifest_is_a_data_set_or_refused(place: Path, lines: list[str], about: str | None) -> None:
    root = place / "native"
    written(root / "manifest.jsonl", "\n".join(lines))
    (root / "dataset.json").unlink(missing_ok=True)
    if about is not None:
        written(root / "dataset.json", about)
    found = judge(lambda: readers.read("native", root))
    if found is None:
        return
    assert all(path.is_relative_to(root) for item in found.items for path in (item.image, item.audio) if path)
    manage.verify_dataset(found)
    paths = {
        path: path.relative_to(root).as_posix() for item in found.items for path in (item.image, item.audio) if path
    }
    again = place / "again"
    again.mkdir(exist_ok=True)
    native.write(again, found, paths)
    assert [item.id for item in readers.read("native", again).items] == [item.id for item in found.items]


PICTURES = ["a.jpg", "b.jpg", "c.jpg"]
TOKENS = "\n".join(f"{name}#{k}\tA dog {k} ." for name in PICTURES for k in range(2))
KAGGLE = "image,caption\n" + "\n".join(f"{name},A dog" for name in PICTURES)
KARPATHY = {
    "images": [
        {"filename": name, "split": split, "sentences": [{"raw": "A dog ."}, {"raw": "A cat"}]}
        for name, split in zip(PICTURES, ("train", "val", "test"), strict=True)
    ]
}
TREE: dict[str, st.SearchStrategy[str]] = {
    "Flickr8k.token.txt": near_text(st.just(TOKENS)),
    "captions.txt": near_text(st.just(KAGGLE)),
    "dataset_flickr8k.json": near_text(near(KARPATHY).map(as_json)),
    "Flickr_8k.trainImages.txt": near_text(st.just("a.jpg\r\n")),
    "Flickr_8k.devImages.txt": near_text(st.just("b.jpg")),
    "Flickr_8k.testImages.txt": near_text(st.just("c.jpg")),
    "flickr_audio/wav2capt.txt": near_text(st.just("a_0.wav a.jpg #0\nb_1.wav b.jpg #1")),
    "flickr_audio/wav2spk.txt": near_text(st.just("a_0.wav 3\nb_1.wav 4")),
    "flickr_audio/wavs/a_0.wav": st.just("x"),
    "flickr_audio/wavs/b_1.wav": st.just("x"),
    **{f"Flicker8k_Dataset/{name}": st.just("x") for name in PICTURES},
}
FOLDERS = ["", "Flicker8k_Dataset/", "Images/", "flickr_audio/", "wavs/", "deep/er/"]


@st.composite
def flickr_trees(draw: st.DrawFn) -> dict[str, str | None]:
    """Text by path; None stands for a folder. Parts are missing, elsewhere, or folders where files should be."""
    tree: dict[str, str | None] = {name: draw(text) for name, text in TREE.items()}
    for name in draw(st.lists(st.sampled_from(sorted(TREE)), max_size=3, unique=True)):
        text = tree.pop(name)
        what = draw(st.sampled_from(["gone", "folder", "elsewhere", "above"]))
        if what == "folder":
            tree[name] = None
        elif what != "gone":
            above = draw(st.sampled_from(FOLDERS)) if what == "elsewhere" else ""
            tree[above + name.rpartition("/")[2]] = text
    return tree


def laid_out(root: Path, tree: dict[str, str | None]) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, text in sorted(tree.items()):
        path = root / name
        if text is None:
            path.mkdir(parents=True, exist_ok=True)
        elif not path.exists() and all(not above.is_file() for above in path.parents):
            written(path, text)
    return root


@given(flickr_trees(), st.booleans())
def test_any_tree_is_flickr8k_or_refused(place: Path, tree: dict[str, str | None], audio: bool) -> None:
    root = laid_out(place / "flickr", tree)
    found = judge(lambda: readers.read("flickr8k", root, {"audio": audio}))
    if found is not None:
        assert all(item.image and item.image.is_relative_to(root) for item in found.items)


STAMPS = [
    "dog.png",
    "dog.txt",
    "dog.svg",
    "dog_mirror.png",
    "dog_desc_fr.ogg",
    "dog_desc.ogg",
    "dog.wav",
    "a/cat.png",
    "a/cat.txt",
]


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(STAMPS), st.sampled_from(["_desc.ogg", ".txt", ".png", "_mirror.png", "_desc_.ogg"])),
        st.one_of(st.none(), near_text(st.just("A dog.\nfr.utf8=Un chien\n"))),
    ),
    near({"speech": ["fr"], "text": "en", "sounds": "speech", "seed": 0}, 1),
)
def test_any_tree_is_stamps_or_refused(place: Path, tree: dict[str, str | None], options: dict[str, Any]) -> None:
    root = laid_out(place / "stamps", tree)
    judge(lambda: readers.read("stamps", root, options))


# --- files of data


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(stream, kind)
    return stream.getvalue()


def sound(kind: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.sin(np.arange(800) / 9) / 2, 16000, format=kind)
    return stream.getvalue()


IMAGES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")]
SOUNDS = [sound(kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]


@given(st.one_of(st.sampled_from(IMAGES).flatmap(near_bytes), st.binary(max_size=64)))
def test_any_bytes_are_a_picture_or_refused(place: Path, data: bytes) -> None:
    path = written(place / "a.png", data)
    found = judge(lambda: load_image(path))
    assert found is None or (found.mode == "RGB" and min(found.size) > 0)


@given(st.one_of(st.sampled_from(SOUNDS).flatmap(near_bytes), st.binary(max_size=64)))
def test_any_bytes_are_a_sound_or_refused(place: Path, data: bytes) -> None:
    path = written(place / "a.wav", data)
    found = judge(lambda: load_audio(path, max_seconds=30))
    assert found is None or (found.ndim == 1 and found.size > 0 and np.isfinite(found).all())


PACKED = {kind: pack({"set/a.txt": b"one" * 50, "b.txt": b"two"}) for kind, pack in (("zip", zipped), ("tar", tarred))}


@given(st.sampled_from(["zip", "tar"]), st.data())
def test_any_bytes_are_an_archive_or_refused(place: Path, kind: Any, data: st.DataObject) -> None:
    root = place / "archive"
    shutil.rmtree(root, ignore_errors=True)
    path = written(root / "pack", data.draw(near_bytes(PACKED[kind])))
    (root / "new").mkdir()
    judge(lambda: archives.unpack(Remote("pack", "", kind), path, root / "new", WATCH))
    assert sorted(found.name for found in root.iterdir()) == ["new", "pack"]
    assert not any(found.is_symlink() for found in root.rglob("*"))


NAMES_OF_MEMBERS = st.one_of(WORDS, st.lists(WORDS, max_size=3).map("/".join), st.text("./\\:ab\0", max_size=8))


@given(st.sampled_from(["zip", "tar"]), st.dictionaries(NAMES_OF_MEMBERS, st.just(b"x"), max_size=3))
def test_any_names_of_members_are_unpacked_or_refused(place: Path, kind: Any, tree: dict[str, bytes]) -> None:
    root = place / "members"
    shutil.rmtree(root, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that is there twice
            content = (zipped if kind == "zip" else tarred)(tree)
    except (ValueError, IndexError):  # such an archive cannot be made
        return
    path = written(root / "pack", content)
    (root / "new").mkdir()
    judge(lambda: archives.unpack(Remote("pack", "", kind), path, root / "new", WATCH))
    assert sorted(found.name for found in root.iterdir()) == ["new", "pack"]


# --- what a run leaves


@pytest.fixture(scope="module")
def saved(place: Path) -> Saved:
    """A finished run with its checkpoint of step 2, an export and a ``best.pt``."""
    run = place / "run"
    overrides = {"train": {"steps": 2}, "checkpoint": {"every_steps": 1}, "track": {"tensorboard": False}}
    loop.train(TOY, toy_config(overrides), run, quiet=True)
    found = Saved(run, checkpoint.folder_of(run, 2), 2, 0.8, True, 1.25)
    portable.write_pt(found, place / "best.pt")
    loaded = session.open_run(TOY, run, "latest")
    (place / "export").mkdir()
    exported.write_weights(place / "export", loaded)
    exported.write_config(place / "export", exported.describe(loaded, "hf", {}, loaded.facts))
    return found


@given(st.data())
def test_any_manifest_is_of_a_checkpoint_or_refused(saved: Saved, place: Path, data: st.DataObject) -> None:
    right = json.loads((saved.checkpoint / checkpoint.MANIFEST).read_text())
    copy = place / "copy" / "checkpoints" / saved.checkpoint.name
    if not copy.exists():
        shutil.copytree(saved.checkpoint, copy)
    written(copy / checkpoint.MANIFEST, data.draw(near_text(near(right).map(as_json))))
    found = judge(lambda: checkpoint.load(copy, "toy"))
    assert found is None or found.weights.keys() == checkpoint.load(saved.checkpoint, "toy").weights.keys()
    list(checkpoint.newest(place / "copy", "toy"))


@given(st.data())
def test_any_description_is_of_an_export_or_refused(saved: Saved, place: Path, data: st.DataObject) -> None:
    del saved
    right = exported.read_config(place / "export")
    copy = place / "exported"
    if not copy.exists():
        shutil.copytree(place / "export", copy)
    content = data.draw(near(right))
    if data.draw(st.booleans()):
        with_checksum = {**content, "checksum": exported._checksum(content)} if finite(content) else content
        text = as_json(with_checksum)
    else:
        text = data.draw(near_text(st.just(as_json(content))))
    written(copy / exported.CONFIG, text)
    found = judge(lambda: exported.read(TOY, copy))
    assert found is None or found.config.family == "toy"


def finite(tree: Any) -> bool:
    try:
        json.dumps(tree, allow_nan=False, sort_keys=True)
    except ValueError:
        return False
    return True


class Odd:
    """Values that no JSON has, but a ``.pt`` file may."""

    VALUES = st.sampled_from(
        [
            torch.ones(2),
            torch.ones(()).expand(10**13),
            torch.eye(2).to_sparse(),
            torch.empty(3, device="meta"),
            torch.nn.Parameter(torch.ones(1)),
            torch.device("cpu"),
            torch.float32,
            b"bytes",
            {1: 2},
            (1, "two"),
            {"a set"},
        ]
    )


@given(st.data())
def test_any_content_is_a_pt_file_or_refused(saved: Saved, place: Path, data: st.DataObject) -> None:
    del saved
    content = torch.load(place / "best.pt", weights_only=True)
    weights = content.pop("weights")
    tree = data.draw(near(content))
    weights = dict(weights)
    if data.draw(st.booleans()):
        target = data.draw(st.sampled_from([tree, weights, tree.get("config"), tree.get("facts")]))
        if isinstance(target, dict):
            target[data.draw(st.one_of(WORDS, st.sampled_from(sorted(weights)), st.integers()))] = data.draw(Odd.VALUES)
    path = place / "odd.pt"
    torch.save({**tree, "weights": data.draw(st.sampled_from([weights, weights, weights, None, [1]]))}, path)
    judge(lambda: portable.find_native(portable.read_pt(path)))
    judge(lambda: continuation.continue_from(TOY, path, {}))
    judge(lambda: session.warm_start(toy_config({"train": {"warm_start": str(path)}})))


@given(st.data())
def test_any_bytes_are_a_pt_file_or_refused(saved: Saved, place: Path, data: st.DataObject) -> None:
    del saved
    path = written(place / "bytes.pt", data.draw(near_bytes((place / "best.pt").read_bytes())))
    judge(lambda: portable.read_pt(path))


# --- reports


HITS = (Shown("hit", image="a.png", audio="a.wav", right=True, score=0.5),)
RESULT = {
    "split": "test",
    "step": 2,
    "checkpoint": "c",
    **evaluation_to_json(judged(0.5, (Gallery("g", (Card(Shown("q"), HITS),)),), ("w",))),
}
RECORDS = [
    {"kind": "train", "step": 1, "epoch": 0.5, "stage": "s", "loss": 1.5, "lr/a": 0.1, "grad_norm": 0.5},
    {"kind": "val", "step": 2, "epoch": 1.0, "metrics": {"loss": 1.0, "R-Sum": 3.0, "chance/R-Sum": 1.0}},
    {"kind": "event", "step": 2, "level": "alarm", "text": "x"},
]
SUMMARY = {
    "parameters": {"trainable": 5, "frozen": 6}, "seconds": {"train": 2.0}, "peak_rss_bytes": 10, "steps": 2,
    "best": {"step": 2, "metric": "R-Sum", "value": 3.0}, "notes": ["n"],
}  # fmt: skip


@settings(max_examples=settings().max_examples // 2 + 1)
@given(near(RESULT), st.lists(st.sampled_from(RECORDS).flatmap(near), max_size=5), near(SUMMARY), st.data())
def test_any_run_folder_is_reported_or_refused(
    place: Path, result: Any, records: list[Any], summary: Any, data: st.DataObject
) -> None:
    run = place / "reported"
    written(run / "config.yaml", yaml.safe_dump(data.draw(near({"family": "toy", "data": {"reader": "x"}}))))
    written(run / "evaluation" / "test.json", as_json(result))
    written(run / "metrics.jsonl", "".join(f"{as_json(record)}\n" for record in records))
    written(run / "times.jsonl", json_line({"step": 1, "seconds": 0.1, "rows_per_second": 9.0}))
    written(run / "summary.json", as_json(summary))
    written(run / "facts.json", as_json(data.draw(TREES)))
    found = judge(lambda: write_report(run))
    if found is not None:
        json.loads((run / "report.json").read_text())
        assert "<script>alert" not in found.read_text()


# --- the twin


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError(), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x")])
def test_an_exception_of_another_kind_is_noticed(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        judge(call)


def test_the_number_of_examples_is_that_of_the_suite() -> None:
    assert settings().max_examples == int(os.environ.get("SENSORIUM_EXAMPLES", 60))
