"""The preprocessing scripts of the guide: their flags, the files that they write, and the layout of those."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import history_trees
import pytest
from captioner_folder import write_blip
from http_server import Page, serve
from script_runs import Answer, answering, exit_code, modules_of

from sensorium.data import readers
from sensorium.data.items import SPLITS
from sensorium.data.tastes import Places, read_styles, read_tastes

SCRIPTS = Path(__file__).parents[2] / "examples" / "pmg" / "data"
MODULES = ("preprocessing", "preprocess_flickr", "preprocess_pog", "preprocess_ser")
Script = Callable[..., Answer]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Script]:
    """Runs one of the scripts, as a command line does, in this process and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    with modules_of(SCRIPTS, MODULES) as load:

        def run(kind: str, *words: str) -> int:
            monkeypatch.setattr(sys, "argv", [f"preprocess_{kind}.py", *words])
            return exit_code(load(f"preprocess_{kind}").main)

        yield answering(run, capsys)


def written(folder: Path) -> dict[str, list[dict[str, object]]]:
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in SPLITS}


def test_the_command_of_the_guide(tmp_path: Path) -> None:
    """As it is typed, in a process of its own, from the folder of the examples."""
    root = history_trees.flickr_aes(tmp_path / "datasets" / "FLICKR", workers=24, pictures=60, liked=8)
    words = [sys.executable, "data/preprocess_flickr.py", "--data_dir", str(root)]
    done = subprocess.run(words, cwd=SCRIPTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output = root / "processed_dataset"
    assert {path.name for path in output.iterdir()} == {"train.json", "val.json", "test.json", "split_report.json"}
    found = written(output)
    assert len(found["val"]) == 15
    assert all("worker_id" in one and "user_id" not in one for samples in found.values() for one in samples)
    assert done.stdout.splitlines()[-1].endswith(
        f"train {len(found['train'])}, val 15, test {len(found['test'])} samples; see split_report.json"
    )
    assert "hold a target of val or test; split=honest leaves them out" in done.stdout


def test_the_honest_split_and_styles(script: Script, tmp_path: Path) -> None:
    root = history_trees.flickr_aes(tmp_path / "flickr", workers=60, pictures=300, liked=8)
    (tmp_path / "styles.json").write_text(json.dumps([{"worker": "A001WÉRK", "style": "calm, blue"}]))
    words = ("--data_dir", "flickr", "--split", "honest", "--styles", "styles.json", "--output_dir", "out")
    assert script("flickr", *words, "--history", "2").code == 0
    found, report = written(tmp_path / "out"), json.loads((tmp_path / "out" / "split_report.json").read_text())
    assert all(len(one["history_item_ids"]) == 2 for one in found["train"])  # type: ignore[arg-type]
    assert report["split"] == "honest"
    assert report["train_samples_with_held_out_target"] == 0
    assert report["preferences"].startswith("supplied")
    assert read_styles(tmp_path / "out" / "user_preferences.json") == {"A001WÉRK": "calm, blue"}
    styled = [one for samples in found.values() for one in samples if "worker_style" in one]
    assert {one["worker_id"] for one in styled} == {"A001WÉRK"}
    for split in SPLITS:
        assert len(read_tastes(tmp_path / "out" / f"{split}.json", Places())) == report["splits"][split]["samples"]
        data = (tmp_path / "out" / f"{split}.json").read_bytes()
        assert report["sha256"][f"{split}.json"] == hashlib.sha256(data).hexdigest()
    before = found
    assert script("flickr", *words[:-4], "--output_dir", "out", "--history", "2").code == 0  # the same, without styles
    assert not (tmp_path / "out" / "user_preferences.json").exists()
    assert [one["target_item_id"] for one in written(tmp_path / "out")["val"]] == [
        one["target_item_id"] for one in before["val"]
    ]
    assert script("flickr", *words, "--history", "2", "--seed", "7").code == 0
    assert written(tmp_path / "out")["val"] != before["val"]
    assert root.is_dir()


def test_pictures_of_pog_come_by_their_addresses(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        root = history_trees.pog(tmp_path / "pog", users=40, items=60, url=server.url)
        for number in range(58):  # two are gone
            server.pages[f"/{number:032x}.jpg"] = Page(history_trees.picture(number))
        missing = script("pog", "--data_dir", "pog")
        assert missing.code == 2
        assert "--download fetches the pictures" in missing.err
        done = script("pog", "--data_dir", "pog", "--users", "30", "--download")
        assert done.code == 0, done.err
        asked = len(server.asked)
        assert "2 are gone for ever (.links-gone.tsv), 0 failed" in done.out
        assert "samples dropped: missing picture" in done.out
        again = script("pog", "--data_dir", "pog", "--users", "30", "--download")
        assert again.code == 0
        assert len(server.asked) == asked
    report = json.loads((root / "processed_dataset" / "split_report.json").read_text())
    assert report["users"] == 30
    assert report["captions"] == "titles"
    assert report["dropped"]["missing picture"] > 0
    assert all("user_id" in one for one in written(root / "processed_dataset")["train"])
    outfit = script("pog", "--data_dir", "pog", "--target", "outfit", "--output_dir", "outfit", "--split", "honest")
    assert outfit.code == 0, outfit.err
    assert len(written(tmp_path / "outfit")["train"][0]["history_item_ids"]) == 5  # type: ignore[arg-type]


def test_a_captioner_writes_what_no_data_set_has(script: Script, tmp_path: Path) -> None:
    """Its captions are those of the samples, its name is in the report; `data import` takes them."""
    root = history_trees.ser30k(tmp_path / "ser", themes=12, stickers=4)
    (root / "ser30k_captions.json").unlink()
    bare = script("ser", "--data_dir", "ser", "--split", "honest")
    assert bare.code == 2
    assert "there are no captions, as no such set has them; give captions=FILE" in bare.err
    blip = write_blip(tmp_path / "blip")
    words = ("--data_dir", "ser", "--split", "honest", "--device", "cpu", "--captioner", str(blip))
    done = script("ser", *words)
    assert done.code == 0, done.err
    output = root / "processed_dataset"
    report = json.loads((output / "split_report.json").read_text())
    assert (report["captioner"], report["captions"]) == ("blip", "captions of blip")
    assert len(report["captioner_sha256"]) == 64
    captions = json.loads((output / "captions.json").read_text())
    for one in written(output)["test"]:
        target = one["target_item_info"]
        assert isinstance(target, dict)
        assert target["caption"] == captions[target["item_id"]] != ""
    options = {"split": "honest", "captions": str(output / "captions.json")}
    imported = readers.read("ser30k", root, options)
    assert all(item.text == captions[item.meta["item"]] for item in imported.items)
    theme = next((root / "Images").iterdir())
    next(theme.iterdir()).write_bytes(b"\xff\xd8 broken")
    broken = script("ser", *words)
    assert broken.code == 2
    assert theme.name in broken.err
    skipped = script("ser", *words, "--bad_samples", "skip")
    assert skipped.code == 0, skipped.err
    assert "no caption: " in skipped.out
    assert script("ser", *words, "--bad_samples", "skip", "--max_bad", "0").code == 2


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        ("flickr", ("--captions", "a", "--captioner", "b"), "one of them writes the captions"),
        ("flickr", ("--device", "cpu"), "--device has no effect without --captioner"),
        ("flickr", ("--users", "3"), "--users: unknown flag"),
        ("flickr", ("--split", "fair"), "'guide' or 'honest'"),
        ("flickr", ("--data_dir", "none"), "none: no such folder"),
        ("ser", ("--target", "any_theme"), "'other_theme' or 'same_theme'"),
        ("ser", ("--history", "0"), "greater than or equal to 1"),
        ("pog", ("--users", "many"), "invalid int value"),
        ("pog", ("--download", "--data_dir", "none"), "none: no such folder"),
    ],
)
def test_what_cannot_be_is_one_line(script: Script, kind: str, words: tuple[str, ...], reason: str) -> None:
    answer = script(kind, *words)
    assert answer.code == 2
    assert reason in answer.err
    assert not answer.out
