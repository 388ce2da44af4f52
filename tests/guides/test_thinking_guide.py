"""Every promise of the thinking guide, on a small tree in the published format, with small random encoders."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from flickr8k_tree import make_tree
from guide_scripts import FLICKR8K, SCRIPTS, SIZES, SMALL, SOTA8GB, refused, resolved, typed
from safetensors.torch import load_file
from script_runs import Script

from sensorium import guide
from sensorium.engine import checkpoint, loop


def in_order(lines: list[str], expected: list[str]) -> bool:
    rest = iter(lines)
    return all(line in rest for line in expected)


def same_training(left: Path, right: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit, and so is the way there."""
    ours, theirs = (checkpoint.complete(run)[0][-1] for run in (left, right))
    assert ours.name == theirs.name
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()


def scalars(folder: Path) -> dict[str, list[int]]:
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [event.step for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_the_quick_start_as_typed(here: Path) -> None:
    answer = typed(*SMALL, "--epochs", "2")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    start = [
        "Loading Flickr8k dataset from data/flickr8k...",
        "Audio: none found in data/flickr8k; training on image and text",
        "Train samples: 7",
        "Train captions: 35",
        "Val samples: 2",
        "Initializing trainer...",
        "Optimizer: AdamW (8-bit AdamW needs a GPU)",
        "Starting training...",
        "Device: cpu",
        "Precision: fp32 (fp16 asked, no GPU)",
        "Batch size: 8",
        "Learning rate: 0.0002",
        "Epochs: 2",
        "-" * 80,
    ]
    assert in_order(answer.lines, start)
    assert not in_order(answer.lines, start[::-1])
    for line in start:
        assert sum(said.startswith(line.partition(":")[0] + ":") for said in answer.lines if ":" in line) <= 1
    for path in ("best.pt", "last.pt", "run/report.html", "run/evaluation/test.json", "run/config.yaml"):
        assert (here / "checkpoints" / path).is_file()
    assert "Report: checkpoints/run/report.html" in answer.lines
    assert re.fullmatch(r"R@1 image -> text: \d+\.\d \(chance 50\.0\)", answer.lines[-1])


def test_the_lines_of_training(here: Path, script: Script) -> None:
    answer = script(*SMALL, "--epochs", "12")
    assert answer.code == 0, answer.err
    steps = [line for line in answer.lines if line.startswith("[Epoch ")]
    assert len(steps) == 2
    assert re.fullmatch(r"\[Epoch 0 Step 0\] loss=\d\.\d{4} grad_norm=\d+\.\d\d lr=2\.00e-06", steps[0])
    assert re.fullmatch(r"\[Epoch 11 Step 50\] loss=\d\.\d{4} grad_norm=\d+\.\d\d lr=1\.02e-04", steps[1])
    best = [line for line in answer.lines if " new best " in line]
    assert re.fullmatch(r"\[epoch 0\] new best \d\.\d{4} -> saved checkpoints/best\.pt", best[0])
    others = [line for line in answer.lines if re.fullmatch(r"\[epoch \d+\] val_loss=\d\.\d{4}", line)]
    ends = sorted(int(line[len("[epoch ") : line.index("]")]) for line in best + others)
    assert ends == list(range(12))
    sums = [line for line in answer.lines if re.match(r"\[epoch \d+\] R-Sum \d+\.\d \(chance ", line)]
    assert len(sums) == 12
    values = [float(line.split(" new best ")[1].split()[0]) for line in best]
    assert values == sorted(values, reverse=True)
    content = torch.load("checkpoints/best.pt", weights_only=True)
    assert f"{content['value']:.4f}" == f"{values[-1]:.4f}"
    assert torch.load("checkpoints/last.pt", weights_only=True)["step"] == 53
    curves = scalars(here / "runs/MMT_Flickr8k")
    for tag in ("loss", "align", "recon", "grad_norm", "temperature/text-image", "skipped_steps", "seconds_per_step"):
        assert curves[f"train/{tag}"] == list(range(1, 54))
    assert len(curves["lr/decay"]) == 53
    assert len(curves["val/t2i/R@1"]) == 12


@pytest.mark.parametrize(
    "words",
    [
        "--batch_size 4",
        "--precision fp16 --batch_size 4",
        "--batch_size 2 --precision fp16",
        "--batch_size 16",
        "--precision bf16 --no_cache",
        "--precision fp32 --set model.loss=sigmoid --batch_size 2",
    ],
)
def test_the_memory_settings_run(here: Path, script: Script, words: str) -> None:
    answer = script(*SMALL, *words.split(), "--epochs", "0.5", "--savedir", "out", "--logdir", "curves")
    assert answer.code == 0, answer.err
    asked = re.search(r"--precision (\w+)", words)
    line = {"fp16": "fp32 (fp16 asked, no GPU)", "bf16": "bf16", "fp32": "fp32"}[asked[1] if asked else "fp16"]
    assert f"Precision: {line}" in answer.lines
    assert (here / "out/best.pt").is_file()
    assert list((here / "curves/MMT_Flickr8k").glob("events*"))
    assert not (here / "checkpoints").exists()


def test_recordings_are_used_where_they_are(here: Path, script: Script) -> None:
    make_tree(here / "spoken", sound=True)
    answer = script(*SMALL, "--root_dir", "spoken", "--epochs", "1")
    assert answer.code == 0, answer.err
    assert not any(line.startswith("Audio: none") for line in answer.lines)
    assert sum(line.startswith("R@1 ") for line in answer.lines) == 6
    assert "Loading Flickr8k dataset from spoken..." in answer.lines


def test_a_second_run_keeps_the_first(here: Path, script: Script) -> None:
    assert script(*SMALL, "--epochs", "1").code == 0
    files = {path: path.read_bytes() for path in (here / "checkpoints").rglob("*") if path.is_file()}
    events = [path.name for path in (here / "runs/MMT_Flickr8k").iterdir()]
    answer = script(*SMALL, "--epochs", "1", "--lr", "1e-4")
    assert answer.code == 0, answer.err
    assert "The earlier run is kept as checkpoints/run.1" in answer.lines
    aside = here / "checkpoints/run.1"
    for path, data in files.items():
        kept = aside / path.name if path.suffix == ".pt" else aside / path.relative_to(here / "checkpoints/run")
        assert path.name == ".lock" or kept.read_bytes() == data
    assert [path.name for path in (here / "runs/MMT_Flickr8k.1").iterdir()] == events


def test_continuing_is_exact(here: Path, script: Script) -> None:
    words = [*SMALL, "--batch_size", "4", "--lr", "1e-4"]
    assert script(*words, "--epochs", "2", "--savedir", "whole").code == 0
    assert script(*words, "--epochs", "1", "--savedir", "part").code == 0
    shutil.copytree("part", "twin")
    answer = script("--checkpoint", "part/best.pt", "--epochs", "2")
    assert answer.code == 0, answer.err
    assert "Continuing part/run exactly at step 9 (epoch 1.029)" in answer.lines
    assert "Resumed at step 9 of 18" in answer.lines
    assert "Batch size: 4" in answer.lines
    assert not any("bit-exact" in line for line in answer.lines)
    same_training(here / "whole/run", here / "part/run")
    ours, theirs = (torch.load(here / name / "last.pt", weights_only=True) for name in ("whole", "part"))
    assert all(torch.equal(ours["weights"][name], theirs["weights"][name]) for name in ours["weights"])
    answer = script("--checkpoint", "twin/best.pt", "--epochs", "2", "--lr", "2e-4")
    assert "Not bit-exact from here: learning rate 0.0001, now 0.0002" in answer.lines
    with pytest.raises(AssertionError):
        same_training(here / "whole/run", here / "twin/run")


def test_killed_and_continued(here: Path, script: Script) -> None:
    words = [*SMALL, "--epochs", "8", "--set", "evaluate.every_epochs=null", "--set", "evaluate.test=false"]
    words += ["--set", "checkpoint.every_steps=5"]
    assert script(*words, "--savedir", "whole").code == 0
    command = [sys.executable, str(SCRIPTS / f"{FLICKR8K}.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not (here / "checkpoints/last.pt").exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    answer = script("--checkpoint", "checkpoints/last.pt")
    assert answer.code == 0, answer.err
    assert any(line.startswith("Continuing checkpoints/run exactly at step ") for line in answer.lines)
    same_training(here / "whole/run", here / "checkpoints/run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_stopped_and_continued(
    number: int, code: int, here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._step

    def step(*arguments: Any) -> dict[str, float]:
        if arguments[-1] == 2:
            os.kill(os.getpid(), number)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        answer = script(*SMALL, "--epochs", "1", "--set", "evaluate.test=false")
    said = "stopped at step 3; saved. `sensorium resume checkpoints/run` continues"
    assert (answer.code, answer.err) == (code, f"{said}\nTo go on: --checkpoint checkpoints/last.pt\n")
    answer = script("--checkpoint", "checkpoints/last.pt")
    assert (answer.code, answer.err) == (0, "")
    assert any(line.startswith("Continuing checkpoints/run exactly at step 3 ") for line in answer.lines)


def test_what_is_done_is_said_and_what_is_not_newest_becomes_a_branch(here: Path, script: Script) -> None:
    assert script(*SMALL, "--epochs", "1").code == 0
    shutil.copyfile("checkpoints/best.pt", "early.pt")
    answer = script("--checkpoint", "checkpoints/best.pt", "--epochs", "1")
    assert (answer.code, answer.out) == (0, "1 of 1 epochs are done; give --epochs 2 to go on\n")
    assert script("--checkpoint", "checkpoints/last.pt", "--epochs", "2").code == 0
    answer = script("--checkpoint", "early.pt", "--epochs", "2")
    assert answer.code == 0, answer.err
    assert any(line.endswith("what was there is kept as " + str(here / "checkpoints/run.1")) for line in answer.lines)
    same_training(here / "checkpoints/run.1", here / "checkpoints/run")


def test_without_the_native_checkpoint_the_weights_are_used(here: Path, script: Script) -> None:
    assert script(*SMALL, "--epochs", "1").code == 0
    shutil.rmtree("checkpoints/run")
    answer = script("--checkpoint", "checkpoints/best.pt", "--epochs", "1")
    assert answer.code == 0, answer.err
    assert answer.out == "1 of 1 epochs are done; give --epochs 2 to go on\n"
    answer = script("--checkpoint", "checkpoints/best.pt", "--epochs", "2")
    assert answer.code == 0, answer.err
    assert "The native checkpoint of checkpoints/best.pt is gone; only its weights can be used" in answer.lines
    assert "Weights of checkpoints/best.pt; optimizer and position start anew" in answer.lines


def test_other_flags_with_checkpoint_are_refused_all_at_once(here: Path, script: Script) -> None:
    assert script(*SMALL, "--epochs", "1").code == 0
    words = ["--batch_size", "4", "--precision", "bf16", "--lr", "1e-4", "--savedir", "s", "--logdir", "l"]
    answer = script("--checkpoint", "checkpoints/best.pt", "--epochs", "2", *words)
    refused(answer, "train.batch_size: 8 in the run, 4 asked for", "train.precision: 'fp16'", lines=5)
    assert "optim.lr: " not in answer.err
    assert not (here / "s").exists()


def test_failing_to_begin_keeps_the_earlier_run(here: Path, script: Script) -> None:
    assert script(*SMALL, "--epochs", "1").code == 0
    before = sorted((here / "checkpoints").rglob("*"))
    refused(script(*SMALL, "--root_dir", "gone"), "Flickr8k directory not found: gone")
    assert sorted((here / "checkpoints").rglob("*")) == before


def test_the_demo_learns_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = typed("--demo", "--epochs", "1", "--set", "train.device=cpu", name=SOTA8GB)
    assert answer.code == 0, answer.err
    found = [re.fullmatch(r"R@1 (\w+) -> (\w+): ([\d.]+) \(chance ([\d.]+)\)", line) for line in answer.lines[-6:]]
    assert len({match.groups()[:2] for match in found if match}) == 6
    assert all(float(match[3]) > 2 * float(match[4]) for match in found if match)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["checkpoints", "runs"]
    assert (tmp_path / "checkpoints/demo/best.pt").is_file()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["MMT_Demo"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["demo"]


def test_the_demo_goes_on_with_what_it_was_begun_with(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's own values are for a new run: they are no changes to an earlier one."""
    monkeypatch.chdir(tmp_path)
    small = [word for size in (*SIZES, "data.options={variants: 3}") for word in ("--set", size)]
    answer = script("--demo", "--batch_size", "8", *small, "--set", "train.steps=1", name=SOTA8GB)
    assert answer.code == 0, answer.err
    answer = script("--demo", "--checkpoint", "checkpoints/demo/last.pt", name=SOTA8GB)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "1 of 1 steps are done; give --set train.steps=2 to go on\n"


def test_two_processes_make_one_run(here: Path, script: Script) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert script(*SMALL, "--epochs", "1", "--savedir", "one").code == 0
    shutil.copytree("one", "two")
    answer = typed("--checkpoint", "two/last.pt", "--epochs", "2", before=launcher)
    assert answer.code == 0, answer.err
    for line in ("Loading Flickr8k dataset from data/flickr8k...", "Train samples: 7", "Epochs: 2", "-" * 80):
        assert answer.lines.count(line) == 1
    assert script("--checkpoint", "one/last.pt", "--epochs", "2").code == 0
    ours, theirs = (torch.load(here / name / "last.pt", weights_only=True)["weights"] for name in ("one", "two"))
    # Sums in another order: the last bits of fp32, grown over five steps.
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_a_skipped_step_is_printed_as_what_it_was(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = resolved(script, monkeypatch)
    lines = importlib.import_module(FLICKR8K).Lines(start, guide.BestAndLast(here))
    lines.stepped(51, 0.51, {"lr/decay": 1.02e-4, "skipped_steps": 1.0})
    assert capsys.readouterr().out == "[Epoch 0 Step 50] loss=nan grad_norm=nan lr=1.02e-04\n"
