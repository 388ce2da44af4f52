"""``examples/pmg/INFERENCE.md``: its commands run, its flags and keys do what it says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pmg_scripts
import pytest
import torch
from script_runs import Script, answering, exit_code, modules_of

GUIDE = pmg_scripts.FOLDER / "INFERENCE.md"
QUICK = ("inference.steps=2", "--device", "cpu")
CONFIG = ("--config", "configs/flickr_train.yaml")


def commands() -> list[str]:
    """Of the Markdown."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The guide's folder with small models, and an adapter where training leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("inference")
        patch.setenv("SENSORIUM_CACHE", str(root / "cache"))
        found = root / "pmg"
        pmg_scripts.make_trained(found, slice(2))
        yield found


@pytest.fixture
def script(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """``scripts/inference.py`` in this process, as a command line in the guide's folder runs it."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SENSORIUM_CACHE", str(folder.parent / "cache"))

    def run(*words: str) -> int:
        names = ("inference", "pmg_inference", "adapter_folders", "guide_keys")
        with modules_of(folder / "scripts", names) as load, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["scripts/inference.py", *words])
            return exit_code(load("inference").main)

    return answering(run, capsys)


def info_of(folder: Path, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"sample_{number:04}" / "info.json").read_text())
    return found


def test_every_command_of_the_guide_runs(script: Script, folder: Path) -> None:
    found = commands()
    assert len(found) == 3
    for line in found:
        python, name, *words = shlex.split(line)
        assert (python, name) == ("python", "scripts/inference.py")
        answer = script(*words, *QUICK)
        assert answer.code == 0, (line, answer)
    assert {path.name for path in (folder / "results" / "flickr").iterdir()} == {
        *("meta.json", "sample_0000", "sample_0001"),
    }
    plain, styled, chosen = (info_of(folder / "results" / name) for name in ("flickr", "styled", "chosen"))
    assert (plain["mode"], plain["num_generated"]) == ("target_soft", 1)
    assert (styled["mode"], styled["keywords_from"]) == ("target_soft_style", "preferences supplied")
    assert (chosen["num_generated"], len(chosen["scores"])) == (4, 4)
    assert chosen["styles"] == [*[chosen["user_style"], f"{chosen['user_style']}, {chosen['user_style']}"] * 2]
    assert (folder / "results" / "chosen" / "sample_0001" / "best.jpg").is_file()
    known = {path.name for path in (folder / "results" / "chosen" / "sample_0000").iterdir()}
    promised = re.findall(r"^ {8}(\w+\.\w+)", GUIDE.read_text(), re.MULTILINE)
    assert set(promised) <= known


def test_what_is_not_said_has_the_guides_places(script: Script, folder: Path) -> None:
    answer = script(*CONFIG, *QUICK, "--num_images", "2")
    assert answer.code == 0, answer
    out = folder / "datasets" / "FLICKR" / "eval_outputs"
    assert info_of(out)["num_generated"] == 2
    stamp = (out / "sample_0001" / "gen_1.jpg").stat().st_mtime_ns
    again = script(*CONFIG, *QUICK, "--num_images", "2", "--checkpoint", "outputs/flickr")
    assert "2 of 2 samples are there already" in again.out
    assert (out / "sample_0001" / "gen_1.jpg").stat().st_mtime_ns == stamp
    other = script(*CONFIG, "inference.steps=3", "--num_images", "2")
    assert (other.code, "were made with another drawing" in other.err) == (2, True)


def test_mistakes_are_one_line(script: Script, folder: Path) -> None:
    def refused(*words: str, of: str) -> None:
        answer = script(*words)
        assert answer.code == 2, answer
        assert answer.err.startswith("error: ")
        assert of in answer.err, answer.err
        assert not (folder / "nowhere").exists()

    out = ("--output_dir", "nowhere")
    refused(*out, of="--config FILE is missing")
    refused(*CONFIG, *out, "--checkpoint", "outputs/flickr/checkpoint-7", of="in outputs/flickr there is final_model")
    (folder / "outputs" / "empty").mkdir(parents=True, exist_ok=True)
    refused(*CONFIG, *out, "--checkpoint", "outputs/empty", of="no model")
    refused(*CONFIG, *out, "--num_image", "2", of="did you mean --num_images?")
    refused(*CONFIG, *out, "inference.step=2", of="did you mean 'steps'")
    refused(*CONFIG, *out, "pmg.num_image_prompt=4", of="was trained with 2")
    refused(*CONFIG, *out, "dataset.test_json=none.json", of="none.json")
    if not torch.cuda.is_available():
        refused(*CONFIG, *out, "--device", "cuda", of="--device cuda: this machine has 0 GPUs")
