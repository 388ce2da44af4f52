"""How `train_multimodal.py` begins, what it says, and what it writes besides the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from epochs import EpochFolders

from sensorium import config as configuration
from sensorium import errors, guide
from sensorium.engine import continuation, launch, loop, portable_folder, session, settings, zero_json
from sensorium.engine.contract import Family, Sources
from sensorium.engine.listener import Saved
from sensorium.engine.order import clock_of
from sensorium.engine.settings import RunConfig
from sensorium.engine.tables import print_evaluation
from sensorium.errors import ConfigError
from sensorium.families.climate_text import FAMILY
from sensorium.families.climate_text.guided import PRESET, WARMUP, GuideConfig
from sensorium.families.climate_text.own import ClimateTextDataset, own_family
from sensorium.families.climate_text.task import ClimateTextTask
from sensorium.files import link_or_copy, make_folder, open_file, remove, told, write_by_library

LOG = Path("logs/training.log")
_SECTIONS = ("train", "optim", "schedule", "loader", "checkpoint", "evaluate", "track", "guard")  # of the engine
say = partial(print, flush=True)


class Training:
    """One command. ``given``: its flags; ``config``: the file of values where none is given."""

    def __init__(
        self,
        given: Mapping[str, Any],
        config: Path,
        dataset: type[ClimateTextDataset],
        task: type[ClimateTextTask],
    ) -> None:
        self.family: Family = own_family(FAMILY, dataset, task)
        self.resume: Path | None = given.get("resume")
        self.engine, changes = _sorted(given.get("overrides", []))
        self.json: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.config = self._configured(given.get("config"), config, changes)
        if "deepspeed" in given:
            self._take_json(given["deepspeed"])
        self.files = EpochFolders(self.family, self.config)
        self.start = self._begin()

    def _configured(self, given: Path | None, usual: Path, changes: Mapping[str, Any]) -> GuideConfig:
        """Of a run that goes on, its own values, unless a file is named."""
        if self.resume is None or given is not None:
            return GuideConfig.read(given or usual, changes)
        path = self.resume if portable_folder.is_one(self.resume) else EpochFolders.newest(self.resume)
        if path is None:
            raise errors.CheckpointError(
                f"{self.resume}: no checkpoint_epoch_N, and no folder with one; --config FILE says the values of a run "
                "that was stopped before its first epoch ended"
            )
        return GuideConfig.read(path / "config.yaml", changes)

    def _take_json(self, path: Path) -> None:
        """A DeepSpeed JSON: what ``config.yaml`` has a key for goes there, the rest to DeepSpeed."""
        said, self.json = zero_json.translate(configuration.load_file(path))
        self.config = self.config.with_json({one.ours: one.value for one in said})
        others = zero_json.as_layer([one for one in said if one.ours in ("optim.betas", "optim.eps")])
        self.engine = configuration.merge(others, self.engine)

    # --- how it begins

    def _layer(self) -> dict[str, Any]:
        world = int(os.environ.get("WORLD_SIZE", "0")) or int(self.engine.get("train", {}).get("processes") or 1)
        self.config.require_world(world)
        cpu = self.engine.get("train", {}).get("device") == "cpu" or not torch.cuda.is_available()
        can = torch.cpu.get_capabilities() if cpu else {}
        bf16 = bool(can.get("avx512_bf16") or can.get("amx_bf16")) if cpu else torch.cuda.is_bf16_supported()
        precision, note = self.config.deepspeed.precision(gpu=not cpu, bf16=bf16)
        self.notes += [] if note is None else [note]
        layer = configuration.merge(self.config.settings(world, precision), self.engine)
        return layer if self.json is None else configuration.merge(layer, {"deepspeed": {"config": self.json}})

    def _begin(self) -> continuation.Start:
        run, layer = self.config.folder / "run", self._layer()
        if self.resume is None:
            return continuation.Start(settings.resolve(self.family, PRESET, layer, origin="config.yaml"), run)
        native = self.resume / "run"
        if portable_folder.is_one(self.resume):
            stored = portable_folder.about(self.resume).config
        elif (native / "config.yaml").is_file():
            stored = configuration.dump(session.read_config(self.family, native))
        else:
            raise errors.CheckpointError(f"{self.resume}: no checkpoint_epoch_N, and no folder with a run")
        for name in ("precision", "batch_size"):  # which follow from the machine, too
            if name not in self.engine.get("train", {}):
                layer["train"][name] = stored["train"][name]
        if portable_folder.is_one(self.resume):
            return continuation.continue_from(self.family, self.resume, layer, run, "training.epochs=")
        wanted = settings.resolve(self.family, PRESET, stored, layer, origin="command line")
        configuration.check_resume(configuration.build(type(wanted), stored, str(native)), wanted)
        return continuation.Start(wanted, native)

    # --- training

    def run(self) -> None:
        """Train, and evaluate the best epoch."""
        lines = Lines(self)
        if guide.leads(self.start):
            lines.begin()
        with guide.out_of_memory(self._ways_out):
            if self.resume is not None and not portable_folder.is_one(self.resume):
                result = loop.train(self.family, self.start.config, self.start.run, resume=True, listener=lines)
                result = result if launch.is_main() else None
            else:
                result = guide.train(self.family, self.start, lines, self.files)
        if result is not None:
            print_evaluation(result)

    def _ways_out(self, reason: str) -> str:
        """The guide's, with this run's numbers."""
        training = self.config.training
        less, parts = max(1, training.batch_size // 2), 2 * training.gradient_accumulation_steps
        return "\n".join(
            [
                f"out of memory with training.batch_size {training.batch_size} ({reason})",
                f"  1. training.batch_size={less} training.gradient_accumulation_steps={parts}: the same steps",
                "  2. deepspeed.gradient_checkpointing=true, with training.activation_checkpointing=all",
                "  3. deepspeed.cpu_offload=true, under DeepSpeed",
                "  4. deepspeed.zero_stage=3, with several GPUs",
                "  5. model.max_climate_tokens, data.max_length: fewer tokens",
            ]
        )


def _sorted(overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of the engine's sections, and those of the guide's."""
    tree = configuration.parse_overrides(overrides)
    engine = {name: tree.pop(name) for name in _SECTIONS if name in tree}
    if any(not isinstance(section, Mapping) for section in engine.values()):
        raise ConfigError(f"{next(iter(engine))} is a section; write {next(iter(engine))}.KEY=VALUE")
    return engine, tree


class Lines:
    """What the console and logs/training.log show; the engine tells what happens (listener.ShardListener)."""

    def __init__(self, training: Training) -> None:
        self.training, self.files = training, training.files
        self.total = 0
        self.waiting: list[str] | None = []  # said before there is a log
        self.profiler: torch.profiler.profile | None = None

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None:
        training = self.training
        if training.start.point is None and training.resume is None:
            self.files.begin_anew(but=config.train.warm_start)
        self._open_log()
        clock = clock_of(sources.train, config)
        self.total = clock.total
        length = f"{clock.total} steps, {clock.epoch(clock.total):g} epochs"
        self.say(f"Device: {device.type}; precision: {precision}; {length}")
        most = int(clock.total * WARMUP)
        if config.schedule.warmup_steps > most:
            self.say(f"Warm-up: {most} steps, a tenth of all; training.warmup_steps is {config.schedule.warmup_steps}")
        if training.resume is None:
            self._profile(0)
        self.say(f"Epochs: {training.config.folder}/checkpoint_epoch_N; the run: {training.start.run}")

    def begin(self) -> None:
        """The first lines: who trains, and how much at a time."""
        train = self.training.start.config.train
        world = int(os.environ.get("WORLD_SIZE", "1"))
        nodes = world // int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        micro = train.batch_size // (train.micro_batches * world)
        self.say(
            f"{nodes} node{'s' * (nodes > 1)} x {world // nodes} process{'es' * (world > nodes)}: {micro} samples x "
            f"{train.micro_batches} parts x {world} = {train.batch_size} samples a step"
        )
        deepspeed = self.training.start.config.deepspeed
        if deepspeed.used:
            offload = ", optimizer's state on the host" if deepspeed.cpu_offload else ""
            self.say(f"DeepSpeed: ZeRO {deepspeed.zero_stage}{offload}")
        else:
            self.say("DeepSpeed: not used; zero_stage and cpu_offload do nothing without it")
        for note in self.training.notes:
            self.say(note)

    def _open_log(self) -> None:
        """logs/training.log is the run's own by a second name."""
        make_folder(LOG.parent)
        remove(LOG)
        link_or_copy(self.training.start.run / "train.log", LOG)
        waiting, self.waiting = self.waiting or [], None
        for line in waiting:
            self._keep(line)

    def say(self, text: str) -> None:
        """Print a line and keep it in the log."""
        say(text)
        if self.waiting is None:
            self._keep(text)
        else:
            self.waiting.append(text)

    def _keep(self, text: str) -> None:
        with told(LOG), open_file(LOG, "a") as file:
            file.write(errors.printable(text) + "\n")

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self._profile(step)
        if step % self.training.start.config.track.log_every == 0 or step in (1, self.total):
            rate = values["lr/fusion"]  # gates open faster
            say(f"epoch {epoch:.2f} step {step}/{self.total}  loss {values['loss']:.4f}  lr {rate:.2e}")

    def _profile(self, done: int) -> None:
        """A trace of the steps that ``training.profile_steps`` names."""
        wanted = self.training.config.training.profile_steps
        if wanted is None:
            return
        if done == wanted[0] - 1:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        elif self.profiler is not None and done == min(wanted[1], self.total):
            self.profiler.stop()
            path = self.training.start.run / f"trace_{wanted[0]}_{done}.json"
            remove(path)
            write_by_library(path, partial(_export, self.profiler))
            self.profiler = None
            self.say(f"Trace of steps {wanted[0]} to {done}: {path}")

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        control = metrics.get("perplexity/shuffled", float("nan"))
        say(
            f"Validation after epoch {epoch:.2f}: loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.3f} "
            f"({control:.3f} with the fields of others)"
        )

    def shards(self, saved: Saved) -> Path | None:
        return self.files.shards(saved)

    def saved(self, saved: Saved) -> None:
        self.files.write(saved)
        if saved.better:
            say(f"Best so far: validation loss {saved.value:.4f} -> {self.files.folder / 'best.json'}")


def _export(profiler: torch.profiler.profile, path: Path) -> None:
    profiler.export_chrome_trace(str(path))
