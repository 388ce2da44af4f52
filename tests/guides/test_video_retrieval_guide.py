"""Every promise of the video retrieval guide about training: commands, modes, files, snippets; with a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from retrieval_scripts import FOLDER, HERE, MINE, make_data, modules, my_config, run
from safetensors.torch import load_file
from script_runs import Script, answering

from sensorium.engine import checkpoint, loop, portable, session
from sensorium.engine.seeds import reseed
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.families.video_retrieval import FAMILY
from sensorium.families.video_retrieval.data import Media

OUT = Path("checkpoints/unified_model")


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the guide's folder in which its first commands were typed, and what they said; nobody changes it."""
    folder = tmp_path_factory.mktemp("guide") / "video_retrieval"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    make_data(folder / "data")
    mine = shutil.copy(folder / "configs/training_config.json", folder / "configs/my_training_config.json")
    mine.write_text(my_config(mine.read_text()))
    command = [sys.executable, "train_unified_model.py", *MINE, "--mode", "joint", "--seed", "42", *HERE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def here(joint: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of that one."""
    shutil.copytree(joint[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    def without_gpu(*words: str, name: str = "train_unified_model") -> int:
        return run(*words, *(HERE if name == "train_unified_model" else ()), name=name)

    return answering(without_gpu, capsys)


@pytest.fixture
def load() -> Iterator[Any]:
    with modules() as found:
        yield found


def weights(name: str, folder: Path = OUT) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / name)["model_state_dict"]
    return found


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], part: str = "") -> bool:
    names = [name for name in left if name.startswith(part)]
    assert names
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in names)


def same_training(left: Path, right: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit, and so is the way there."""
    ours, theirs = (checkpoint.complete(one)[0][-1] for one in (left, right))
    assert ours.name == theirs.name
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        assert equal(load_file(ours / name), load_file(theirs / name))
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()


# --- the first commands, and what they leave


def test_the_output_tree(joint: tuple[Path, str]) -> None:
    folder, said = joint[0] / OUT, joint[1]
    epochs = {f"checkpoint_epoch_{n}.pth" for n in (2, 3)}  # every second one, and the last
    others = {"best_model.pth", "final_model.pth", "checkpoint_last.pth", "config.json", "logs", "run"}
    assert {path.name for path in folder.iterdir()} == epochs | others
    assert not list(folder.rglob("*.tmp"))
    config = json.loads((folder / "config.json").read_text())
    assert (config["training"]["num_epochs"], config["model"]["clip"]) == (3.0, "random:tiny")
    for line in (
        "precision: fp32 (training.amp is for GPUs)",
        "mode joint; epochs: 3; stages: joint until step 6",
        "Batch: 4 videos meet in one loss, 3 negatives each",
        "`sensorium train video_retrieval --preset tempme_paper` and stop_paper hold the published recipes",
        "lr/tempme 3.0e-03  lr/stop 1.0e-03",
    ):
        assert line in said
    assert "wins over" not in said


def test_the_guides_curves(joint: tuple[Path, str]) -> None:
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(joint[0] / OUT / "logs"))
    reader.Reload()
    curves = {tag: [event.step for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    for tag in ("train/loss", "train/tempme_loss", "train/stop_loss", "lr/tempme", "lr/stop", "grad_norm"):
        assert curves[tag] == [1, 2, 3, 4, 5, 6], tag
    for tag in ("val/loss", "val/t2v_R1", "val/t2v_R10", "val/v2t_R5", "val/t2v_MdR", "val/r_sum"):
        assert curves[tag] == [2, 4, 6], tag
    assert not [tag for tag in curves if tag in ("train/grad_norm", "val/t2v/R@1")]


def test_the_files_load_with_torch_alone(joint: tuple[Path, str], load: Any) -> None:
    found = {path.stem: torch.load(path) for path in (joint[0] / OUT).glob("*.pth")}
    assert {(one["mode"], tuple(one["active_parts"])) for one in found.values()} == {("joint", ("stop", "tempme"))}
    assert {name: one["epoch"] for name, one in found.items() if "epoch" in name} == {
        "checkpoint_epoch_2": 2.0,
        "checkpoint_epoch_3": 3.0,
    }
    best = found["best_model"]
    assert best["metrics"]["r_sum"] == best["run"]["value"]
    assert all("optim" not in name for name in best)
    created = load("unified_model").create_unified_model(load("config").UnifiedModelConfig.from_dict(best["config"]))
    # The trained parts and nothing of CLIP.
    trained = {name for name, parameter in created.named_parameters() if parameter.requires_grad}
    assert best["model_state_dict"].keys() == trained
    assert {name.split(".")[0] for name in trained} == {"tempme", "stop"}
    assert not created.load_state_dict(best["model_state_dict"], strict=False).unexpected_keys
    loaded = load("unified_model").load_unified_model(joint[0] / OUT / "best_model.pth")
    assert equal(loaded.state_dict(), created.state_dict())


def test_an_opened_file_needs_the_clip_that_it_was_trained_upon(
    joint: tuple[Path, str], load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unified = load("unified_model")
    create = unified.create_unified_model

    def other(*given: Any) -> Any:
        model = create(*given)
        with torch.no_grad():
            model.clip.text.words.weight[0, 0] += 1
        return model

    monkeypatch.setattr(unified, "create_unified_model", other)
    with pytest.raises(CheckpointError, match="the frozen weights are not those"):
        unified.load_unified_model(joint[0] / OUT / "best_model.pth")


# --- going on


def test_resume_is_exact(joint: tuple[Path, str], here: Path, script: Script) -> None:
    answer = script(*MINE, "--mode", "joint", "--resume", str(OUT / "checkpoint_epoch_2.pth"))
    assert answer.code == 0, answer.err
    assert f"Continuing {OUT}/run exactly at step 4 (epoch 2), as a branch in {OUT}/run" in answer.out
    assert "[joint] epoch 3.00 step 6/6" in answer.out
    assert "Validation after epoch 2.00" not in answer.out
    same_training(joint[0] / OUT / "run", here / OUT / "run")
    assert equal(weights("final_model.pth"), weights("final_model.pth", joint[0] / OUT))
    assert (OUT / "run.1/checkpoint_epoch_3.pth").exists()


def test_a_longer_run_goes_on_in_place_and_says_what_changes(here: Path, script: Script) -> None:
    answer = script("--resume", str(OUT / "final_model.pth"), "training.num_epochs=4")
    assert answer.code == 0, answer.err
    assert f"Continuing {OUT}/run exactly at step 6 (epoch 3)\n" in answer.out
    assert "Not bit-exact from here: the cosine schedule ends elsewhere" in answer.lines
    assert (OUT / "checkpoint_epoch_4.pth").exists()
    answer = script("--resume", str(OUT / "final_model.pth"))
    assert answer.out == "4 of 4 epochs are done; give training.num_epochs=8 to go on\n"


def test_without_the_run_the_weights_are_used(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights("checkpoint_epoch_2.pth")
    shutil.rmtree(OUT / "run")
    monkeypatch.setattr(portable, "find_native", lambda found: None)  # the original of the copy is there
    file = OUT / "checkpoint_epoch_2.pth"
    answer = script("--resume", str(file), "training.num_epochs=2.5", "train.grad_clip=1e-30")
    assert answer.code == 2
    assert "train.grad_clip: 1.0 in the run, 1e-30 asked for" in answer.err
    answer = script("--resume", str(file), "training.num_epochs=2.5")
    assert answer.code == 0, answer.err
    assert f"The native checkpoint of {file} is gone; only its weights can be used" in answer.lines
    assert f"Weights of {file}; optimizer and position start anew" in answer.lines
    assert "step 1/5" in answer.out
    assert not equal(weights("checkpoint_epoch_2.pth"), before)
    assert equal(weights("started_from.pth"), before)


def test_another_mode_begins_a_new_run_with_the_weights(joint: tuple[Path, str], here: Path, script: Script) -> None:
    before = weights("best_model.pth")
    file = str(OUT / "best_model.pth")
    answer = script(*MINE, "--mode", "tempme_only", "--resume", file, "training.num_epochs=1")
    assert answer.code == 0, answer.err
    assert "--mode tempme_only wins over training.training_mode joint" in answer.lines
    assert (
        f"{file} was trained in mode joint; mode tempme_only begins a new run with its weights at step 0"
        in answer.lines
    )
    assert f"Weights of {file}; optimizer and position start anew" in answer.lines
    assert "lr/stop" not in answer.out
    after = torch.load(OUT / "final_model.pth")
    assert (after["mode"], after["active_parts"]) == ("tempme_only", ["stop", "tempme"])
    assert equal(after["model_state_dict"], before, "stop.")  # active and frozen
    assert not equal(after["model_state_dict"], before, "tempme.")
    assert equal(weights("started_from.pth"), before)
    assert (OUT / "run.1/final_model.pth").exists()
    assert not (OUT / "checkpoint_epoch_3.pth").exists()
    loaded = session.open_run(FAMILY, OUT / "run")
    assert loaded.task.model.active_parts == {"stop", "tempme"}
    with modules() as load:
        model = load("unified_model").load_unified_model(OUT / "final_model.pth")
    assert model.active_parts == {"stop", "tempme"}  # not those of its mode alone


def test_what_a_run_learns_cannot_be_changed(here: Path, script: Script) -> None:
    words = ("training.stop_lr=1e-4", "training.batch_size=2", "data.sampling=fps", "training.save_every_epochs=1")
    answer = script("--resume", str(OUT / "checkpoint_epoch_2.pth"), *words)
    assert answer.code == 2
    assert answer.err.splitlines()[1:4] == [
        "  data.sampling: 'segments' in the run, 'fps' asked for",
        "  training.batch_size: 4 in the run, 2 asked for",
        "  training.stop_lr: 0.001 in the run, 0.0001 asked for",
    ]
    assert "train.warm_start=" in answer.err
    assert not (OUT / "run.1").exists()


def test_ctrl_c_leaves_a_way_on(joint: tuple[Path, str], here: Path, script: Script, monkeypatch: Any) -> None:
    shutil.rmtree(OUT)
    original = loop._step

    def step(*arguments: Any) -> dict[str, float]:
        if arguments[-1] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        answer = script(*MINE)
    assert answer.code == 130
    assert answer.err.endswith(f"To go on: --resume {OUT}/checkpoint_last.pth\n")
    assert script("--resume", str(OUT / "checkpoint_last.pth")).code == 0
    same_training(joint[0] / OUT / "run", here / OUT / "run")


# --- modes


def test_single_parts_and_sequential(here: Path, script: Script) -> None:
    """From scratch a part alone is what it is alone; the first stage of both is the first part alone."""
    found, said = {}, {}
    for mode, epochs in (("tempme_only", 1), ("stop_only", 1), ("sequential", 2)):
        words = (f"training.num_epochs={epochs}", f"training.checkpoint_dir={mode}", "evaluate.test=false")
        answer = script(*MINE, "--mode", mode, *words)
        assert answer.code == 0, answer.err
        said[mode], found[mode] = answer.out, torch.load(f"{mode}/final_model.pth")
    found["first"] = torch.load("sequential/checkpoint_epoch_1.pth")
    assert {name: (one["stage"], one["active_parts"]) for name, one in found.items()} == {
        "tempme_only": ("tempme_only", ["tempme"]),
        "stop_only": ("stop_only", ["stop"]),
        "first": ("tempme", ["tempme"]),
        "sequential": ("stop", ["stop", "tempme"]),
    }
    assert "stop_loss" not in said["tempme_only"]  # without STOP there are no slots
    assert "stop_loss" in said["stop_only"]
    told = {mode: re.findall(r"Parameters: ([\d,]+) trainable", out)[0] for mode, out in said.items()}
    counts = {mode: int(count.replace(",", "")) for mode, count in told.items()}
    assert counts["tempme_only"] + counts["stop_only"] == counts["sequential"]
    assert min(counts.values()) > 1000
    tensors = {name: one["model_state_dict"] for name, one in found.items()}
    assert equal(tensors["first"], tensors["tempme_only"])  # bit for bit; its prompters are untouched
    assert equal(tensors["sequential"], tensors["first"], "tempme.")  # frozen in the second stage
    assert not equal(tensors["sequential"], tensors["first"], "stop.")
    assert not equal(tensors["stop_only"], tensors["tempme_only"], "stop.")
    assert not equal(tensors["stop_only"], tensors["tempme_only"], "tempme.")
    lines = [json.loads(line) for line in Path("sequential/run/metrics.jsonl").read_text().splitlines()]
    rates = [(line["stage"], line.get("lr/tempme"), line.get("lr/stop")) for line in lines if line["kind"] == "train"]
    assert rates == [("tempme", 3e-3, None), ("tempme", 0.0, None), ("stop", None, 1e-3), ("stop", None, 0.0)]


# --- from Python


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), flags=re.DOTALL)


def test_every_snippet_of_the_readme(
    here: Path, load: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "snippets"}
    pieces = [text for text in snippets() if not text.startswith("# distributed")]
    assert len(pieces) == 5
    config = load("config").UnifiedModelConfig
    # CPU, and no worker processes, wherever the tests run.
    trainers = load("trainer")
    quick = {"train": {"device": "cpu"}, "loader": {"workers": 0}}
    usual = trainers.UnifiedModelTrainer.__init__

    def begin(self: Any, *given: Any, **named: Any) -> None:
        usual(self, *given, settings=quick, **named)

    monkeypatch.setattr(trainers.UnifiedModelTrainer, "__init__", begin)
    exec(pieces[0], names)
    metrics, trainer = names["metrics"], names["trainer"]
    found = trainer.evaluate(trainer.test_dataloader)
    assert {name: metrics[name] for name in found} == pytest.approx(found)
    assert {"t2v_R1", "v2t_R10", "t2v_MdR", "r_sum"} <= found.keys()
    exec(pieces[1], names)
    clip = load("unified_model").create_unified_model(config.from_json("configs/my_training_config.json")).clip
    assert equal(names["model"].clip.state_dict(), clip.state_dict())  # neither moved nor decayed
    moved = names["model"].tempme.vision[0].up.detach().clone()
    assert moved.any()
    exec(pieces[2], names)
    assert not torch.equal(moved, names["model"].tempme.vision[0].up.cpu())
    capsys.readouterr()
    exec(pieces[3], names)
    assert "CustomUnifiedModel.compute_training_loss knows no groups" in capsys.readouterr().out
    line = json.loads((OUT / "run/metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(line["tempme_loss"] + line["stop_loss"] + line["custom_loss"])
    exec(pieces[4], names)
    assert equal(names["model"].state_dict(), names["same"].state_dict())


def test_an_own_class_with_parameters_of_its_own(here: Path, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = load("unified_model").UnifiedTempMeSTOPModel
    trainers = load("trainer")

    class Own(base):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.pull = torch.nn.Linear(1, 1)

        def loss_from_features(self, video: Any, text: Any, groups: Any) -> dict[str, torch.Tensor]:
            losses = super().loss_from_features(video, text, groups)
            losses["pull_loss"] = self.pull(text.mean()[None]).square().sum()
            return {**losses, "total_loss": losses["total_loss"] + losses["pull_loss"]}

    config = load("config").UnifiedModelConfig.from_json("configs/my_training_config.json")
    config = config.changed(
        {"training": {"num_epochs": 1, "gradient_accumulation_steps": 2, "scheduler": "constant"}}, "test"
    )
    settings = {"train": {"device": "cpu"}, "loader": {"workers": 0}, "evaluate": {"test": False}}
    trainer = trainers.UnifiedModelTrainer(config, Own, settings=settings)
    metrics = trainer.train()
    assert metrics["t2v_R1"] == trainer.evaluate(trainer.val_dataloader)["t2v_R1"]  # there was no test: validation
    said = capsys.readouterr().out
    assert "knows no groups" not in said
    assert "Batch: 8 videos meet in one loss, 7 negatives each; 2 parts" in said
    line = json.loads((OUT / "run/metrics.jsonl").read_text().splitlines()[0])
    assert {"pull_loss", "lr/own", "lr/own_no_decay"} <= line.keys()
    reseed(42, "weights")
    fresh = Own(session.read_config(FAMILY, OUT / "run").model)
    assert not torch.equal(fresh.pull.weight, trainer.model.pull.weight.cpu())
    # Nobody opens it as what it is not.
    with pytest.raises(CheckpointError, match="a model of class Own; give model_class=Own"):
        load("unified_model").load_unified_model(OUT / "final_model.pth")
    with pytest.raises(ConfigError, match="a model of class Own; model_class is UnifiedTempMeSTOPModel"):
        trainers.UnifiedModelTrainer(config, resume=OUT / "final_model.pth")
    with pytest.raises(CheckpointError, match="this run trained a model of its own class, Own"):
        session.open_run(FAMILY, OUT / "run")


def test_an_own_loss_of_single_parts_is_refused(here: Path, load: Any) -> None:
    base = load("unified_model").UnifiedTempMeSTOPModel
    trainer = load("trainer").UnifiedModelTrainer

    class Own(base):  # type: ignore[misc, valid-type]
        def compute_training_loss(self, *given: Any) -> dict[str, torch.Tensor]:
            return dict(super().compute_training_loss(*given))

    config = load("config").UnifiedModelConfig.from_json("configs/my_training_config.json")
    parts = config.changed({"training": {"gradient_accumulation_steps": 2}}, "test")
    with pytest.raises(ConfigError, match=r"override loss_from_features\(video, text, groups\) instead"):
        trainer(parts, Own)
    trainer(config, Own)
    trainer(parts.changed({"contrastive": {"negatives": "micro"}}, "test"), Own)


def test_batches_of_five(here: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("config").UnifiedModelConfig.from_json("configs/my_training_config.json")
    trainer = load("trainer").UnifiedModelTrainer(
        config, settings={"train": {"device": "cpu"}, "loader": {"workers": 0}}
    )
    train = trainer.train_dataloader
    seeds: list[int | None] = []
    video = Media.video
    monkeypatch.setattr(Media, "video", lambda self, part, seed: seeds.append(seed) or video(self, part, seed))
    epochs = [list(train), list(train)]
    assert len(set(seeds)) == 16  # other instants each time
    assert [len(batches) for batches in epochs] == [len(train)] * 2 == [2, 2]
    for batch in epochs[0]:
        assert type(batch) is tuple
        assert [tuple(one.shape) for one in batch] == [(4, 8, 3, 32, 32), (4, 8), (4, 40), (4, 40), (4, 40)]
        assert (batch[0].dtype, int(batch[4].sum())) == (torch.uint8, 0)
    orders = [torch.cat([batch[2] for batch in batches]) for batches in epochs]
    assert not torch.equal(*orders)
    assert torch.equal(*(torch.unique(order, dim=0) for order in orders))  # each epoch holds all of them
    seeds.clear()
    held = [list(trainer.val_dataloader) for _ in range(2)]
    assert set(seeds) == {None}  # always the same ones
    assert all(torch.equal(*pair) for pair in zip(held[0][1], held[1][1], strict=True))
    assert (trainer.sources.test.opened, len(held[0])) == (0, 2)
    found = trainer.evaluate(held[0])
    assert trainer.evaluate([*held[0], held[0][0]]) == pytest.approx(found)  # a padded batch changes nothing
    assert found["r_sum"] < 600
    for wrong in ([held[0][0][:4]], [], [dict(enumerate(held[0][0]))]):
        with pytest.raises(DataError, match=r"a batch is five tensors|nothing to evaluate"):
            trainer.evaluate(wrong)


# --- several processes

RANKS = """
import os, socket, sys
from importlib import import_module
sys.path.insert(0, os.getcwd())
import accelerate, torch
from sensorium import errors
from sensorium.engine import loop, report_data
for name in ("trainer", "train_unified_model"):
    import_module(name)

def fork(source):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(port), ACCELERATE_USE_CPU="1")
            code = 1
            try:
                errors.shown(lambda: exec(source, {"__name__": "ranks"}))
                code = 0
            except SystemExit as left:
                code = left.code
            finally:
                sys.stdout.flush()
                os._exit(code or 0)
        ranks.append(child)
    return [os.waitpid(child, 0)[1] for child in ranks]

for source in sys.argv[1:]:
    print("codes", *fork(source), flush=True)
"""


# The second one decides from a file while the first one would like to have it put aside.
LATE = """
import os, time
from sensorium import guide
pause, write = iter([2.0]), guide.EpochFiles.write
if os.environ["RANK"] == "1":
    time.sleep(1.5)
else:
    guide.EpochFiles.write = lambda files, saved: (time.sleep(next(pause, 0)), write(files, saved))
"""


def test_two_processes_train_as_one(here: Path, script: Script) -> None:
    """As torchrun starts them; and the README's loop by hand."""
    words = ["train_unified_model.py", *MINE, *HERE, "training.checkpoint_dir=two", "training.num_epochs=1"]
    train = f"import sys, train_unified_model as t\nsys.argv = {words}\nt.main()"
    by_hand = next(text for text in snippets() if text.startswith("# distributed"))
    by_hand = by_hand.replace("UnifiedModelTrainer(config)", "UnifiedModelTrainer(config, settings=QUICK)")
    quick = {"train": {"device": "cpu"}, "loader": {"workers": 0}}
    by_hand = by_hand.replace("for batch in", "seen = []\nfor batch in")
    by_hand = by_hand.replace("    optimizer.step()", "    seen.append(batch[2])\n    optimizer.step()")
    kept = "(torch.cat([p.detach().flatten() for p in model.parameters()]), torch.cat(seen))"
    by_hand = by_hand.replace("dist.destroy", f"torch.save({kept}, f'state.{{dist.get_rank()}}')\ndist.destroy")
    words = ["train_unified_model.py", *MINE, *HERE, "--resume", str(OUT / "checkpoint_epoch_2.pth")]
    words += ["train.timeout_minutes=1"]
    late = f"import sys, train_unified_model as t\nsys.argv = {words}\n{LATE}\nt.main()"
    command = [sys.executable, "-c", RANKS, train, f"QUICK = {quick}\n{by_hand}", late]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.count("codes 0 0") == 3, done.stderr
    assert f"Continuing {OUT}/run exactly at step 4 (epoch 2), as a branch in {OUT}/run" in done.stdout
    assert "Processes: 1 until now, 2 from here" in done.stdout
    assert done.stdout.count("Batch: 8 videos meet in one loss, 7 negatives each") == 1
    answer = script(*MINE, "training.checkpoint_dir=one", "training.num_epochs=1", "training.batch_size=8")
    assert answer.code == 0, answer.err
    one, two = (weights("final_model.pth", Path(name)) for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    ways = [Path(name, "run/metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in lines if '"train"' in line] for lines in ways]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    states, rows = zip(*(torch.load(f"state.{rank}") for rank in range(2)), strict=True)
    assert torch.equal(*states)
    assert [len(one) for one in rows] == [4, 4]
    assert len(torch.unique(torch.cat(rows), dim=0)) == 8  # each has its share


# --- pictures


def test_show_merging(joint: tuple[Path, str], here: Path, script: Script) -> None:
    words = ("--checkpoint", str(OUT / "best_model.pth"), "--video", "data/test/videos/1.mp4")
    answer = script(*words, "--out", "merge.png", name="show_merging")
    assert (answer.code, answer.out) == (0, "merge.png: 1.mp4\n")
    with Image.open("merge.png") as picture:
        assert min(picture.size) > 1000  # eight frames, six columns
        assert len(picture.convert("RGB").getcolors(10**7)) > 50
    for given, said in (
        (words[:2], "--video is missing"),
        (("--checkpoint", "configs/my_training_config.json", *words[2:]), "damaged, or holds more than tensors"),
        ((*words[:2], "--video", "none.mp4"), "none.mp4"),
        ((*words, "--out", "merge.gif"), "name a .png"),
    ):
        answer = script(*given, name="show_merging")
        assert (answer.code, len(answer.err.splitlines())) == (2, 1)
        assert said in answer.err
