"""Every promise of the interaction guide about training: files, names, reports, going on; with a model of no size."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOY, toy_config
from interaction_scripts import SMALL, run
from safetensors.torch import load_file
from script_runs import Script, answering

from sensorium import guide, guide_report
from sensorium.engine import checkpoint, loop, portable
from sensorium.engine.listener import Saved
from sensorium.errors import CheckpointError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.use import load_model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the outputs of ``--demo`` over three epochs, and its words; nobody changes it."""
    folder = tmp_path_factory.mktemp("demo")
    words = ["--demo", *SMALL, "--batch-size", "4", "--set", f"data.cache={folder}/kept"]
    words += ["--set", f"data.sets.shapes={{reader: synthetic, root: {folder}/kept/shapes, options: {{variants: 1}}}}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, *words) == 0
    return folder, words


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    return answering(partial(run, monkeypatch), capsys)


@pytest.fixture
def copy(demo: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the outputs."""
    shutil.copytree(demo[0] / "outputs", tmp_path / "here" / "outputs")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "outputs"


def same_training(left: Path, right: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit, and so is the way there."""
    ours, theirs = (checkpoint.complete(one)[0][-1] for one in (left, right))
    assert ours.name == theirs.name
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()


def report_of(outputs: Path) -> tuple[Mapping[str, Any], str]:
    newest = max((outputs / "reports").glob("report_*.json"))
    return json.loads(newest.read_text()), newest.with_suffix(".md").read_text()


def test_the_output_tree(demo: tuple[Path, list[str]]) -> None:
    outputs = demo[0] / "outputs"
    names = {path.name for path in (outputs / "checkpoints").iterdir()}
    # 96 samples are six steps of 16 rows, so 18 in all: stages end at 4 (epoch 1), 13 (epoch 3) and 18.
    assert names == {f"checkpoint_epoch_{n}.pt" for n in (1, 3)} | {
        "best_model.pt",
        "final_model.pt",
        "checkpoint_last.pt",
    }
    assert list((outputs / "logs/tensorboard").glob("events*"))
    log = (outputs / "logs/train.log").read_text()
    for line in ("Stage 2 of 3: align, steps 5 to 13", "Stage 3 of 3: full, steps 14 to 18", "Training report: "):
        assert line in log
    assert (outputs / "reports/report.html").stat().st_size > 10_000
    assert not list(outputs.rglob("*.tmp"))


def test_curves_from_the_first_step(demo: tuple[Path, list[str]]) -> None:
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(demo[0] / "outputs/logs/tensorboard"))
    reader.Reload()
    curves = {tag: [event.step for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    for tag in ("loss", "skipped_steps", "seconds_per_step", "peak_rss_bytes"):
        assert curves[f"train/{tag}"] == list(range(1, 19))
    assert curves["stage/unimodal"] == [1, 2, 3, 4]
    assert curves["stage/full"] == list(range(14, 19))
    assert curves["train/temperature/text-image"] == list(range(5, 19))
    assert curves["val/shapes/t2i/R@1"] == [6, 12, 18]


def test_the_files_load_with_torch_alone_and_strictly(demo: tuple[Path, list[str]]) -> None:
    folder = demo[0] / "outputs/checkpoints"
    found = {path.stem: torch.load(path) for path in folder.iterdir()}
    best = found["best_model"]
    model = InteractionModel(ModelConfig.model_validate(best["model"]))
    model.load_state_dict(best["model_state_dict"])
    assert not any("pretrain" in name or "recon" in name for name in best["model_state_dict"])
    stages = {name: content["stage"] for name, content in found.items()}
    assert stages == dict.fromkeys(found, "full") | {"checkpoint_epoch_1": "unimodal", "checkpoint_epoch_3": "full"}
    assert (best["epoch"], found["checkpoint_epoch_1"]["epoch"]) == (3.0, pytest.approx(4 / 6))
    assert best["metrics"]["loss"] == best["run"]["value"]
    assert found["checkpoint_epoch_1"]["metrics"] == {}
    assert {"circle", "red", "small"} < set(best["labels"])
    loaded, processor = load_model(folder / "best_model.pt")
    outputs = loaded(**processor(texts=["a small red circle"]))
    assert outputs["fused_features"].shape == (1, 512)  # embed_dim of config.yaml


def test_the_report_says_what_the_guide_asks_for(demo: tuple[Path, list[str]]) -> None:
    content, text = report_of(demo[0] / "outputs")
    weights = torch.load(demo[0] / "outputs/checkpoints/final_model.pt")["model_state_dict"]
    assert content["model"]["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert content["ended"] == "complete"
    assert content["data_sets"][0]["train"] == {"samples": 96, "pictures": 96, "recordings": 96, "texts": 96}
    assert content["data_sets"][0]["test"] == {"pictures": 16, "recordings": 16, "texts": 16}
    spans = [(one["name"], one["first_step"], one["last_step"]) for one in content["stages"]]
    assert spans == [("unimodal", 1, 4), ("align", 5, 13), ("full", 14, 18)]
    assert all(np.isfinite([one["loss_at_first_step"], one["loss_at_last_step"]]).all() for one in content["stages"])
    recalls = [one for one in content["metrics"] if one["metric"].endswith("R@1") and one["split"] == "test"]
    assert {one["chance"] for one in recalls if "/t2i/" in one["metric"]} == {6.25}
    assert 5e7 < content["peak_memory"]["process_bytes"] < 2e10
    assert 0 < content["time"]["seconds_of_all_steps"] < content["time"]["seconds_of_this_command"]
    assert "| peak memory of the GPU | n/a |" in text
    assert f"| parameters of the model | {content['model']['parameters']:,} |" in text


def test_a_report_of_what_is_left(demo: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(demo[0] / "outputs/run", tmp_path / "run")
    for name in (
        "metrics.jsonl",
        "times.jsonl",
        "summary.json",
        "environment.json",
        "facts.json",
        "evaluation/test.json",
    ):
        (tmp_path / "run" / name).unlink()
    path = guide_report.write(tmp_path / "run", tmp_path / "reports", guide_report.Ended("by an error", 1.0))
    text = path.read_text()
    for line in (
        "| parameters of the model | n/a |",
        "| time of all steps | n/a |",
        "## Stages\n\nn/a",
        "## Data sets\n\nn/a",
    ):
        assert line in text
    content = json.loads(path.with_suffix(".json").read_text())
    assert (content["steps"], content["data_sets"], content["stages"], content["metrics"]) == (None, None, [], [])
    (tmp_path / "run/config.yaml").unlink()
    with pytest.raises(CheckpointError, match="not a run folder"):
        guide_report.write(tmp_path / "run", tmp_path / "reports", guide_report.Ended("", 1.0))


def test_going_on_from_an_epoch_is_exact(demo: tuple[Path, list[str]], copy: Path, script: Script) -> None:
    later = copy / "checkpoints/checkpoint_epoch_9.pt"
    shutil.copy(copy / "checkpoints/final_model.pt", later)
    answer = script("--resume", "outputs/checkpoints/checkpoint_epoch_1.pt")
    assert answer.code == 0, answer.err
    assert (later.exists(), (copy / "run.1" / later.name).exists()) == (False, True)
    assert "Continuing outputs/run exactly at step 4 (epoch 0.6667), as a branch in outputs/run" in answer.out
    assert not any("bit-exact" in line for line in answer.lines)
    same_training(demo[0] / "outputs/run", copy / "run")
    ours, theirs = (torch.load(one / "checkpoints/final_model.pt") for one in (demo[0] / "outputs", copy))
    assert all(
        torch.equal(ours["model_state_dict"][n], theirs["model_state_dict"][n]) for n in ours["model_state_dict"]
    )
    assert report_of(copy)[0]["ended"] == "complete"


def test_going_on_otherwise_is_said_and_differs(demo: tuple[Path, list[str]], copy: Path, script: Script) -> None:
    answer = script("--resume", "outputs/checkpoints/checkpoint_epoch_3.pt", "--epochs", "4", "--lr", "2e-3")
    assert answer.code == 0, answer.err
    assert "Not bit-exact from here: learning rate 0.001, now 0.002; the cosine schedule ends elsewhere" in answer.lines
    assert "stages: unimodal until step 4, align until step 13, full until step 24" in answer.out
    assert (copy / "checkpoints/checkpoint_epoch_4.pt").exists()
    with pytest.raises(AssertionError):
        same_training(demo[0] / "outputs/run", copy / "run")
    # Again from there, which is within the last stage by now: the branch has the weights that the stage began with.
    answer = script("--resume", "outputs/checkpoints/checkpoint_epoch_3.pt", "--epochs", "3.5")
    assert answer.code == 0, answer.err
    assert "exactly at step 18 (epoch 3), as a branch in outputs/run" in answer.out


def test_nothing_left_to_do_is_one_line(copy: Path, script: Script) -> None:
    before = sorted(copy.rglob("*"))
    answer = script("--resume", "outputs/checkpoints/final_model.pt")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "3 of 3 epochs are done; give --epochs 6 to go on\n"
    assert sorted(copy.rglob("*")) == before


def test_without_the_run_the_weights_are_used(copy: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy / "run")
    monkeypatch.setattr(portable, "find_native", lambda found: None)  # the original of the copy is there
    answer = script("--resume", "outputs/checkpoints/checkpoint_epoch_1.pt", "--epochs", "1", "--batch-size", "4")
    assert answer.code == 0, answer.err
    assert "The native checkpoint of outputs/checkpoints/checkpoint_epoch_1.pt is gone; only its weights" in answer.out
    assert "Weights of outputs/checkpoints/checkpoint_epoch_1.pt; optimizer and position start anew" in answer.out
    assert torch.load(copy / "checkpoints/final_model.pt")["epoch"] == 1.0
    assert not (copy / "checkpoints/checkpoint_epoch_3.pt").exists()  # of the run before, which keeps it
    assert (copy / "run.1/checkpoint_epoch_3.pt").exists()


def test_what_a_run_learns_cannot_be_changed(copy: Path, script: Script) -> None:
    words = ("--batch-size", "2", "--data-root", "elsewhere", "--set", "model.num_classes=5")
    answer = script("--resume", "outputs/checkpoints/checkpoint_epoch_1.pt", *words)
    assert answer.code == 2
    for line in (
        "train.batch_size: 16 in the run, 8 asked for",
        "model.num_classes: 20 in the run, 5 asked for",
        "data.sets.shapes.root",
    ):
        assert line in answer.err


def test_ctrl_c_leaves_a_report_and_a_way_on(
    demo: tuple[Path, list[str]], tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._step

    def step(*arguments: Any) -> dict[str, float]:
        if arguments[-1] == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        answer = script(*demo[1])
    assert answer.code == 130
    assert answer.err.endswith("To go on: --resume outputs/checkpoints/checkpoint_last.pt\n")
    content, text = report_of(Path("outputs"))
    assert content["ended"].startswith("stopped at step 8; saved")
    assert content["data_sets"][0]["train"]["samples"] == 96
    assert [one["name"] for one in content["stages"]] == ["unimodal", "align"]
    assert "| ended | stopped at step 8" in text
    assert not Path("outputs/checkpoints/final_model.pt").exists()
    assert script("--resume", "outputs/checkpoints/checkpoint_last.pt").code == 0
    same_training(demo[0] / "outputs/run", Path("outputs/run"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_tells_the_guides_three_ways_out(
    demo: tuple[Path, list[str]],
    tmp_path: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
) -> None:
    def full(*_: Any) -> dict[str, float]:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "_step", full)
    answer = script(*demo[1], "--set", "model.size=tiny", "--set", "model.shape=null")
    assert answer.code == 1
    assert answer.err.startswith("error: out of memory with --batch-size 4, 4 parts, size tiny, ")
    assert "1. a smaller --batch-size: 2 instead of 4" in answer.err
    assert "2. a smaller --model-size: this is the smallest" in answer.err
    assert "3. gradient_accumulation_steps: 8 in config.yaml instead of 4, with --batch-size 2" in answer.err
    assert report_of(Path("outputs"))[0]["ended"].startswith("out of memory")


@pytest.mark.parametrize(
    ("step", "epoch", "ends", "name"),
    [
        (60, 10.0, [200], 10),
        (59, 59 / 6, [200], None),
        (61, 61 / 6, [200], None),
        (36, 10.01, [200], 10),  # an epoch that its last step leads a little beyond
        (4, 4 / 6, [4, 13, 18], 1),
        (13, 13 / 6, [4, 13, 18], 3),
        (12, 2.0, [4, 12, 18], 2),
        (18, 3.0, [4, 13, 18], 3),
    ],
)
def test_epochs_in_names_count_from_one(step: int, epoch: float, ends: list[int], name: int | None) -> None:
    assert guide.due_epoch(Saved(Path(), Path(), step, epoch, False, None), 10, ends) == name


def test_milestones_stay(tmp_path: Path) -> None:
    """From the newest two checkpoint_epoch_*.pt a run goes on exactly, however many epochs later it was stopped."""
    settings = {"train": {"epochs": 7, "batch_size": 4}, "checkpoint": {"keep": 2, "milestone_epochs": 2}}
    loop.train(TOY, toy_config(settings | {"evaluate": {"every_epochs": None}}), tmp_path / "run", quiet=True)
    steps = [int(path.name[5:]) for path in checkpoint.named(tmp_path / "run")]
    assert steps == [20, 30, 35]  # five steps an epoch: milestones 10, 20, 30; the newest 30 and 35
