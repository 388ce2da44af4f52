"""How `train.py` begins, what it says, and what it writes besides the run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from adapter_folders import FINAL, LATEST, AdapterFolders
from guide_keys import PRESET, WARMUP, GuideConfig

from sensorium import config as configuration
from sensorium import exported, families, guide
from sensorium.engine import checkpoint, continuation, launch, portable, portable_folder, session, settings
from sensorium.engine.contract import Sources
from sensorium.engine.files import read_lines
from sensorium.engine.listener import Saved
from sensorium.engine.order import clock_of
from sensorium.engine.settings import RunConfig
from sensorium.engine.tables import print_evaluation
from sensorium.errors import CheckpointError, ConfigError

DEVICE = re.compile(r"auto|cpu|cuda(?::(\d+))?")
LONGER = "training.num_train_epochs: "
say = partial(print, flush=True)


class Training:
    """One command. ``given``: its flags; ``checkpointing``: `train.py` asks for that of gradients."""

    def __init__(self, given: Mapping[str, Any], *, checkpointing: bool) -> None:
        if "config" not in given:
            raise ConfigError("--config FILE is missing; configs/flickr_train.yaml is one")
        self.family = families.load("pmg")
        changes = configuration.parse_overrides(given.get("overrides", []))
        if checkpointing:
            changes = configuration.merge(changes, {"training": {"gradient_checkpointing": True}})
        self.guide = GuideConfig.read(given["config"], changes)
        self.engine = {"train": device_of(given.get("device", "auto"), given.get("processes"))}
        value = self.guide.value
        self.files = AdapterFolders(
            self.family,
            self.guide.folder,
            value("training.save_steps"),
            value("training.checkpoints_total_limit"),
        )
        self.run_folder = self.guide.folder / "run"
        self.start = self._begin(str(given.get("resume_from") or value("training.resume_from")))

    # --- how it begins

    @property
    def _world(self) -> int:
        """Processes that will train."""
        train = settings.resolve(self.family, PRESET, self.engine, origin="command line").train
        return int(os.environ.get("WORLD_SIZE", "0")) or launch.processes(train)

    def _layer(self) -> dict[str, Any]:
        return configuration.merge(self.guide.settings(self._world), self.engine)

    def _begin(self, resume: str) -> continuation.Start:
        if not resume:
            return self._anew()
        path = self._chosen(resume)
        if path == self.run_folder:
            return self._from_newest(path)
        if portable_folder.is_one(path):
            return self._from_folder(path)
        if exported.is_export(path):
            note = f"{path} is an adapter alone: a new run begins with its weights, at step 0"
            return self._anew(start_from=path, note=note)
        raise CheckpointError(f"{path}: is no checkpoint of this program; {self._there}")

    def _anew(self, start_from: Path | None = None, note: str | None = None) -> continuation.Start:
        more = {} if start_from is None else {"model": {"start_from": str(start_from)}}
        config = settings.resolve(self.family, PRESET, self._layer(), more, origin="command line")
        return continuation.Start(config, self.run_folder, notes=() if note is None else (note,))

    @property
    def _there(self) -> str:
        names = ", ".join(self.files.names) or "no checkpoint"
        return f"in {self.guide.folder} there is {names}; {LATEST} is where its run stopped"

    def _chosen(self, resume: str) -> Path:
        """The folder that `--resume_from` means; the run's where it is the newest, whatever that is."""
        path = Path(resume).expanduser()
        if resume == LATEST or path.absolute() in (self.guide.folder.absolute(), self.run_folder.absolute()):
            return self.run_folder
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; {self._there}")
        return path

    def _from_newest(self, run: Path) -> continuation.Start:
        native = session.choose_checkpoint(run, self.family.name, "latest") if run.is_dir() else None
        if native is None:
            raise CheckpointError(f"{LATEST}: {run} is not there; {self._there}")
        step = checkpoint.step_of(native) or 0
        lines = [one for one in read_lines(run / "metrics.jsonl") if one.get("kind") == "train"]
        epoch = next((one["epoch"] for one in lines if one["step"] == step), 0.0)
        saved = Saved(run, native, step, epoch, False, None)
        for path in (self.guide.folder / FINAL, self.guide.folder / f"checkpoint-{step}"):
            if portable_folder.made_from(path, saved):
                return self._from_folder(path)
        before = session.read_config(self.family, run)
        layer = self._going_on(configuration.dump(before), native)
        wanted = settings.resolve(self.family, before.preset, configuration.dump(before), layer, origin="command line")
        configuration.check_resume(before, wanted)
        self.files.begun_at = step
        return continuation.Start(wanted, run, continuation.Point(native, epoch))

    def _from_folder(self, path: Path) -> continuation.Start:
        found = portable_folder.read(path)
        native = portable.find_native(found)
        note = f"The native checkpoint of {path} is gone; only its weights can be used"
        if native is not None:
            layer = self._going_on(found.config, native)
            start = continuation.continue_from(self.family, path, layer, self.run_folder, LONGER)
            if start.point is not None or start.done is not None:
                self.files.begun_at = found.head.step
                return start
            note = start.notes[0]
        return self._anew(start_from=path, note=f"{note}: a new run begins, at step 0")

    def _going_on(self, stored: Mapping[str, Any], native: Path) -> dict[str, Any]:
        """What is asked for of a run that goes on; on another number of processes its steps have the same rows.
        Raises ConfigError where others are asked for."""
        layer, before = self._layer(), stored["train"]
        processes = session.load(native, self.family.name).state["processes"] or 1
        parts = before["micro_batches"]
        rows = before["batch_size"] // (parts * processes)
        value = self.guide.value
        asked = value("training.train_batch_size"), value("training.gradient_accumulation_steps")
        if asked != (rows, parts):
            raise ConfigError(
                f"training.train_batch_size {asked[0]} x training.gradient_accumulation_steps {asked[1]}: the run has "
                f"{rows} x {parts}, and keeps the rows of its steps"
            )
        layer["train"]["batch_size"] = before["batch_size"]
        return layer

    # --- training

    def run(self) -> None:
        """Train, and evaluate the best step."""
        lines = Lines(self)
        if guide.leads(self.start):
            lines.begin()
        with guide.out_of_memory(self._ways_out):
            result = guide.train(self.family, self.start, lines, self.files)
        if result is not None:
            print_evaluation(result)

    def _ways_out(self, reason: str) -> str:
        """The guide's, the cheapest first, with this run's numbers."""
        value = self.guide.value
        rows, parts = value("training.train_batch_size"), value("training.gradient_accumulation_steps")
        ways = [
            "pmg.pad_to=longest: prompts are padded to the longest of their batch" * (value("pmg.pad_to") == "max"),
            "training.gradient_checkpointing=true: the same numbers, slower"
            * (not value("training.gradient_checkpointing")),
            f"training.train_batch_size={rows // 2} training.gradient_accumulation_steps={2 * parts}: the same steps"
            * (rows % 2 == 0),
            "training.mixed_precision=bf16" * (value("training.mixed_precision") in ("fp32", "no")),
            f"pmg.image_size={value('pmg.image_size') // 128 * 64}" * (value("pmg.image_size") >= 128),
        ]
        lines = [f"  {number}. {way}" for number, way in enumerate(filter(None, ways), start=1)]
        return "\n".join([f"out of memory with training.train_batch_size {rows} ({reason})", *lines])


def device_of(name: str, processes: int | None) -> dict[str, Any]:
    """Settings of `train` for --device and --processes; one named GPU becomes the only visible one. Raises ConfigError
    for one that is not there."""
    found = DEVICE.fullmatch(name)
    if found is None:
        raise ConfigError(f"--device {name}: expected cpu, cuda, cuda:1 or auto")
    count = 0 if name == "cpu" else torch.cuda.device_count()
    wanted = -1 if found[1] is None else int(found[1])
    if name.startswith("cuda") and count <= max(wanted, 0):
        raise ConfigError(f"--device {name}: visible GPUs: {count}; take cpu or auto")
    if wanted >= 0:
        if processes not in (None, 1) or os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(f"--device {name} is one GPU, for one process; leave it out to use several")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") or ",".join(map(str, range(count)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[wanted]
        processes = 1
    chosen = {"device": name.partition(":")[0]}
    return chosen if processes is None else {**chosen, "processes": processes}


class Lines:
    """What the console shows; the engine tells what happens (listener.Listener)."""

    def __init__(self, training: Training) -> None:
        self.training, self.files, self.total = training, training.files, 0

    def begin(self) -> None:
        """The first line: how much at a time; and whose precision counts."""
        train = self.training.start.config.train
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rows = train.batch_size // (train.micro_batches * world)
        say(
            f"Batch: {rows} samples x {train.micro_batches} accumulated x {world} process{'es' * (world > 1)} = "
            f"{train.batch_size} a step; the learning rate is not scaled by it"
        )
        launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launcher != "no" and launcher != train.precision:
            say(f"Precision: {train.precision}, as training.mixed_precision has it, not the launcher's {launcher}")

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None:
        training = self.training
        if training.start.point is None:
            self.files.begin_anew(but=training.start.config.model.model_dump()["start_from"])
        clock = clock_of(sources.train, config)
        self.total = clock.total
        most = int(clock.total * WARMUP)
        say(
            f"Device: {device.type}; precision: {precision}; {clock.total:,} steps, {clock.epoch(clock.total):g} epochs"
        )
        if config.schedule.warmup_steps > most:
            given = config.schedule.warmup_steps
            say(f"Warm-up: {most} steps, a tenth of all; training.lr_warmup_steps is {given}")
        names = [f"checkpoint-{step}" for step in range(self.files.every, clock.total + 1, self.files.every)]
        shown = names if len(names) < 4 else [names[0], names[1], "…", names[-1]]
        say(f"{self.files.folder}: {', '.join([*shown, FINAL])}; the run itself: {training.start.run}")

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if step % self.training.start.config.track.log_every == 0 or step in (1, self.total):
            rate = values["lr/soft"]
            say(
                f"epoch {epoch:.2f} step {step}/{self.total}  train_loss {values['loss']:.4f}  learning_rate {rate:.2e}"
            )

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        others = {"caption-only/error": "the caption alone", "other-user/error": "another user's tokens"}
        compared = [f"{words} {metrics[name]:.4f}" for name, words in others.items() if name in metrics]
        say(f"Validation at step {step}: val_loss {metrics['loss']:.4f} ({', '.join(compared)})")

    def saved(self, saved: Saved) -> None:
        self.files.write(saved)
