"""Every promise of the pmg guide about training: commands, folders, curves, going on; with small random models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from event_view import scalars
from pmg_scripts import FOLDER, HERE, MINE, make, run
from safetensors.torch import load_file
from script_runs import Answer, Script, answering

from sensorium.engine import checkpoint, loop, portable, portable_folder
from sensorium.families.pmg.model import PMGAdapter

OUT = Path("outputs/flickr")
FILES = {"model.safetensors", "config.json", "README.md", "model.json", "manifest.json"}
CURVES = ("train_loss", "val_loss", "learning_rate", "val_loss_caption_only", "val_loss_other_user")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A copy of the guide's folder in which its command was typed, and what it said; unchanged."""
    root = tmp_path_factory.mktemp("guide")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(root / "cache"))
        make(root / "pmg")
        patch.chdir(root / "pmg")
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert run(*MINE) == 0
    return root / "pmg", Answer(0, "\n".join(said), "")


@pytest.fixture
def here(trained: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of that one."""
    shutil.copytree(trained[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SENSORIUM_CACHE", str(trained[0].parent / "cache"))
    return tmp_path / "here"


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    return answering(lambda *words: run(*words, folder=Path.cwd()), capsys)


def refused(answer: Answer, *fragments: str) -> None:
    assert answer.code == 2, answer
    for fragment in fragments:
        assert fragment in answer.err, answer.err


def same_training(left: Path, right: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit, and so is the way there."""
    ours, theirs = (checkpoint.complete(one)[0][-1] for one in (left, right))
    assert ours.name == theirs.name
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        mine, others = load_file(ours / name), load_file(theirs / name)
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[key], others[key]) for key in mine)
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- what the command leaves


def test_the_output_tree(trained: tuple[Path, Answer]) -> None:
    out, said = trained[0] / OUT, trained[1].lines
    numbered = {f"checkpoint-{step}" for step in range(1, 7)}
    assert names(out) == {*numbered, "final_model", "logs", "samples", "run"}
    for name in (*numbered, "final_model"):
        assert names(out / name) == FILES
        tensors = adapter_of(out / name)
        assert set(tensors) == {f"adapter.{part}" for part in ("image_prompt_NH", "prefix_L2KPD", "mapping.weight", "mapping.bias")}  # fmt: skip  # noqa: E501
        bytes_of_adapter = sum(tensor.nbytes for tensor in tensors.values())
        assert sum(path.stat().st_size for path in (out / name).iterdir()) < bytes_of_adapter + 64 * 1024
    assert "val_loss" in (out / "checkpoint-2/README.md").read_text()
    native = load_file(out / "run/checkpoints/step_00000006" / checkpoint.WEIGHTS)
    final = adapter_of(out / "final_model")
    assert torch.equal(final["adapter.mapping.weight"], native["average.mapping/weight"])  # of the last step
    assert not torch.equal(final["adapter.mapping.weight"], native["adapter.mapping.weight"])
    read = dict(PMGAdapter.from_pretrained(out / "final_model").named_parameters())
    assert all(torch.equal(read[name.removeprefix("adapter.")], tensor) for name, tensor in final.items())
    assert names(out / "samples") == {"step_00000004", "step_00000006"}
    assert (out / "run/report.html").is_file()
    for line in (
        "Batch: 2 samples x 2 accumulated x 1 process = 4 a step; the learning rate is not scaled by it",
        "adapter: image prompt 64, prefix 128, mapping 1,056; 1,248 in all",
        "Warm-up: 0 steps, a tenth of all; training.lr_warmup_steps is 100",
        f"{OUT}: checkpoint-1, checkpoint-2, …, checkpoint-6, final_model; the run itself: {OUT}/run",
    ):
        assert line in said


def test_the_curves(trained: tuple[Path, Answer]) -> None:
    curves = scalars(trained[0] / OUT / "logs")
    assert curves is not None
    assert [step for step, _ in curves["train_loss"]] == list(range(1, 7))
    for name in CURVES[1:2] + CURVES[3:]:
        assert [step for step, _ in curves[name]] == [2, 4, 6]
    assert curves["learning_rate"][-1] == (6, 0.0)
    lines = [json.loads(line) for line in (trained[0] / OUT / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert [value for _, value in curves["train_loss"]] == pytest.approx(losses, rel=1e-6)


# --- going on


def test_resume_is_exact(trained: tuple[Path, Answer], here: Path, script: Script) -> None:
    """In the middle of an epoch, with accumulation, moving average and wrong pairs."""
    answer = script(*MINE, "--resume_from", str(OUT / "checkpoint-3"))
    assert answer.code == 0, answer.err
    assert f"Continuing {OUT}/run exactly at step 3 (epoch 1.5), as a branch in {OUT}/run" in answer.out
    assert "step 4/6" in answer.out
    assert "step 3/6" not in answer.out
    same_training(trained[0] / OUT / "run", here / OUT / "run")
    assert names(OUT) == {*names(trained[0] / OUT), "run.1"}
    for name in ("checkpoint-1", "checkpoint-6", "final_model"):
        ours, theirs = (adapter_of(one / OUT / name) for one in (here, trained[0]))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    before, now = (scalars(one / OUT / "logs") for one in (trained[0], here))
    assert before is not None
    assert now is not None
    assert all(now[name] == before[name] for name in CURVES)
    samples = [(one / OUT / "samples/step_00000006/user-0.png").read_bytes() for one in (here, trained[0])]
    assert samples[0] == samples[1]
    done = "3 of 3 epochs are done; give training.num_train_epochs: 6 to go on\n"
    for name in ("latest", str(OUT), str(OUT / "final_model")):
        assert script(*MINE, "--resume_from", name).out.endswith(done)


def test_latest_is_where_it_stopped(
    trained: tuple[Path, Answer], here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._step

    def step(*arguments: Any) -> dict[str, float]:
        if arguments[-1] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    words = (*MINE, "training.save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        answer = script(*words)
    assert answer.code == 130
    assert f"The earlier run is kept as {OUT}/run.1" in answer.out
    assert answer.err.endswith(f"To go on: --resume_from {OUT}\n")
    assert names(OUT) == {"checkpoint-2", "logs", "logs.1", "run", "run.1"}
    assert {"checkpoint-5", "final_model"} <= names(OUT / "run.1")  # of the earlier run
    assert script(*words, "training.resume_from=latest").code == 0
    same_training(trained[0] / OUT / "run", here / OUT / "run")
    assert names(OUT) >= {"checkpoint-2", "checkpoint-4", "checkpoint-6", "final_model"}


def test_other_batches_a_limit_and_another_folder(trained: tuple[Path, Answer], here: Path, script: Script) -> None:
    """The loss does not depend on how a step is accumulated, nor does the rate; pairs of checkpoints are pruned."""
    words = ["training.train_batch_size=4", "training.gradient_accumulation_steps=1"]
    more = ["training.output_dir=./my_custom_output", "training.checkpoints_total_limit=2"]
    answer = script(*MINE, *words, *more)
    assert answer.code == 0, answer.err
    mine = Path("my_custom_output")
    assert names(mine) == {"checkpoint-5", "checkpoint-6", "final_model", "logs", "samples", "run"}
    ours, theirs = (scalars(folder) for folder in (mine / "logs", trained[0] / OUT / "logs"))
    assert ours is not None
    assert theirs is not None
    assert ours["learning_rate"] == theirs["learning_rate"]
    values = [[value for _, value in one["train_loss"]] for one in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)  # sums of float32 in another order
    state = json.loads((mine / "run/checkpoints/step_00000006/state.json").read_text())
    assert names(mine / "run/checkpoints") == {f"step_{step:08d}" for step in {5, 6, state["best"]["step"]}}
    assert len(names(here / OUT / "run/checkpoints")) == 6  # negative twin: without a limit all are kept
    wanted = "training.train_batch_size 4 x training.gradient_accumulation_steps 1: the run has 2 x 2"
    refused(script(*MINE, *words, "--resume_from", str(OUT / "checkpoint-3")), wanted)


def test_an_adapter_alone_is_begun_with(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step at rate 0: what is written is what it began with."""
    shutil.rmtree(OUT / "run")
    monkeypatch.setattr(portable, "find_native", lambda found: None)  # the original of the copy is there
    alone = here / "alone"
    shutil.copytree(OUT / "checkpoint-3", alone)
    for name in ("model.json", "manifest.json"):
        (alone / name).unlink()
    short = ("training.num_train_epochs=0.5", "training.validation_image_users=0")
    for number, (path, line) in enumerate(
        (
            (alone, f"{alone} is an adapter alone: a new run begins with its weights, at step 0"),
            (
                OUT / "checkpoint-3",
                f"The native checkpoint of {OUT}/checkpoint-3 is gone; only its weights can be used",
            ),
        )
    ):
        answer = script(*MINE, *short, f"training.output_dir=warm{number}", "--resume_from", str(path))
        assert answer.code == 0, answer.err
        assert line in answer.out
        ours, theirs = adapter_of(Path(f"warm{number}/final_model")), adapter_of(alone)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- what is refused


def test_what_cannot_be_is_refused_in_words_of_the_guide(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ", ".join([*(f"checkpoint-{step}" for step in range(1, 7)), "final_model"])
    refused(
        script(*MINE, "--resume_from", str(OUT / "checkpoint-5000")),
        f"{OUT}/checkpoint-5000: no such folder; in {OUT} there is {there}; latest is where its run stopped",
    )
    refused(script(*MINE, "--resume_from", "datasets"), "datasets: is no checkpoint of this program")
    refused(script(*MINE, "training.output_dir=new", "--resume_from", "latest"), "new/run is not there")
    refused(script(), "--config FILE is missing; configs/flickr_train.yaml is one")
    refused(script("--confg", "x"), "--confg: unknown flag; did you mean --config?")
    config = ("--config", "configs/my_experiment.yaml")
    refused(script(*config, "--device", "gpu"), "--device gpu: expected cpu, cuda, cuda:1 or auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:0", "cuda:1"):
        refused(script(*config, "--device", name), f"--device {name}: visible GPUs: 0; take cpu or auto")
    refused(
        script(*MINE, "training.learnin_rate=1"), "training.learnin_rate: unknown key; did you mean 'learning_rate'?"
    )
    refused(script(*MINE, "pmg.image_size=65"), "image_size 65 must be a multiple of 64")
    refused(script(*MINE, "pmg.num_image_prompt=0", "training.output_dir=new"), "pmg.num_image_prompt is 0")
    refused(script(*MINE, "model.llama=./gone", "training.output_dir=new"), "give the local folder in model.llama")
    refused(
        script(*MINE, "dataset.train_json=gone.json", "training.output_dir=new"),
        "gone.json: cannot be read",
    )
    refused(
        script(*MINE, "training.train_batch_size=8", "training.output_dir=new"),
        "training.train_batch_size x gradient_accumulation_steps x processes is 16, but there are 8 training samples",
    )
    assert not Path("new").exists()


def test_one_gpu_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from pmg_scripts import modules

    with modules() as load:
        device_of = load("pmg_training").device_of
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        assert device_of("cuda", None) == {"device": "cuda"}
        assert device_of("cpu", 3) == {"device": "cpu", "processes": 3}
        with pytest.raises(Exception, match="--device cuda:2: visible GPUs: 2"):
            device_of("cuda:2", None)
        with pytest.raises(Exception, match="--device cuda:1 is one GPU, for one process"):
            device_of("cuda:1", 2)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
        assert device_of("cuda:1", None) == {"device": "cuda", "processes": 1}
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_checkpointing_of_gradients_is_ours(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's line in scripts/train.py; and the library's own switch, which would drop the prefix, is found."""
    path = here / "scripts/train.py"
    line = "# llama_model.gradient_checkpointing_enable()\n"
    assert path.read_text().count(line) == 1
    seen: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr("sensorium.guide.leads", lambda start: seen.append(start.config.model.gradient_checkpointing))
        patch.setattr("sensorium.guide.train", lambda *_: None)
        assert script(*MINE).code == 0
        path.write_text(path.read_text().replace(line, line.removeprefix("# ")))
        assert script(*MINE).code == 0
    assert seen == [False, True]
    from sensorium.families.pmg import task

    opened = task.open_trunk

    def switched(*arguments: Any) -> Any:
        trunk = opened(*arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of the library have another name for it
            trunk.gradient_checkpointing_enable()
        return trunk

    monkeypatch.setattr(task, "open_trunk", switched)
    refused(script(*MINE, "training.output_dir=new"), "set training.gradient_checkpointing=true instead")


def test_out_of_memory_names_the_cheapest_lever_first(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sensorium.guide.train", full)
    answer = script(*MINE, "pmg.pad_to=max", "pmg.image_size=256", "training.output_dir=new")
    assert answer.code == 1
    assert [line.split(":")[0] for line in answer.err.splitlines()[1:]] == [
        "  1. pmg.pad_to=longest",
        "  2. training.gradient_checkpointing=true",
        "  3. training.train_batch_size=1 training.gradient_accumulation_steps=4",
        "  4. training.mixed_precision=bf16",
        "  5. pmg.image_size=128",
    ]


def test_out_of_memory_in_training_says_what_was_foreseen(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sensorium.engine.loop._step", full)
    answer = script(*MINE, "training.output_dir=new")
    first, *ways = answer.err.splitlines()
    assert (answer.code, ways[0]) == (1, "  1. training.gradient_checkpointing=true: the same numbers, slower")
    assert first.startswith("error: out of memory with training.train_batch_size 2 (CUDA out of memory; foreseen: lang")
    assert " UNet 813 kB, " in first
    assert first.endswith(" in all)")


def test_the_launchers_file_is_the_guides(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    assert yaml.safe_load((FOLDER / "accelerate_config.yaml").read_text()) == {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_processes": 4,
        "mixed_precision": "bf16",
    }
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr("sensorium.guide.train", lambda *_: None)
    said = "Precision: fp32, as training.mixed_precision has it, not the launcher's bf16"
    assert said in script(*MINE, "training.output_dir=new").out
    assert said not in script(*MINE, "training.output_dir=new", "training.mixed_precision=bf16").out


def test_a_folder_of_the_guide_is_one_of_ours(trained: tuple[Path, Answer]) -> None:
    found = portable_folder.read(trained[0] / OUT / "checkpoint-3")
    assert (found.head.step, found.head.epoch) == (3, 1.5)
    assert HERE == ("--device", "cpu")
