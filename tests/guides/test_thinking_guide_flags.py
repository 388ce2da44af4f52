"""The flags of the thinking guide's scripts: what they mean, and what they say of mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from flickr8k_tree import make_tree
from guide_scripts import ENCODERS, FLICKR8K, SCRIPTS, SMALL, SOTA8GB, refused, resolved
from script_runs import Script

from sensorium import families, guide
from sensorium.engine import optim, settings
from sensorium.errors import ConfigError


def test_the_defaults_are_the_guides(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    start = resolved(script, monkeypatch)
    config = start.config
    assert start.run == Path("checkpoints/run")
    assert (config.data.root, config.train.epochs, config.train.batch_size) == ("data/flickr8k", 10, 8)
    assert (config.optim.lr, config.optim.name, config.train.precision) == (2e-4, "adamw", "fp16")
    assert (config.schedule.name, config.schedule.warmup_steps, config.train.grad_clip) == ("constant", 100, 1.0)
    assert (config.checkpoint.best_metric, config.checkpoint.best_mode) == ("loss", "min")
    assert config.track.tensorboard_dir == "runs/MMT_Flickr8k"
    assert (config.model.width, config.model.slots, config.model.walker_blocks) == (384, 64, 2)
    weights = config.model.weights
    assert (weights.align, weights.recon, weights.match) == (0.6, 0.4, 0.0)
    encoders = (config.data.text_encoder, config.data.image_encoder, config.data.audio_encoder)
    assert encoders == ("intfloat/e5-small-v2", "openai/clip-vit-base-patch32", "openai/whisper-tiny")
    assert resolved(script, monkeypatch, name=SOTA8GB) == start


def test_every_flag_arrives(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--epochs 20 --batch_size 16 --lr 1e-4 --precision bf16 --root_dir r --savedir s --logdir l --cache_dir c"
    start = resolved(script, monkeypatch, *words.split(), "--no_cache", *ENCODERS, "--set", "seed=7")
    config = start.config
    assert start.run == Path("s/run")
    assert (config.train.epochs, config.train.batch_size, config.optim.lr, config.train.precision) == (
        20,
        16,
        1e-4,
        "bf16",
    )
    assert (config.data.root, config.track.tensorboard_dir, config.data.cache) == ("r", "l/MMT_Flickr8k", "c")
    assert (config.data.use_cache, config.seed) == (False, 7)
    assert config.data.image_encoder == ENCODERS[3]


BAD: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "no directory": (["--root_dir", "gone"], ("Flickr8k directory not found: gone", "--root_dir")),
    "no part": (["--root_dir", "torn"], ("the captions are missing", "torn")),
    "no hub": (["--text_encoder", "intfloat/e5-small-v2"], ("intfloat/e5-small-v2", "local", "--demo")),
    "no folder": (["--image_encoder", "gone/far/away"], ("image encoder 'gone/far/away'", "no such folder")),
    "no such flag": (["--batchsize", "4"], ("--batchsize: unknown flag; did you mean --batch_size?",)),
    "no number": (["--epochs", "ten"], ("argument --epochs: invalid float value: 'ten'",)),
    "no checkpoint": (["--checkpoint", "gone.pt"], ("gone.pt: cannot be read (No such file",)),
    "no .pt file": (["--checkpoint", "data"], ("data: a folder",)),
    "no setting": (["--set", "train.epoch=2"], ("train.epoch: unknown key; did you mean 'epochs'?",)),
    "no precision": (["--precision", "fp8"], ("train.precision", "'fp32', 'bf16' or 'fp16'", "'fp8'")),
    "nothing to learn": (["--epochs", "0"], ("train.epochs: input should be greater than 0",)),
}


@pytest.mark.parametrize(("words", "fragments"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path, script: Script, words: list[str], fragments: tuple[str, ...]
) -> None:
    make_tree(here / "torn")
    (here / "torn/Flickr8k.token.txt").unlink()
    before = sorted(here.rglob("*"))
    answer = script(*SMALL, *words)
    refused(answer, *fragments, lines=2 if words[0] in ("--set", "--precision") or words[1] == "0" else 1)
    assert sorted(here.rglob("*")) == before


def test_help_is_quick_and_shows_the_guides_values() -> None:
    program = (
        "import runpy, sys\nsys.argv = ['x', '--help']\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "try: runpy.run_path(sys.argv.pop(0) and FILE, run_name='__main__')\n"
        "except SystemExit: pass\nprint([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    for name in (FLICKR8K, SOTA8GB):
        code = program.replace("sys.argv.pop(0) and FILE", repr(str(SCRIPTS / f"{name}.py")))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        text = " ".join(done.stdout.split())
        for default in ("data/flickr8k", "10", "8", "2e-4", "fp16", "checkpoints", "runs"):
            assert f"(default: {default})" in text


class StandIn(ModuleType):
    """In the place of bitsandbytes."""

    class AdamW8bit(torch.optim.AdamW):
        pass


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", StandIn("bitsandbytes.optim"))


def test_8bit_adamw_is_taken_where_it_can_be(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch, bitsandbytes: None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = resolved(script, monkeypatch).config
    assert config.optim.name == "adamw8bit"
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert type(optim.build({"w": weight}, lambda name, p: "decay", config.optim, {})) is StandIn.AdamW8bit
    assert guide.no_8bit() is None
    assert resolved(script, monkeypatch, "--set", "optim.name=adamw").config.optim.name == "adamw"
    assert resolved(script, monkeypatch, "--set", "train.device=cpu").config.optim.name == "adamw"


@pytest.mark.parametrize(("gpu", "reason"), [(False, "8-bit AdamW needs a GPU"), (True, "needs bitsandbytes")])
def test_plain_adamw_is_taken_where_8bit_cannot_be(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch, gpu: bool, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert resolved(script, monkeypatch).config.optim.name == "adamw"
    assert reason in str(guide.no_8bit())
    eight = settings.resolve(families.load("thinking"), "guide", {"optim": {"name": "adamw8bit"}}).optim
    with pytest.raises(ConfigError, match="adamw8bit needs"):  # a run stored with it is not continued without
        optim.build({"w": torch.nn.Parameter(torch.ones(2, 2))}, lambda name, p: "decay", eight, {})
