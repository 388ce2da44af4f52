"""Every promise of the climate-text guide about data: what prepare_data.py makes, imports and finds wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from field_trees import change, make_tree
from script_runs import Script, script_at

SCRIPT = Path(__file__).parents[2] / "examples" / "climate_text" / "prepare_data.py"
SMALL = ("--shape", "2,8,24,24", "--num_samples", "12")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs the script as a command line does, in this process and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return script_at(SCRIPT, monkeypatch, capsys)


def test_the_commands_of_the_guide(tmp_path: Path) -> None:
    """As they are typed, in a process of their own."""
    here = [sys.executable, str(SCRIPT), "--output_dir", "data/training"]
    made = subprocess.run([*here, *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    root = tmp_path / "data" / "training"
    for split, count in (("train", 11), ("val", 1)):
        entries = json.loads((root / split / "index.json").read_text())
        assert len(entries) == count
        wanted = {"climate_file", "text", "target", "location", "weather_condition"}
        assert all(wanted <= one.keys() for one in entries)
        assert entries[0]["climate_file"] == "climate_00001.pt"
        field = torch.load(root / split / "climate_00001.pt", weights_only=True)
        assert field.shape == (2, 8, 24, 24)
    assert "0.00 GB for 12 samples" in made.stdout
    checked = subprocess.run([*here, "--validate_only"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "valid" in checked.stdout.splitlines()[-1]
    assert json.loads((root / "validation_report.json").read_text())["is_valid"] is True


def test_the_default_is_the_guides_shape() -> None:
    from sensorium.data.fields.demo import Options

    assert Options().shape == (2, 160, 64, 64)
    assert Options().num_samples == 1000
    assert Options().bytes == 1000 * 5_242_880
    assert Options().validation == 100


def test_wrong_data_are_found_and_say_why(script: Script, tmp_path: Path) -> None:
    make_tree(tmp_path / "data")
    assert script("--output_dir", "data", "--validate_only").code == 0
    change(tmp_path / "data", "val", 1, lambda one: one.update(target=" "))
    found = script("--output_dir", "data", "--validate_only")
    assert found.code == 1
    assert "problem: empty target: 1 times" in found.err
    assert "val[1] climate_00002.pt: target is empty" in found.err
    for folder in ("train", "val"):
        for path in (tmp_path / "data" / folder).glob("*.pt"):
            path.unlink()
    assert "no valid sample at all: missing file (5)" in script("--output_dir", "data", "--validate_only").out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "--output_dir is missing"),
        (("--output_dir", "none", "--validate_only"), "none/train: no such folder"),
        (
            ("--output_dir", "x", "--validate_only", "--num_samples", "3"),
            "--num_samples has no effect with --validate_only",
        ),
        (("--output_dir", "x", "--crop", "4x4"), "--crop has no effect with demonstration data"),
        (("--output_dir", "x", "--source", "*.nc", "--shape", "2,8,24,24"), "--shape has no effect with --source"),
        (("--output_dir", "x", "--shape", "2,8,24"), "shape"),
        (("--output_dir", "x", "--shape", "a"), "expected four numbers"),
        (("--output_dir", "x", "--num_samples", "0"), "num_samples"),
        (
            ("--output_dir", "x", "--source", "none*.nc", "--targets", "templated", "--climatology", "mean"),
            "no such file",
        ),
        (("--output_dir", "x", "--num_sample", "3"), "--num_sample: unknown flag; did you mean --num_samples?"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    script: Script, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    said = script(*words)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert reason in said.err
    assert not (tmp_path / "x").exists()


def test_what_is_there_is_replaced_only_when_asked(script: Script, tmp_path: Path) -> None:
    assert script("--output_dir", "data", *SMALL).code == 0
    before = (tmp_path / "data" / "train" / "index.json").read_text()
    refused = script("--output_dir", "data", *SMALL, "--seed", "1")
    assert (refused.code, (tmp_path / "data" / "train" / "index.json").read_text()) == (2, before)
    assert "add --overwrite" in refused.err
    assert script("--output_dir", "data", *SMALL, "--seed", "1", "--overwrite").code == 0
    assert (tmp_path / "data" / "train" / "index.json").read_text() != before


def test_files_of_others_are_imported(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    import numpy as np

    draw = np.random.default_rng(0)
    stamps = np.datetime64("2020-01-01", "s") + np.arange(80) * np.timedelta64(86400, "s")
    np.savez(
        tmp_path / "wind.npz",
        u=draw.standard_normal((80, 8, 12)) * 5,
        lat=np.arange(8) * 2.0,
        lon=np.arange(12) * 2.0,
        time=[str(one) for one in stamps],
    )
    (tmp_path / "map.yaml").write_text("channels: {U10M: {source: u, unit: m s-1}, V10M: {source: u, unit: m s-1}}\n")
    words = ["--output_dir", "data", "--source", "wind.npz", "--variables", "map.yaml", "--dt_hours", "24"]
    said = script(*words, "--targets", "templated", "--climatology", "mean", "--anomaly", "--max_samples", "40")
    assert said.code == 0, said.err
    assert script("--output_dir", "data", "--validate_only", "--strict").code == 0
