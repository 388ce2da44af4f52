"""The video retrieval guide's flags, ``training_config.json`` and what they mean to a run; and what mistakes say."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from retrieval_scripts import FOLDER, TINY, make_data, modules, run
from script_runs import Script, answering

from sensorium import config as configuration
from sensorium import docs_config, guide
from sensorium.engine import loop, settings
from sensorium.engine.contract import Batch
from sensorium.engine.stages import spans
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.video_retrieval import FAMILY
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.guided import UnifiedModelConfig
from sensorium.families.video_retrieval.plan import frames_words
from sensorium.families.video_retrieval.portable import Values, finite, portable_content, read_values
from sensorium.families.video_retrieval.shape import clip_shape
from sensorium.families.video_retrieval.task import VideoRetrievalTask
from sensorium.families.video_retrieval.words import byte_tokenizer, open_tokenizer

# Every key of the guide, with its value there.
GUIDE = {
    "training_mode": "joint",
    "tempme_lr": 1e-4,
    "stop_lr": 1e-5,
    "batch_size": 8,
    "num_epochs": 20,
    "datatype": "msrvtt",
    "checkpoint_dir": "./checkpoints/unified_model",
    "warmup_epochs": 2,
    "optimizer": "AdamW",
    "weight_decay": 0.01,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "scheduler": "cosine",
    "tempme_loss_weight": 1.0,
    "stop_loss_weight": 1.0,
    "train_data_path": "./data/train",
    "val_data_path": "./data/val",
}
SHIPPED = FOLDER / "configs/training_config.json"


@pytest.fixture
def load() -> Iterator[Any]:
    with modules() as found:
        yield found


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return answering(run, capsys)


def resolved(load: Any, **training: Any) -> settings.RunConfig:
    """What a configuration asks of a run."""
    config = UnifiedModelConfig.from_dict({"training": training, "model": TINY})
    return load("trainer").UnifiedModelTrainer(config).start.config


# --- the file


def test_the_file_is_the_guides() -> None:
    assert UnifiedModelConfig.from_json(SHIPPED) == UnifiedModelConfig()
    text = SHIPPED.read_text()
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(text)  # comments, as in the guide
    content = configuration.load_file(SHIPPED)
    assert content == {"training": GUIDE}
    for comment in ("Learning rate for TempMe module", "Adjust based on GPU memory", "Effective batch size multiplier"):
        assert comment in text


def test_the_file_trains_as_it_is(load: Any) -> None:
    """All of it but reading CLIP's weights and the videos."""
    start = load("trainer").UnifiedModelTrainer(SHIPPED).start
    config = start.config
    assert (start.run, config.seed, config.preset) == (Path("checkpoints/unified_model/run"), 42, "guide")
    assert (config.model.kind, config.model.mode, config.model.clip) == (
        "unified",
        "joint",
        "openai/clip-vit-base-patch32",
    )
    assert (config.train.epochs, config.train.batch_size, config.train.grad_clip) == (20, 8, 1.0)
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adamw", 1e-4, 0.01)
    assert config.optim.lr * config.optim.groups["stop*"].lr_scale == pytest.approx(1e-5)
    assert config.optim.lr * config.optim.groups["clip*"].lr_scale == pytest.approx(1e-7)
    assert (config.schedule.name, config.schedule.warmup_epochs) == ("cosine", 2)
    assert (config.model.loss.tempme_weight, config.model.loss.stop_weight) == (1.0, 1.0)
    assert (config.data.train, config.data.val, config.data.test) == ("./data/train", "./data/val", None)
    assert (config.checkpoint.best_metric, config.checkpoint.best_mode) == ("r_sum", "max")
    assert (config.checkpoint.milestone_epochs, config.track.tensorboard_dir) == (2, "checkpoints/unified_model/logs")
    assert frames_words(config.model, config.data.datatype) == (12, 32)
    # The engine's preset of that name begins alike.
    preset = settings.resolve(FAMILY, "guide")
    for section in ("schedule", "loader", "evaluate"):
        assert configuration.dump(getattr(config, section)) == configuration.dump(getattr(preset, section))


def test_what_json_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        '{/* a */ "training": {"tempme_lr": 1e-4, "num_epochs": 7, }, // b\n "model": {"groups": {"8": 2}},}'
    )
    config = UnifiedModelConfig.from_json(path)
    assert (config.training.tempme_lr, config.training.num_epochs, config.model.groups) == (1e-4, 7, {8: 2})
    config.to_json(tmp_path / "plain.json")
    assert UnifiedModelConfig.from_dict(json.loads((tmp_path / "plain.json").read_text())) == config
    path.write_text('{"training": {"bach_size": 8, "tempme_lr": "fast"}, "modell": {}}')
    with pytest.raises(ConfigError) as told:
        UnifiedModelConfig.from_json(path)
    for line in (
        "training.bach_size: unknown key; did you mean 'batch_size'?",
        "training.tempme_lr: ",
        "modell: unknown",
    ):
        assert line in str(told.value)


@pytest.mark.parametrize(
    ("training", "place", "wanted"),
    [
        ({"optimizer": "BertAdam"}, "optim.name", "bertadam"),
        ({"scheduler": "linear"}, "schedule.name", "linear"),
        ({"max_grad_norm": None}, "train.grad_clip", None),
        ({"max_grad_norm": 0.5}, "train.grad_clip", 0.5),
        ({"weight_decay": 0.2, "decay_all": True}, "optim.groups.tempme*.weight_decay", 0.2),
        ({"weight_decay": 0.2}, "optim.groups.stop*.weight_decay", None),
        ({"stop_lr": 3e-4, "tempme_lr": 3e-4}, "optim.groups.stop*.lr_scale", 1.0),
        ({"clip_lr": 1e-5}, "optim.groups.clip*.lr_scale", pytest.approx(0.1)),
        ({"gradient_accumulation_steps": 4}, "train.batch_size", 32),
        ({"gradient_accumulation_steps": 4}, "train.micro_batches", 4),
        ({"tempme_loss_weight": 0.5}, "model.loss.tempme_weight", 0.5),
        ({"stop_loss_weight": 0}, "model.loss.stop_weight", 0.0),
        ({"datatype": "vatex"}, "data.datatype", "vatex"),
        ({"train_data_path": "a", "val_data_path": "b"}, "data.train", "a"),
        ({"test_data_path": "c"}, "data.test", "c"),
        ({"protocol": "paper"}, "checkpoint.best_metric", "t2v/R@1"),
        ({"protocol": "paper"}, "data.protocol", "paper"),
        ({"save_every_epochs": 5}, "checkpoint.milestone_epochs", 5.0),
        ({"checkpoint_dir": "d"}, "track.tensorboard_dir", "d/logs"),
        ({"warmup_epochs": 0.25}, "schedule.warmup_epochs", 0.25),
    ],
)
def test_what_keys_mean(load: Any, training: dict[str, Any], place: str, wanted: Any) -> None:
    assert configuration.flat(resolved(load, **training))[place] == wanted


def test_what_other_sections_mean(load: Any) -> None:
    content = {
        "model": {**TINY, "kind": "tempme", "switches": {"merge": False}},
        "contrastive": {"negatives": "micro", "positives": "diagonal"},
        "data": {"root": "msrvtt", "bad_videos": "skip", "val_videos": 5, "sampling": "fps"},
        "evaluation": {"select_by": "loss", "dsl": True},
    }
    trainer = load("trainer").UnifiedModelTrainer(UnifiedModelConfig.from_dict(content))
    found = configuration.flat(trainer.start.config)
    for place, wanted in {
        "model.kind": "tempme",
        "model.switches.merge": False,
        "model.loss.negatives": "micro",
        "model.loss.positives": "diagonal",
        "data.root": "msrvtt",
        "data.train": None,
        "data.val_videos": 5,
        "data.sampling": "fps",
        "data.evaluation.dsl": True,
        "loader.bad_samples": "skip",
        "checkpoint.best_metric": "loss",
        "checkpoint.best_mode": "min",
    }.items():
        assert found[place] == wanted, place


@pytest.mark.parametrize(("datatype", "shape"), [("didemo", (64, 64)), ("activitynet", (64, 64)), ("vatex", (12, 32))])
def test_the_datatype_sets_frames_and_words(load: Any, datatype: str, shape: tuple[int, int]) -> None:
    config = UnifiedModelConfig.from_dict({"training": {"datatype": datatype}})
    run = load("trainer").UnifiedModelTrainer(config).start.config
    assert frames_words(run.model, run.data.datatype) == shape


def test_stages_of_odd_epochs(load: Any) -> None:
    config = resolved(load, training_mode="sequential", num_epochs=5, warmup_epochs=1.5)
    plan = spans(FAMILY.stages(config), 100, ())
    assert [(span.stage.name, span.end) for span in plan] == [("tempme", 60), ("stop", 100)]
    for mode, epochs, warmup in (("sequential", 5, 2), ("joint", 2, 2), ("sequential", 1, 0.5)):
        with pytest.raises(ConfigError, match=r"training.warmup_epochs .* must be below the shortest stage") as told:
            resolved(load, training_mode=mode, num_epochs=epochs, warmup_epochs=warmup)
        assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("cuda", "bf16", "amp", "wanted"),
    [
        (True, True, True, "bf16"),
        (True, False, True, "fp16"),
        (False, False, True, "fp32"),
        (True, True, False, "fp32"),
    ],
)
def test_precision_is_what_the_device_has(
    load: Any, monkeypatch: pytest.MonkeyPatch, cuda: bool, bf16: bool, amp: bool, wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert resolved(load, amp=amp).train.precision == wanted


def test_the_batch_is_that_of_each_process(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolved(load, gradient_accumulation_steps=2).train.batch_size == 64


# --- the command line


def test_flags_win_and_say_so(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Any] = []
    monkeypatch.setattr(guide, "leads", lambda start: starts.append(start) or sys.exit(0))
    answer = script("--mode", "stop_only", "training.batch_size=3", "loader.workers=1", "--seed", "7", "train.steps=5")
    assert answer.code == 0, answer.err
    assert answer.out == "--mode stop_only wins over training.training_mode joint\n"
    config = starts[0].config
    assert (config.model.mode, config.train.batch_size, config.loader.workers, config.seed) == ("stop_only", 3, 1, 7)
    assert (config.train.steps, config.train.epochs) == (5, None)
    assert script("--mode", "joint").out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "both"), "--mode both: there are joint, tempme_only, stop_only, sequential"),
        (("--modes", "joint"), "--modes: unknown flag; did you mean --mode?"),
        (("--config", "none.json"), "none.json: cannot be read"),
        (("--seed", "x"), "--seed: invalid int value"),
        (("training.bach_size=4",), "training.bach_size: unknown key; did you mean 'batch_size'?"),
        (("trainning.batch_size=4",), "trainning: unknown key; did you mean 'training'?"),
        (("optim.lrr=4",), "optim.lrr: unknown key; did you mean 'lr'?"),
        (("batch_size",), "is not an override; write section.key=value"),
        (("--resume", "none.pth"), "none.pth: cannot be read"),
        ((), "data/train"),  # no data: nothing is begun
    ],
)
def test_mistakes_are_one_line(script: Script, words: tuple[str, ...], said: str) -> None:
    tiny = [f"model.{name}={json.dumps(value)}" for name, value in TINY.items()]
    answer = script(*words, *(tiny if "--resume" not in words else ()))
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert not Path("checkpoints").exists()


def test_out_of_memory_tells_the_guides_ways_out(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    make_data(Path("data"))
    monkeypatch.setattr(loop, "_step", full)
    tiny = [f"model.{name}={json.dumps(value)}" for name, value in TINY.items()]
    answer = script(*tiny, "training.gradient_accumulation_steps=1", "loader.workers=0", "train.device=cpu")
    assert (answer.code, answer.err.splitlines()) == (
        1,
        [
            "error: out of memory with training.batch_size 8 (CUDA out of memory)",
            "  1. training.batch_size=4",
            "  2. training.batch_size=4 training.gradient_accumulation_steps=2: as many videos as now meet in one "
            "loss, half of them at a time",
            "  3. --mode sequential: one part trains at a time",
        ],
    )


def test_the_readme_names_real_keys() -> None:
    text = (FOLDER / "README.md").read_text()
    ours = {name for name, _ in configuration.walk(UnifiedModelConfig)}
    engine = {name for name, _ in configuration.walk(settings.config_class(FAMILY))}
    named = re.findall(r"`(training|model|contrastive|data|evaluation|loader)\.(\w+)", text)
    assert len(named) > 20
    assert not [f"{section}.{key}" for section, key in named if f"{section}.{key}" not in ours | engine]
    assert {f"training.{key}" for key in GUIDE} <= ours
    assert docs_config.page  # the other keys are described there


# --- more negatives or not


def test_micro_adds_no_negatives(load: Any) -> None:
    """Plain accumulation is the mean over losses of the parts; effective is the loss of all rows."""
    torch.manual_seed(0)
    config = {"model": TINY, "contrastive": {"negatives": "micro"}}
    model = load("unified_model").create_unified_model(UnifiedModelConfig.from_dict(config)).train()
    rows = 8
    words = torch.randint(0, 512, (rows, 40))
    words[:, -1] = 513
    batch: Batch = {
        "video": torch.randint(0, 256, (rows, 8, 3, 32, 32), dtype=torch.uint8),
        "video_mask": torch.ones(rows, 8, dtype=torch.bool),
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "groups": torch.arange(rows),
    }

    def graded(task: VideoRetrievalTask, given: Batch) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = task(given).loss
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    apart = graded(VideoRetrievalTask(model, 2), batch)
    parts = [graded(VideoRetrievalTask(model, 1), {n: t[half::2] for n, t in batch.items()}) for half in range(2)]
    halves = [graded(VideoRetrievalTask(model, 1), {n: t.chunk(2)[i] for n, t in batch.items()}) for i in range(2)]
    assert apart[0] == pytest.approx((halves[0][0] + halves[1][0]) / 2, rel=1e-5)
    assert torch.allclose(apart[1], (halves[0][1] + halves[1][1]) / 2, rtol=1e-4, atol=1e-5)
    assert apart[0] != pytest.approx((parts[0][0] + parts[1][0]) / 2, rel=1e-3)  # other parts, other losses
    assert apart[0] != pytest.approx(graded(VideoRetrievalTask(model, 1), batch)[0], rel=1e-2)


def test_a_clip_in_a_folder(load: Any, tmp_path: Path) -> None:
    """As ``transformers`` saves it, with its tokenizer; what of it is missing is said before anything is read."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    words = {**tower, "vocab_size": 514, "eos_token_id": 513, "bos_token_id": 512}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    folder = tmp_path / "clip"
    CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    tiny = UnifiedModelConfig.from_dict({"model": TINY})
    byte_tokenizer(clip_shape(tiny_model(tiny))).save(str(folder / "tokenizer.json"))
    config = tiny.changed({"model": {"clip": str(folder)}}, "test")
    model = load("unified_model").create_unified_model(config)
    assert model.clip.shape.embed == 32
    assert open_tokenizer(tiny_model(config), 40).size == 514
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="clip"):
        load("unified_model").create_unified_model(config)


def tiny_model(config: UnifiedModelConfig) -> ModelConfig:
    return configuration.build(ModelConfig, config.settings()["model"])


# --- files that nobody vouches for


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    values = Values(
        config=UnifiedModelConfig().to_dict(),
        mode="joint",
        stage="joint",
        active_parts=["stop", "tempme"],
        model_class=None,
        epoch=1.0,
        metrics=finite({"r_sum": 3.0, "t2v/R@1": 25, "lost": float("nan")}),
    )
    content = portable_content(values, {"w": torch.ones(2)})
    path = tmp_path / "a.pth"

    def read(**changes: Any) -> Values:
        torch.save({**content, **changes}, path)
        return read_values(path)[0]

    assert read().metrics == {"r_sum": 3.0, "t2v_R1": 25.0}
    for changes, said in (
        ({"family": "thinking"}, "no model of video_retrieval"),
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"mode": "stop_only"}, "its checksum differs"),
        ({"mode": "both"}, "damaged at mode"),
        ({"epoch": "x"}, "damaged at epoch"),
        ({"config": {"training": {"num_epochs": -1}}}, "damaged; config training.num_epochs"),
        ({"metrics": {"a": float("nan")}}, "damaged"),
        ({"more": 1}, "damaged at more"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(said)) as told:
            read(**changes)
        assert len(str(told.value).splitlines()) == 1
    path.write_bytes(os.urandom(100))
    with pytest.raises(CheckpointError, match="damaged"):
        read_values(path)
