"""Flickr8k in all the forms in which it is passed on, and one line for whatever is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from sensorium.data import readers
from sensorium.data.items import SPLITS
from sensorium.data.manage import import_dataset, verify_dataset
from sensorium.data.readers import flickr8k
from sensorium.errors import ConfigError, DataError

GHOST = "2258277193_586949ec62.jpg.1"
NAMES = [f"{number:03}_ab.jpg" for number in range(12)]  # 8 train, 2 val, 1 test, 1 in no split
LISTS = {"trainImages": NAMES[:8], "devImages": NAMES[8:10], "testImages": NAMES[10:11]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve pictures in the exact format of the set, the ghost and the line ends of Windows among them."""
    root = tmp_path / "flickr8k"
    (root / "Flicker8k_Dataset").mkdir(parents=True)
    lines = []
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(root / "Flicker8k_Dataset" / name)
        lines += [f"{name}#{k}\tA Dog  number {number} , caption {k} ." for k in range(5)]
    lines += [f"{GHOST}#{k}\tA ghost ." for k in range(5)]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for word, names in LISTS.items():
        (root / f"Flickr_8k.{word}.txt").write_bytes("\r\n".join([*names, "", ""]).encode())
    return root


def add_sound(root: Path) -> None:
    """Recordings of two captions of each of the first nine pictures, and of one in no split."""
    wavs = root / "flickr_audio" / "wavs"
    wavs.mkdir(parents=True)
    lines, speakers = [], []
    for name in [*NAMES[:9], NAMES[11]]:
        for k in (0, 3):
            wav = f"{name.removesuffix('.jpg')}_{k}.wav"
            soundfile.write(wavs / wav, np.full(160, 0.1) + int(name[:3]) / 100 + k / 1000, 16000)
            lines.append(f"{wav} {name} #{k}")
            speakers.append(f"{wav} {k}")
    (root / "flickr_audio" / "wav2capt.txt").write_text("\n".join(lines) + "\n")
    (root / "flickr_audio" / "wav2spk.txt").write_text("\n".join(speakers) + "\n")


def to_kaggle(root: Path) -> None:
    lines = ["image,caption"]
    for line in (root / "Flickr8k.token.txt").read_text().splitlines():
        key, text = line.split("\t")
        lines.append(f"{key.rpartition('#')[0]},{text}")
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    (root / "Flickr8k.token.txt").unlink()
    (root / "Flicker8k_Dataset").rename(root / "Images")


def to_karpathy(root: Path, keep_captions: bool) -> None:
    words = {"trainImages": "train", "devImages": "val", "testImages": "test"}
    images = [
        {
            "filename": name,
            "split": words[word],
            "sentences": [{"raw": f"A Dog number {int(name[:3])} , caption {k} ."} for k in range(5)],
        }
        for word, names in LISTS.items()
        for name in names
    ]
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    for word in words:
        (root / f"Flickr_8k.{word}.txt").unlink()
    if not keep_captions:
        (root / "Flickr8k.token.txt").unlink()


def test_the_published_form(root: Path) -> None:
    dataset = readers.read("flickr8k", root)
    assert {split: len(dataset.of_split(split)) for split in SPLITS} == {"train": 40, "val": 10, "test": 5}
    item = dataset.items[3]
    assert (item.id, item.group, item.split) == (f"{NAMES[0]}#3", NAMES[0], "train")
    assert item.text == "A Dog number 0 , caption 3"
    assert item.image == root / "Flicker8k_Dataset" / NAMES[0]
    assert item.audio is None
    assert dataset.notes == (
        "Flickr8k: 12 photographs, 60 usable captions",
        "Flickr8k: 8 / 2 / 1 photographs in train / val / test",
        "Flickr8k: 5 captions of 1 missing photographs dropped",
        "Flickr8k: 1 photographs are in no split",
    )


@pytest.mark.parametrize("form", ["kaggle", "karpathy", "karpathy-all", "doubled", "archives"])
def test_other_forms_give_the_same_items(root: Path, form: str) -> None:
    before = [(item.id, item.split, item.text) for item in readers.read("flickr8k", root).items]
    if form == "kaggle":
        to_kaggle(root)
    elif form.startswith("karpathy"):
        to_karpathy(root, keep_captions=form == "karpathy")
    elif form == "doubled":
        for place in list(root.iterdir()):
            (root / "flickr8k").mkdir(exist_ok=True)
            place.rename(root / "flickr8k" / place.name)
    else:
        (root / "Flickr8k_Dataset").mkdir()
        (root / "Flicker8k_Dataset").rename(root / "Flickr8k_Dataset" / "Flicker8k_Dataset")
        twin = root / "__MACOSX" / "Flicker8k_Dataset"
        twin.mkdir(parents=True)
        (twin / f"._{NAMES[0]}").write_bytes(b"not a picture")
        (root / "Flickr8k_Dataset" / "Flicker8k_Dataset" / f"._{NAMES[0]}").write_bytes(b"not a picture")
    assert [(item.id, item.split, item.text) for item in readers.read("flickr8k", root).items] == before


def test_kaggle_captions_are_cut_at_the_first_comma_after_the_name(root: Path) -> None:
    to_kaggle(root)
    lines = (root / "captions.txt").read_text().splitlines()
    lines[1] = f'{NAMES[0]},"A man , a.jpg, and a ""dog"" ."'
    (root / "captions.txt").write_text("\n".join(lines))
    assert readers.read("flickr8k", root).items[0].text == 'A man , a.jpg, and a "dog"'


def test_recordings_are_joined_by_picture_and_caption(root: Path) -> None:
    add_sound(root)
    dataset = readers.read("flickr8k", root)
    spoken = {item.id: item for item in dataset.items if item.audio}
    assert len(spoken) == 18
    item = spoken[f"{NAMES[4]}#3"]
    assert item.audio == root / "flickr_audio" / "wavs" / "004_ab_3.wav"
    assert item.meta == {"speaker": "3"}
    assert dataset.notes[-1] == "Flickr8k: 20 recordings, 18 of them joined to a caption of a split"
    assert not any(item.audio for item in readers.read("flickr8k", root, {"audio": False}).items)


def test_linked_recordings_are_read_and_a_link_in_a_circle_ends(root: Path, tmp_path: Path) -> None:
    """Large corpora often lie on another disk."""
    add_sound(root)
    (root / "flickr_audio").rename(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    assert not any(item.audio for item in readers.read("flickr8k", root).items)
    (root / "flickr_audio").symlink_to(tmp_path / "elsewhere")
    spoken = [item.audio for item in readers.read("flickr8k", root).items if item.audio]
    assert len(spoken) == 18
    assert spoken[0] == root / "flickr_audio" / "wavs" / "000_ab_0.wav"


def test_a_missing_directory_is_said_in_the_words_of_the_guide(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^Flickr8k directory not found: {tmp_path}/none; "):
        readers.read("flickr8k", tmp_path / "none")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("Flicker8k_Dataset", "the folder of photographs is missing"),
        ("Flickr8k.token.txt", "the captions are missing"),
        ("Flickr_8k.devImages.txt", "the splits are missing (Flickr_8k.devImages.txt"),
        (f"Flicker8k_Dataset/{NAMES[9]}", f"1 of 11 pictures of the splits have no photographs (first: {NAMES[9]})"),
    ],
)
def test_a_missing_part_is_named(root: Path, part: str, reason: str) -> None:
    readers.read("flickr8k", root)
    place = root / part
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(DataError) as caught:
        readers.read("flickr8k", root)
    assert reason in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("Flickr8k.token.txt", "", "captions is empty"),
        ("Flickr8k.token.txt", f"{NAMES[0]}#0 no tab", "line 1: expected NAME.jpg#K, a tab"),
        ("Flickr8k.token.txt", f"{NAMES[0]}#0\ta\n{NAMES[0]}#0\tb", "line 2: 000_ab.jpg#0 stands there already"),
        ("Flickr_8k.trainImages.txt", "\r\n", "Flickr_8k.trainImages.txt is empty"),
        ("Flickr_8k.testImages.txt", NAMES[0], "stands in the lists of train and test"),
        ("Flickr_8k.testImages.txt", "unknown.jpg", "have no photographs (first: unknown.jpg)"),
    ],
)
def test_a_damaged_part_is_named(root: Path, file: str, content: str, reason: str) -> None:
    (root / file).write_text(content)
    with pytest.raises(DataError) as caught:
        readers.read("flickr8k", root)
    assert reason in str(caught.value)


def test_an_empty_folder_of_photographs_is_named(root: Path) -> None:
    for path in (root / "Flicker8k_Dataset").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="Flicker8k_Dataset holds no photographs"):
        readers.read("flickr8k", root)


def test_broken_recordings_are_named(root: Path) -> None:
    add_sound(root)
    (root / "flickr_audio" / "wavs" / "004_ab_3.wav").unlink()
    with pytest.raises(DataError, match=r"1 of 20 recordings that wav2capt.txt names are missing"):
        readers.read("flickr8k", root)
    (root / "flickr_audio" / "wav2capt.txt").write_text("a.wav b.jpg\n")
    with pytest.raises(DataError, match=r"wav2capt.txt: line 1: expected 3 words"):
        readers.read("flickr8k", root)
    (root / "flickr_audio" / "wav2capt.txt").unlink()
    with pytest.raises(DataError, match=r"wav2capt.txt is missing"):
        readers.read("flickr8k", root)


def test_a_part_of_the_set_is_no_shortfall_but_a_torn_whole_set_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify_dataset(readers.read("flickr8k", root)).problems == ()
    monkeypatch.setattr(flickr8k, "FULL", {"train": 8, "val": 2, "test": 1})
    assert verify_dataset(readers.read("flickr8k", root)).problems == (
        "12 photographs; the whole set has 8,091",
        "60 captions; the whole set has 40,455",
    )


def test_an_import_is_not_measured_by_the_form_it_came_from(root: Path, tmp_path: Path) -> None:
    add_sound(root)
    imported = readers.read("native", import_dataset(readers.read("flickr8k", root), tmp_path / "native"))
    assert imported.name == flickr8k.NAME
    assert verify_dataset(imported).problems == ()
    assert imported.items[1].image is not None
    imported.items[1].image.unlink()
    assert len(verify_dataset(imported).problems) == 1


def test_unknown_options_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'audio'"):
        readers.read("flickr8k", root, {"audi": True})
