"""``examples/pmg/EVALUATION.md``: its commands run, its flags and names do what it says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pmg_scripts
import pytest
from script_runs import Script, answering, exit_code, modules_of

from sensorium import cli
from sensorium.families.pmg.board import METRICS
from sensorium.families.pmg.comparing import MODES, CompareConfig

GUIDE = pmg_scripts.FOLDER / "EVALUATION.md"
CONFIG = ("--config", "configs/flickr_train.yaml")
MODULES = ("evaluate", "inference", "pmg_inference", "adapter_folders", "guide_keys")
HERE = {"inference.py": ["inference.steps=1"], "sensorium": ["--steps", "1", "--ti-steps", "1"]}


def commands() -> list[list[str]]:
    """Of the Markdown, quick ones of them."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    found = []
    for words in map(shlex.split, lines):
        words = words[1:] if words[0] == "python" else words
        more = next((more for name, more in HERE.items() if words[0].endswith(name)), [])
        found.append([*("1" if word == "50" else word for word in words), *more, "--device", "cpu"])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The guide's folder with small models, an adapter where training leaves it, and a sample of each of two users."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("evaluation")
        patch.setenv("SENSORIUM_CACHE", str(root / "cache"))
        found = root / "pmg"
        pmg_scripts.make_trained(found, slice(1, 3))
        yield found


@pytest.fixture
def typed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """A command line in the guide's folder, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SENSORIUM_CACHE", str(folder.parent / "cache"))

    def run(*words: str) -> int:
        with modules_of(folder / "scripts", MODULES) as load, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(words))
            if words[0] == "sensorium":
                return exit_code(cli.app)
            return exit_code(load(Path(words[0]).stem).main)

    return answering(run, capsys)


def results(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_commands_of_the_page_run(typed: Script, folder: Path) -> None:
    found = commands()
    assert [Path(words[0]).name for words in found] == ["inference.py", "evaluate.py", "sensorium", "sensorium"]
    for words in found:
        answer = typed(*words)
        assert answer.code == 0, (words, answer.err)
    content = results(folder / "results" / "flickr.json")
    assert (content["dataset"], content["total_samples"], content["evaluated_samples"]) == ("FLICKR", 2, 2)
    assert set(content["average_metrics"]) == set(METRICS)
    assert [one["sample_idx"] for one in content["per_sample_results"]] == [0, 1]
    assert set(content) == {
        *("dataset", "total_samples", "evaluated_samples", "average_metrics", "std_metrics", "intervals"),
        *("per_sample_results", "skipped_metrics", "protocol"),
    }
    compared = results(folder / "results" / "compared" / "evaluation.json")
    assert compared["rows"]["soft"]["average_metrics"] == content["average_metrics"]  # the same pictures, both ways
    inverted = results(folder / "results" / "inverted" / "evaluation.json")
    assert inverted["evaluated_samples"] == 1
    assert "Results: results/compared/evaluation.json" in typed(*found[2]).out  # and once more, from what is there

    out = ["scripts/evaluate.py", *CONFIG, "--device", "cpu"]
    shutil.copytree(folder / "datasets/FLICKR/eval_outputs", folder / "copy")
    (folder / "copy" / "sample_0000" / "gen_0.jpg").unlink()
    answer = typed(*out, "--eval_dir", "copy")
    assert answer.code == 2
    assert "1 of 2 samples lack a picture, first sample 0" in answer.err
    assert typed(*out, "--eval_dir", "copy", "--allow_missing").code == 0
    left = results(folder / "copy" / "evaluation.json")
    assert left["evaluated_samples"] == 1
    assert left["per_sample_results"] == content["per_sample_results"][1:]  # of the sample that is there, no other
    shutil.rmtree(folder / "copy" / "sample_0000")
    shutil.move(folder / "copy" / "sample_0001", folder / "copy" / "sample_0000")
    answer = typed(*out, "--eval_dir", "copy")
    assert answer.code == 2
    assert "copy/sample_0000: is of user and target" in answer.err
    assert "--device cuda:7: this machine has" in typed(*out[:-1], "cuda:7").err
    assert "nowhere: no such folder of pictures" in typed(*out, "--eval_dir", "nowhere").err
    assert "weights: no such folder of weights" in typed(*out, "metrics.weights_dir=weights").err


def test_every_row_and_metric_is_on_the_page() -> None:
    text = GUIDE.read_text()
    assert not [name for name in METRICS if f"`{name}`" not in text]
    rows = CompareConfig.model_fields["rows"].annotation
    named = re.findall(r"^\| `(\w+)` \| ", text, flags=re.MULTILINE)
    assert set(MODES) < set(named)
    assert not [row for row in re.findall(r"'(\w+)'", str(rows)) if row not in named]
