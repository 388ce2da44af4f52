"""Train the multimodal thinking model on Flickr8k.

    python train_multimodal_flickr8k.py --epochs 20 --batch_size 16 --lr 1e-4
    python train_multimodal_flickr8k.py --checkpoint checkpoints/best.pt --epochs 10

Paths are relative to the current folder. Writes best.pt, last.pt and run/ into --savedir, TensorBoard into --logdir.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium import errors, guide

if TYPE_CHECKING:
    import torch

    from sensorium.engine.continuation import Start
    from sensorium.engine.contract import Evaluation, Family, Source, Sources
    from sensorium.engine.listener import Saved
    from sensorium.engine.settings import RunConfig

SAVEDIR, LOGDIR, CURVES = "checkpoints", "runs", "MMT_Flickr8k"
PLACES = {
    "root_dir": "data.root",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "optim.lr",
    "precision": "train.precision",
    "text_encoder": "data.text_encoder",
    "image_encoder": "data.image_encoder",
    "audio_encoder": "data.audio_encoder",
    "cache_dir": "data.cache",
}
say = partial(print, flush=True)


def parser(description: str) -> guide.Parser:
    """The flags of both scripts."""
    flags = guide.Parser(description)
    flags.flag("--root_dir", str, "data/flickr8k", "folder of Flickr8k")
    flags.flag("--epochs", float, 10, "epochs in all, also after --checkpoint")
    flags.flag("--batch_size", int, 8, "pairs of picture and caption in one step")
    flags.flag("--lr", float, "2e-4", "learning rate")
    flags.flag("--precision", str, "fp16", "fp32, fp16 or bf16")
    flags.flag("--checkpoint", Path, None, "best.pt or last.pt of an earlier run to go on from")
    flags.flag("--savedir", Path, SAVEDIR, "folder for best.pt, last.pt and the run")
    flags.flag("--logdir", Path, LOGDIR, "folder for TensorBoard")
    flags.flag("--text_encoder", str, "intfloat/e5-small-v2", "hub name, local folder or random:text")
    flags.flag("--image_encoder", str, "openai/clip-vit-base-patch32", "hub name, local folder or random:vision")
    flags.flag("--audio_encoder", str, "openai/whisper-tiny", "hub name, local folder or random:audio")
    flags.flag("--cache_dir", str, "SENSORIUM_CACHE or ~/.cache/sensorium", "folder for the encoders' features")
    flags.add_argument("--no_cache", action="store_true", help="encode anew for every batch")
    flags.add_argument("--set", action="append", metavar="SECTION.KEY=VALUE", help="any setting of docs/config.md")
    return flags


def run(given: Mapping[str, Any], preset: Mapping[str, Any], savedir: str = SAVEDIR, curves: str = CURVES) -> None:
    """Train with the flags that were given, over ``preset``, over the guide's values."""
    from sensorium import config, families
    from sensorium.engine import continuation, rundir, settings
    from sensorium.engine.tables import print_evaluation

    family: Family = families.load("thinking")
    flags = config.merge(
        guide.settings_of(given, PLACES),
        {"data": {"use_cache": False}} if "no_cache" in given else {},
        {"track": {"tensorboard_dir": str(given["logdir"] / curves)}} if "logdir" in given else {},
        config.parse_overrides(given.get("set", [])),
    )
    if "checkpoint" in given:
        target = given["savedir"] / "run" if "savedir" in given else None
        start = continuation.continue_from(family, given["checkpoint"], flags, target)
    else:
        usual = {"track": {"tensorboard_dir": str(Path(LOGDIR) / curves)}}
        if guide.no_8bit(flags.get("train", {}).get("device", "auto")) is None:
            usual["optim"] = {"name": "adamw8bit"}
        resolved = settings.resolve(family, "guide", usual, preset, flags, origin="command line")
        start = continuation.Start(resolved, Path(given.get("savedir", savedir)) / "run")
    if guide.leads(start):
        from sensorium.families.thinking.data import DataConfig

        data = start.config.data
        assert isinstance(data, DataConfig)
        say(f"Loading {data.reader.capitalize()} dataset" + f" from {data.root}" * bool(data.root) + "...")
    files = guide.BestAndLast(start.run.parent)
    result = guide.train(family, start, Lines(start, files), files)
    if result is not None:
        print_evaluation(result)
        best = files.best if rundir.read_json(start.run / "summary.json")["best"] else files.last
        say(f"Best model: {best}. To evaluate it again: sensorium evaluate {start.run}")
        say(*recall_at_1(result), sep="\n")


def recall_at_1(result: Evaluation) -> list[str]:
    """A line for each direction that the test split has, beside chance."""
    lines = []
    for asked, found in permutations(("text", "image", "audio"), 2):
        name = f"{asked[0]}2{found[0]}/R@1"
        if name in result.metrics:
            value, chance = result.metrics[name], result.metrics[f"chance/{name}"]
            lines.append(f"R@1 {asked} -> {found}: {value:.1f} (chance {chance:.1f})")
    return lines


class Lines:
    """The guide's lines and files; the engine tells what happens."""

    def __init__(self, start: Start, files: guide.BestAndLast) -> None:
        self.files, self.every = files, start.config.track.log_every
        self.fresh = start.point is None
        self.validation: tuple[int, Mapping[str, float]] | None = None

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None:
        say(f"Train samples: {groups(sources.train)}")
        say(f"Train captions: {len(sources.train)}")
        if sources.val is not None:
            say(f"Val samples: {groups(sources.val)}")
        say("Initializing trainer...")
        say(f"Optimizer: {self.optimizer(config)}")
        say("Starting training...")
        say(f"Device: {device.type}")
        say(f"Precision: {precision}")
        say(f"Batch size: {config.train.batch_size}")
        say(f"Learning rate: {config.optim.lr}")
        epochs = config.train.epochs or (config.train.steps or 0) * config.train.batch_size / len(sources.train)
        say(f"Epochs: {epochs:g}")
        say("-" * 80)

    def optimizer(self, config: RunConfig) -> str:
        """The optimizer, and for a new run why it is not the 8-bit one."""
        if config.optim.name == "adamw8bit":
            return "8-bit AdamW"
        reason = guide.no_8bit(config.train.device) if self.fresh else None
        return "AdamW" if reason is None else f"AdamW ({reason})"

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self._not_better()
        if (step - 1) % self.every == 0:
            loss, norm = (values.get(name, math.nan) for name in ("loss", "grad_norm"))
            rate = max(value for name, value in values.items() if name.startswith("lr/"))
            here = f"[Epoch {begun_epoch(step, epoch)} Step {step - 1}]"
            say(f"{here} loss={loss:.4f} grad_norm={norm:.2f} lr={rate:.2e}")

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        number = begun_epoch(step, epoch)
        say(f"[epoch {number}] R-Sum {metrics['r_sum']:.1f} (chance {metrics['chance/r_sum']:.1f}, at most 600)")
        self.validation = number, metrics

    def saved(self, saved: Saved) -> None:
        self.files.write(saved)
        if saved.better and self.validation is not None:
            number, self.validation = self.validation[0], None
            say(f"[epoch {number}] new best {saved.value:.4f} -> saved {self.files.best}")
        self._not_better()

    def _not_better(self) -> None:
        """What was validated last was not the best: a checkpoint would have followed at once."""
        if self.validation is not None:
            number, metrics = self.validation
            say(f"[epoch {number}] val_loss={metrics['loss']:.4f}")
            self.validation = None


def groups(source: Source) -> int:
    """Pictures of a split; each has several captions."""
    return len(source) if source.groups is None else len(set(source.groups.tolist()))


def begun_epoch(step: int, epoch: float) -> int:
    """The epoch, counted from 0, in which step number ``step`` (counted from 1) began; ``epoch``: how far it led."""
    return math.floor(epoch * (step - 1) / step + 1e-9)


def main() -> None:
    run(parser(__doc__ or "").given(), {})


if __name__ == "__main__":
    errors.shown(main)
