"""Every promise of the climate-text guide about training: commands, keys, files, snippets; with small models."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from climate_scripts import DATA, FOLDER, HERE, MINE, OUT, modules, my_config, run
from safetensors.torch import load_file, save_file
from script_runs import Answer, Script, answering

import sensorium
from sensorium import families, stored
from sensorium.data.fields import tree
from sensorium.engine import checkpoint, loop, portable_folder, session
from sensorium.errors import CheckpointError, RunError
from sensorium.families.climate_text.model import ClimateTextFusion

EPOCH = OUT / "checkpoint_epoch_1"
QUESTION = "Where is the strongest anomaly?"
FILES = {
    *("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "tokenizer", "config.yaml"),
    *("model.safetensors", "model.json", "manifest.json"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A copy of the guide's folder in which its first commands were typed, and what the last said; unchanged."""
    folder = tmp_path_factory.mktemp("guide") / "climate_text"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "config.yaml"
    config.write_text(my_config(config.read_text()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*DATA, name="prepare_data") == 0
        assert run("--output_dir", "data/training", "--validate_only", name="prepare_data") == 0
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert run(*MINE) == 0
    return folder, Answer(0, "\n".join(said), "")


@pytest.fixture
def here(trained: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of that one."""
    shutil.copytree(trained[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    def here_or_there(*words: str) -> int:
        return run(*words, folder=None if Path("train_multimodal.py").exists() else FOLDER)

    return answering(here_or_there, capsys)


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


# --- the first commands, and what they leave


def test_the_output_tree(trained: tuple[Path, Answer]) -> None:
    folder, said = trained
    out = folder / OUT
    assert {path.name for path in out.iterdir()} == {
        "checkpoint_epoch_1",
        "checkpoint_epoch_2",
        "best.json",
        "latest",
        "run",
    }
    assert {path.name for path in (out / "checkpoint_epoch_1").iterdir()} == FILES
    assert (out / "latest").read_text() == "checkpoint_epoch_2\n"
    best = json.loads((out / "best.json").read_text())
    losses = {line["step"]: line["metrics"]["loss"] for line in _metrics(out / "run") if line["kind"] == "val"}
    assert (best["tag"], best["loss"]) == min(
        ((f"checkpoint_epoch_{step // 2}", loss) for step, loss in losses.items()), key=lambda one: one[1]
    )
    log = (folder / "logs/training.log").read_text().splitlines()
    assert said.lines[0] == "1 node x 1 process: 2 samples x 2 parts x 1 = 4 samples a step"
    assert said.lines[1] == "DeepSpeed: not used; zero_stage and cpu_offload do nothing without it"
    assert set(said.lines[:2]) <= set(log)
    assert any(line.startswith("step 4/4  epoch 2.00") for line in log)
    assert any(re.match(r"epoch 2\.00 step 4/4  loss [\d.]+  lr 3\.00e-04", line) for line in said.lines)
    assert "Warm-up: 0 steps, a tenth of all; training.warmup_steps is 100" in log
    assert (out / "run/report.html").is_file()


def _metrics(run_folder: Path) -> Iterator[dict[str, Any]]:
    for line in (run_folder / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_the_files_load_with_torch_alone(trained: tuple[Path, Answer]) -> None:
    folder = trained[0] / EPOCH
    model = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
    optimizer = torch.load(folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", weights_only=True)
    assert model["format"] == optimizer["format"] == "sensorium-plain"
    assert (model["step"], model["epoch"]) == (2, 1.0)
    weights = load_file(folder / "model.safetensors")
    assert model["module"].keys() == weights.keys()
    assert all(torch.equal(model["module"][name], weights[name]) for name in weights)
    assert not [name for name in weights if name.startswith("model.llm.")]  # frozen
    assert {name.rpartition("/")[0] for name in optimizer["optimizer"]} == set(weights)
    text = (folder / "config.yaml").read_text()
    assert text.startswith(
        "# language model: random:tiny\n# climate encoder: grid_vit\n# sha256 of all frozen weights: "
    )
    content = yaml.safe_load(text)
    assert (content["training"]["batch_size"], content["model"]["llama_model_name"]) == (2, "random:tiny")


# --- opening it


def test_from_pretrained_gives_the_trained_model(here: Path) -> None:
    with modules(here) as load:
        fusion = load("multimodal.core.climate_text_fusion").ClimateTextFusion
        assert fusion is ClimateTextFusion
        models = [fusion.from_pretrained(str(path)) for path in (OUT / "checkpoint_epoch_2", OUT, OUT / "run")]
    trained = sensorium.load(OUT / "run")
    file = "data/training/val/climate_00001.pt"
    batch = trained._batch(QUESTION, trained.field(file), "It lies in the north.")
    with torch.no_grad():
        expected = trained.model.logits(batch)
        for model in models:
            assert not model.training
            assert torch.equal(model.logits(batch), expected)
        first = fusion.from_pretrained(EPOCH)
        assert not torch.equal(first.logits(batch), expected)
    assert models[0].answer(file, QUESTION) == trained.answer(QUESTION, file)
    hidden, mean = models[0].features(batch)
    assert (hidden.shape[2], mean.shape) == (128, (1, 128))
    shutil.rmtree(OUT / "run")
    (EPOCH / "model.safetensors").unlink()
    (EPOCH / "manifest.json").unlink()  # the names of DeepSpeed alone
    with torch.no_grad():
        assert torch.equal(fusion.from_pretrained(EPOCH).logits(batch), first.logits(batch))


def test_from_pretrained_is_strict(here: Path) -> None:
    weights = load_file(EPOCH / "model.safetensors")
    name = next(iter(weights))
    with pytest.raises(CheckpointError, match=r"no model: model.json with .* were sought; there is channels.json"):
        ClimateTextFusion.from_pretrained("data/training")
    damaged = OUT / "damaged"
    shutil.copytree(EPOCH, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):  # and the other file is no way out
        ClimateTextFusion.from_pretrained(damaged)
    (damaged / "manifest.json").unlink()
    for changed in (
        {**weights, f"module.{name}": weights[name].clone()},
        {k: v for k, v in weights.items() if k != name},
    ):
        (damaged / "model.safetensors").unlink()
        save_file(changed, damaged / "model.safetensors")
        with pytest.raises(CheckpointError, match="does not fit the model of this configuration"):
            ClimateTextFusion.from_pretrained(damaged)
    llm = ClimateTextFusion.from_pretrained(EPOCH).llm
    with torch.no_grad():
        llm.get_input_embeddings().weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="the frozen weights are not those"):
        ClimateTextFusion.from_pretrained(EPOCH, llm=llm)
    assert ClimateTextFusion.from_pretrained(EPOCH, llm=llm, allow_other_base=True).llm is llm


# --- going on


def test_resume_is_exact(trained: tuple[Path, Answer], here: Path, script: Script) -> None:
    answer = script("--resume", str(EPOCH), *HERE)
    assert answer.code == 0, answer.err
    assert f"Continuing {OUT}/run exactly at step 2 (epoch 1), as a branch in {OUT}/run" in answer.out
    assert "epoch 2.00 step 4/4" in answer.out
    assert "Validation after epoch 1.00" not in answer.out
    same_training(trained[0] / OUT / "run", here / OUT / "run")
    assert (OUT / "run.1/checkpoint_epoch_2/model.safetensors").is_file()  # what stood there
    assert {path.name for path in OUT.glob("checkpoint_*")} == {"checkpoint_epoch_1", "checkpoint_epoch_2"}
    assert portable_folder.read(OUT / "checkpoint_epoch_2").head.step == 4
    answer = script("--resume", str(OUT / "checkpoint_epoch_2"), *HERE)
    assert answer.out.endswith("2 of 2 epochs are done; give training.epochs=4 to go on\n")


def test_a_longer_run_goes_on_in_place(here: Path, script: Script) -> None:
    answer = script("--resume", str(OUT), *HERE, "--training.epochs=3")
    assert answer.code == 0, answer.err
    assert "epoch 3.00 step 6/6" in answer.out
    assert (OUT / "latest").read_text() == "checkpoint_epoch_3\n"
    answer = script("--resume", str(EPOCH), *HERE, "training.learning_rate=1e-3", "training.max_grad_norm=2")
    refused(answer, "training.max_grad_norm: 1.0 in the run, 2.0 asked for", "train.warm_start=")


def test_without_the_run_the_weights_are_used(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(OUT / "run")
    monkeypatch.setattr(
        "sensorium.engine.portable.find_native", lambda found: None
    )  # the original of the copy is there
    kept = OUT / "kept"
    shutil.copytree(EPOCH, kept)
    answer = script("--resume", str(kept), *HERE, "training.epochs=1.5")
    assert answer.code == 0, answer.err
    assert f"The native checkpoint of {kept} is gone; only its weights can be used" in answer.lines
    assert f"Weights of {kept}; optimizer and position start anew" in answer.lines


# --- values


def resolved(script: Script, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The run's settings of a command line, without a run."""
    found: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("sensorium.guide.leads", lambda start: found.append(start) or False)
        patch.setattr("sensorium.guide.train", lambda *_: None)
        answer = script(*words)
    assert answer.code == 0, answer.err
    content: dict[str, Any] = found[0].config.model_dump(mode="json")
    return content


WANTED: dict[str, tuple[object, str, object]] = {
    "model.llama_model_name": ("random:tiny", "model.llm", "random:tiny"),
    "model.prithvi_encoder_path": ("w.pt", "model.encoder_path", "w.pt"),
    "model.freeze_prithvi": (False, "model.freeze_encoder", False),
    "model.fusion_mode": ("add", "model.fusion_mode", "add"),
    "model.num_fusion_layers": (2, "model.num_fusion_layers", 2),
    "model.lora.rank": (4, "model.lora.rank", 4),
    "data.train_path": ("elsewhere", "data.train_path", "elsewhere"),
    "data.val_path": ("elsewhere", "data.val_path", "elsewhere"),
    "data.num_workers": (5, "loader.workers", 5),
    "data.pin_memory": (False, "loader.pin_memory", False),
    "data.time_policy": ("repeat", "data.time_policy", "repeat"),
    "training.epochs": (3, "train.epochs", 3.0),
    "training.batch_size": (8, "train.batch_size", 32),
    "training.gradient_accumulation_steps": (2, "train.micro_batches", 2),
    "training.learning_rate": ("1e-4", "optim.lr", 1e-4),
    "training.warmup_steps": (7, "schedule.warmup_steps", 7),
    "training.max_grad_norm": (0.5, "train.grad_clip", 0.5),
    "training.objective": ("pooled_mse_legacy", "model.objective", "pooled_mse_legacy"),
    "training.schedule": ("constant", "schedule.name", "constant"),
    "training.weight_decay": (0.1, "optim.weight_decay", 0.1),
    "training.seed": (3, "seed", 3),
    "training.save_total_limit": (3, "checkpoint.keep", 3),
    "training.activation_checkpointing": ("every_2", "model.activation_checkpointing", "every_2"),
    "deepspeed.enabled": (True, "deepspeed.enabled", True),
    "deepspeed.zero_stage": (3, "deepspeed.zero_stage", 3),
    "deepspeed.cpu_offload": (True, "deepspeed.cpu_offload", True),
    "deepspeed.gradient_checkpointing": (False, "model.gradient_checkpointing", False),
    "wandb.project": ("mine", "track.wandb_project", "mine"),
    "wandb.entity": ("me", "track.wandb_entity", "me"),
}


def at(content: dict[str, Any], key: str) -> object:
    for part in key.split("."):
        content = content[part]
    return content


def test_every_key_reaches_the_run(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(FOLDER)
    base = resolved(script, monkeypatch, *HERE)
    assert at(base, "train.batch_size") == 16
    assert at(base, "checkpoint.keep") == 10
    for key, (value, place, expected) in WANTED.items():
        if key == "model.llama_model_name":
            assert at(base, place) == "meta-llama/Meta-Llama-3-8B"
        word = json.dumps(value) if not isinstance(value, str) else value
        assert at(base, place) != expected, key
        assert at(resolved(script, monkeypatch, *HERE, f"--{key}={word}"), place) == expected, key


def test_all_spellings_of_a_number_are_one(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []
    for number, text in enumerate(("5e-5", '"5e-5"', "5.0e-5", "0.00005")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"training: {{learning_rate: {text}}}")
        found.append(resolved(script, monkeypatch, "--config", str(path), *HERE))
        found.append(resolved(script, monkeypatch, *HERE, f"training.learning_rate={text}"))
    assert {one["optim"]["lr"] for one in found} == {5e-5}


def test_what_cannot_be_is_refused_in_one_line(script: Script, here: Path) -> None:
    refused(
        script(*MINE, "model.prithvi_path=x"), "model.prithvi_path: unknown key; did you mean 'prithvi_encoder_path'?"
    )
    refused(script(*MINE, "--run.world_size=16"), "run.world_size is 16, not 1, as were started", "hostfile.example")
    refused(script(*MINE, "--confg=x"), "--confg=x: unknown flag; did you mean --config?")
    if importlib.util.find_spec("wandb") is None:
        refused(script(*MINE, "wandb.enabled=true", "training.output_dir=new"), "the package wandb is not installed")
    refused(script("--resume", "data"), "data: no checkpoint_epoch_N")
    refused(
        script(*MINE, "model.climate_encoder=prithvi", "model.prithvi_encoder_path=gone.pt", "training.output_dir=new"),
        "gone.pt",
    )
    refused(
        script(*MINE, "training.contrastive_weight=0.1"), "contrastive_weight sees the batch of a device alone; set"
    )
    gone = script(*MINE, "model.llama_model_name=./gone", "training.output_dir=new")
    refused(gone, "Or give a local folder in model.llama_model_name")
    assert "model.llm" not in gone.err  # which is no key of config.yaml
    assert not Path("new").exists()


def test_a_deepspeed_json_and_the_file_agree(
    script: Script, monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 3}, "gradient_clipping": 1.0}')
    refused(
        script(*MINE, "--deepspeed", str(path)), "deepspeed.zero_stage is 2, but the DeepSpeed JSON says 3; delete one"
    )
    Path("config.yaml").write_text(Path("config.yaml").read_text().replace("  zero_stage: 2\n", ""))
    content = resolved(script, monkeypatch, *MINE, "--deepspeed", str(path))
    assert content["deepspeed"]["zero_stage"] == 3
    assert content["deepspeed"]["config"] == {}
    shipped = resolved(script, monkeypatch, *MINE, "--deepspeed", "deepspeed_config.json")
    assert shipped["deepspeed"]["config"]["zero_optimization"]["overlap_comm"] is True


def test_fp16_without_a_gpu_says_what_it_does(script: Script, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    assert resolved(script, monkeypatch, *MINE, "deepspeed.fp16=true")["train"]["precision"] == "fp32"
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    assert resolved(script, monkeypatch, *MINE, "deepspeed.fp16=true")["train"]["precision"] == "bf16"
    assert resolved(script, monkeypatch, *MINE)["train"]["precision"] == "fp32"
    answer = script(*MINE, "deepspeed.fp16=true", "training.epochs=0.5", "training.output_dir=half")
    assert answer.code == 0, answer.err
    assert "deepspeed.fp16 needs a GPU; bf16 instead" in answer.lines
    model = ClimateTextFusion.from_pretrained("half")
    assert model.llm.dtype == torch.bfloat16
    assert isinstance(model.answer("data/training/val/climate_00001.pt", QUESTION), str)


# --- own data and losses


def edited(here: Path, found: str, wanted: str) -> None:
    path = here / "train_multimodal.py"
    text = path.read_text()
    assert text.count(found) == 1, found
    path.write_text(text.replace(found, wanted))


def test_an_own_dataset_is_used(here: Path, script: Script) -> None:
    """A format of one's own: no index.json, no .pt."""
    for split in ("train", "val"):
        folder = here / "own" / split
        folder.mkdir(parents=True)
        entries = tree.raw_entries(here / "data/training" / split)
        (folder / "list.txt").write_text(json.dumps(entries))
        for one in entries:
            torch.save(
                {"x": tree.load(here / "data/training" / split / one["climate_file"])},
                folder / f"{one['climate_file']}.x",
            )
    edited(
        here,
        "        return tree.load(self.folder / climate_file)\n",
        '        return torch.load(self.folder / f"{climate_file}.x")["x"] * 1.5\n',
    )
    listed = """        import json
        keys = ("climate_file", "text", "target")
        found = json.loads((self.folder / "list.txt").read_text())
        return [{**{key: one[key] for key in keys}, "variables": NAMES} for one in found]
"""
    edited(here, "        return tree.raw_entries(self.folder)\n", listed)
    names = json.loads((here / "data/training/channels.json").read_text())["channels"]
    edited(here, "OVERRIDE = re", f"NAMES = {names!r}\nOVERRIDE = re")
    words = (*MINE, "data.train_path=own/train", "data.val_path=own/val", "training.output_dir=mine")
    answer = script(*words, "training.epochs=1")
    assert answer.code == 0, answer.err
    assert "no lat and lon; positions are assumed" in answer.out
    facts = json.loads(Path("mine/run/facts.json").read_text())["facts"]
    usual = json.loads(Path("data/training/stats.json").read_text())["field"]
    place = facts["names"].index("T2M")
    assert facts["scalers"]["field"]["mean"][place] == pytest.approx(
        1.5 * usual["mean"][usual["names"].index("T2M")], rel=1e-3
    )
    edited(here, "* 1.5", "* 1.25")
    refused(script("--resume", "mine", *HERE, "training.epochs=2"), "data are not those that this run was begun with")


def test_an_own_loss_is_used(trained: tuple[Path, Answer], here: Path, script: Script) -> None:
    edited(
        here,
        "        loss: torch.Tensor = said.losses().mean()\n",
        "        loss: torch.Tensor = 1000 + said.losses().mean()\n",
    )
    answer = script(*MINE, "training.epochs=1", "training.output_dir=mine")
    assert answer.code == 0, answer.err
    ours, theirs = (next(_metrics(Path(run_))) for run_ in ("mine/run", trained[0] / OUT / "run"))
    assert ours["loss"] == pytest.approx(1000 + theirs["loss"], rel=1e-5)
    refused(
        script("--resume", str(EPOCH), *HERE, "training.epochs=3"),
        "compute_loss is not the one that this run was begun",
    )
    family = families.load("climate_text")
    config = session.read_config(family, Path("mine/run"))
    longer = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2.0})})
    with pytest.raises(RunError, match="it goes on with the script that began it"):
        loop.train(family, longer, Path("mine/run"), resume=True, quiet=True)
    assert isinstance(ClimateTextFusion.from_pretrained("mine"), ClimateTextFusion)


# --- the guide's own data, and the rest


def test_the_guides_bare_data_train_with_prithvi(here: Path, script: Script) -> None:
    """[2, 160, 64, 64] with nothing but the guide's keys; a small random Prithvi, four mask units."""
    data = ("--output_dir", "bare", "--num_samples", "4", "--val_fraction", "0.5")
    assert run(*data, name="prepare_data") == 0
    for name in ("channels.json", "stats.json"):
        (here / "bare" / name).unlink()
    for split in ("train", "val"):
        path = here / "bare" / split / "index.json"
        keys = ("climate_file", "text", "target", "location", "weather_condition")
        path.write_text(json.dumps([{k: one[k] for k in keys if k in one} for one in json.loads(path.read_text())]))
    small = (
        "model.climate_encoder=prithvi",
        "model.random_init=true",
        "model.prithvi.width=32",
        "model.prithvi.blocks=1",
        "model.prithvi.heads=2",
        "model.prithvi.mlp=1",
    )
    answer = script(
        *MINE,
        *small,
        "data.train_path=bare/train",
        "data.val_path=bare/val",
        "training.output_dir=bare_out",
        "training.epochs=1",
        "training.profile_steps=[1,1]",
        "training.gradient_accumulation_steps=1",
        "training.save_total_limit=2",
    )
    assert answer.code == 0, answer.err
    assert "positions are assumed" in answer.out
    assert json.loads(Path("bare_out/run/trace_1_1.json").read_text())["traceEvents"]
    found = stored.find(families.load("climate_text"), Path("bare_out"))
    assert found.facts["fields"]["channels"] == 160
    assert not [name for name in found.weights if name.startswith("model.encoder.")]


def test_the_shipped_files_are_right() -> None:
    sweep = yaml.safe_load((FOLDER / "sweep.yaml").read_text())
    from sensorium.families.climate_text.guided import GuideConfig

    for key in sweep["parameters"]:
        section, name = key.split(".")
        assert (
            name in getattr(GuideConfig(), section).model_fields_set
            or name in type(getattr(GuideConfig(), section)).model_fields
        ), key
    assert "wandb.enabled=true" in sweep["command"][5]
    hosts = [line for line in (FOLDER / "hostfile.example").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+ slots=\d+", line) for line in hosts)
    assert len(hosts) == 2
