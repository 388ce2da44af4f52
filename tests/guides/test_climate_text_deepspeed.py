"""The climate-text guide's commands under DeepSpeed: its launcher, its files, and opening what they hold."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from climate_scripts import DATA, FOLDER, HERE, MINE, my_config, run

from sensorium import stored
from sensorium.engine import portable_folder
from sensorium.families.climate_text.model import ClimateTextFusion

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'sensorium[deepspeed]'"
    ),
    pytest.mark.filterwarnings("ignore"),  # DeepSpeed's own, of torch's old names
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the guide's folder with data."""
    folder = tmp_path_factory.mktemp("guide") / "climate_text"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "config.yaml"
    config.write_text(my_config(config.read_text()).replace("zero_stage: 2", "zero_stage: 2\n  enabled: auto"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*DATA, name="prepare_data") == 0
    return folder


def same(left: ClimateTextFusion, right: ClimateTextFusion) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def alone(epoch: Path, folder: Path) -> Path:
    """DeepSpeed's own files and ``model.json``, as somebody copied them."""
    folder.mkdir()
    for path in (*epoch.glob("*.pt"), epoch / portable_folder.ABOUT):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "model", "optimizer"),
    [
        (2, "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        (3, "zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_its_files_are_there_and_open(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: int, model: str, optimizer: str
) -> None:
    monkeypatch.chdir(here)
    out = Path(f"stage{stage}")
    words = ("training.epochs=1", f"training.output_dir={out}", f"deepspeed.zero_stage={stage}")
    assert run(*MINE, *words, "deepspeed.enabled=true") == 0
    epoch = out / "checkpoint_epoch_1"
    assert {path.name for path in epoch.glob("*.pt")} == {model, optimizer}
    assert (out / "zero_to_fp32.py").is_file()
    assert not (out / ".shards.tmp").exists()
    assert f"DeepSpeed: ZeRO {stage}" in Path("logs/training.log").read_text().splitlines()
    whole = ClimateTextFusion.from_pretrained(epoch)
    assert same(ClimateTextFusion.from_pretrained(alone(epoch, tmp_path / "alone")), whole)
    assert "sensorium-plain" not in str(torch.load(epoch / optimizer, weights_only=False).keys())


def test_the_launchers_command(here: Path) -> None:
    """Two processes, the JSON, and the --local_rank that the launcher adds; then one goes on from the epoch."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    command = [*command, "train_multimodal.py", *MINE, "--deepspeed", "deepspeed_config.json"]
    words = ["training.output_dir=launched", "run.world_size=2", "training.epochs=1"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (here / "logs/training.log").read_text().splitlines()
    assert "1 node x 2 processes: 2 samples x 2 parts x 2 = 8 samples a step" in log
    assert "DeepSpeed: ZeRO 2" in log
    epoch = here / "launched/checkpoint_epoch_1"
    optimizers = {path.name for path in epoch.glob("*optim_states.pt")}
    assert optimizers == {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)}
    assert stored.chosen(here / "launched").name == epoch.name
    alone_ = ("run.world_size=null", "deepspeed.enabled=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run("--resume", str(epoch), *HERE, *alone_, "training.epochs=2") == 0
    assert (here / "launched/latest").read_text() == "checkpoint_epoch_2\n"
    assert "Processes: 2 until now, 1 from here" in (here / "logs/training.log").read_text()
