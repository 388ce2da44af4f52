"""Training as the video retrieval guide has it: its files, its batches of five tensors, its modes.

from config import UnifiedModelConfig
from trainer import UnifiedModelTrainer
trainer = UnifiedModelTrainer(UnifiedModelConfig.from_json("configs/training_config.json"))
trainer.train()
trainer.evaluate(trainer.val_dataloader)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from unified_model import UnifiedTempMeSTOPModel, create_unified_model, load_unified_model

from sensorium import config as configuration
from sensorium import guide
from sensorium.engine import checkpoint, continuation, launch, portable, report_data, session
from sensorium.engine import settings as engine
from sensorium.engine.contract import Evaluation, Family, Host, Source, Sources
from sensorium.engine.listener import Saved
from sensorium.engine.loader import Batches, TrainingRows
from sensorium.engine.order import Share, order_of
from sensorium.engine.settings import RunConfig
from sensorium.engine.stages import Span
from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval import FAMILY
from sensorium.families.video_retrieval.data import EvalSource
from sensorium.families.video_retrieval.guided import Five, Pairs, UnifiedModelConfig, evaluate_pairs, five, named
from sensorium.families.video_retrieval.own_class import OwnClass
from sensorium.families.video_retrieval.portable import Values, finite, portable_content, read_values
from sensorium.families.video_retrieval.task import active_parts, sections
from sensorium.files import link_or_copy, remove, rename

SEED = 42
PREFIX = "model."  # of the names of the model's weights in a run
RECIPES = "`sensorium train video_retrieval --preset tempme_paper` and stop_paper hold the published recipes"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
say = partial(print, flush=True)


class UnifiedModelTrainer:
    """Trains and evaluates what a configuration describes.

    ``config``: a configuration or its file. ``model_class``: ours, or one built upon it. ``seed``: of every random
    draw; None: 42, or that of the run that goes on. ``resume``: a ``.pth`` file; in the mode that it was trained in the
    run goes on from there exactly, in another one a new run begins with its weights. ``settings``: sections of
    docs/config.md but ``model`` and ``data``; None: one process.

    Raises ConfigError, CheckpointError.
    """

    def __init__(
        self,
        config: UnifiedModelConfig | str | Path,
        model_class: type[UnifiedTempMeSTOPModel] = UnifiedTempMeSTOPModel,
        *,
        seed: int | None = None,
        resume: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config if isinstance(config, UnifiedModelConfig) else UnifiedModelConfig.from_json(config)
        self.settings = {"train": {"processes": 1}} if settings is None else settings
        self.own = None if model_class is UnifiedTempMeSTOPModel else OwnClass(model_class)
        self.family: Family = FAMILY if self.own is None else self.own.family()
        self.model_class, self.weights = model_class, None if resume is None else Path(resume)
        self.start = self._anew(seed) if self.weights is None else self._going_on(self.weights, seed)
        if self.own is not None:
            self.own.require(self.start.config)
        self.files = Files(self)
        self.result: Evaluation | None = None

    # --- how it begins

    def _layer(self, seed: int | None) -> dict[str, Any]:
        """Settings of the run on this machine, but for what ``settings`` asks for."""
        layer = configuration.merge(self.config.settings(), {} if seed is None else {"seed": seed})
        train = engine.resolve(self.family, "guide", layer, self.settings).train
        layer["train"]["precision"] = precision(train.device) if self.config.training.amp else "fp32"
        layer["train"]["batch_size"] *= int(os.environ.get("WORLD_SIZE", "0")) or launch.processes(train)
        return layer

    def _anew(self, seed: int | None, more: Mapping[str, Any] | None = None) -> continuation.Start:
        layer = configuration.merge(self._layer(SEED if seed is None else seed), more or {})
        resolved = engine.resolve(self.family, "guide", layer, self.settings, origin="command line")
        return continuation.Start(resolved, self.config.folder / "run")

    def _going_on(self, path: Path, seed: int | None) -> continuation.Start:
        values, stored = read_values(path)
        mode = self.config.training.training_mode
        if values.model_class != (self.own and self.own.name):
            raise ConfigError(
                f"{path}: a model of class {values.model_class or UnifiedTempMeSTOPModel.__name__}; "
                f"model_class is {self.model_class.__name__}"
            )
        if mode != values.mode:
            begin = {"model": {"trained": values.active_parts}, "train": {"warm_start": str(path)}}
            note = f"{path} was trained in mode {values.mode}; mode {mode} begins a new run with its weights at step 0"
            return replace(self._anew(seed, begin), notes=(note,))
        start = continuation.continue_from(
            self.family, path, self._changes(path, stored, seed), self.config.folder / "run", "training.num_epochs="
        )
        if start.point is not None or start.done is not None:
            return start
        model = start.config.model.model_copy(update={"trained": tuple(values.active_parts)})
        return replace(start, config=start.config.model_copy(update={"model": model}))

    def _changes(self, path: Path, stored: UnifiedModelConfig, seed: int | None) -> dict[str, Any]:
        """What is asked for of a run that goes on. Precision and rows of a step, which depend on the machine, are those
        of the run. Raises ConfigError naming every key that a run cannot change."""
        try:
            configuration.check_resume(stored, self.config)
        except ConfigError as error:
            raise ConfigError(f"{error}\n  a new run may begin with these weights: train.warm_start={path}") from None
        layer, before = self._layer(seed), portable.read_pt(path).config["train"]
        layer["train"] |= {name: before[name] for name in ("precision", "batch_size")}
        if "steps" in self.settings.get("train", {}):
            del layer["train"]["epochs"]
        return configuration.merge(layer, self.settings)

    # --- training

    def train(self) -> dict[str, float]:
        """Train, evaluate the best epoch once on the test part, and return what was measured: ``t2v_R1`` … in percent;
        without a test part what the last validation measured."""
        if self.start.done is not None:
            say(self.start.done)
        else:
            with guide.out_of_memory(self._ways_out):
                self.result = guide.train(self.family, self.start, Lines(self), self.files)
        self.weights = self.files.best if self.files.best.exists() else self.files.last
        self.__dict__.pop("model", None)
        data = report_data.load(self.start.run)
        tests = [result.evaluation.metrics for result in data.results if result.split == "test"]
        found = tests[-1] if tests else {name: curve[-1][1] for name, curve in data.val.items()}
        return {named(name): value for name, value in found.items()}

    def _ways_out(self, reason: str) -> str:
        """The guide's three ways out of a want of memory, with this run's numbers."""
        training = self.config.training
        less, parts = max(1, training.batch_size // 2), 2 * training.gradient_accumulation_steps
        return "\n".join(
            [
                f"out of memory with training.batch_size {training.batch_size} ({reason})",
                f"  1. training.batch_size={less}",
                f"  2. training.batch_size={less} training.gradient_accumulation_steps={parts}: as many videos as now "
                "meet in one loss, half of them at a time",
                "  3. --mode sequential: one part trains at a time",
            ]
        )

    # --- use

    @cached_property
    def model(self) -> UnifiedTempMeSTOPModel:
        """That of the best epoch after ``train``; before, what training begins with. On the device of the run."""
        if self.weights is None:
            return create_unified_model(self.config, self.model_class).to(self.device)
        return load_unified_model(self.weights, self.model_class).to(self.device)

    @property
    def device(self) -> torch.device:
        cpu = self.start.config.train.device == "cpu" or not torch.cuda.is_available()
        return torch.device("cpu") if cpu else torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def evaluate(self, loader: Iterable[Five]) -> dict[str, float]:
        """Ranks over all pairs of a loader: ``{"t2v_R1": …}``, percent. Raises DataError."""
        with self._autocast():
            return evaluate_pairs(self.model, loader)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES.get(self.start.config.train.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    @cached_property
    def sources(self) -> Sources:
        """The parts of the data set. Reads it, and keeps the frames of training and validation."""
        many = distributed.is_initialized()
        world = (distributed.get_rank(), distributed.get_world_size(), distributed.barrier) if many else ()
        return self.family.sources(self.start.config, Host(str(self.device), *world))

    @property
    def train_dataloader(self) -> PairLoader:
        """Pairs in a new order each time, ``training.batch_size`` of them for each process."""
        return PairLoader(self.sources.train, self.start.config, self.config.training.batch_size, shuffled=True)

    @property
    def val_dataloader(self) -> PairLoader:
        """All queries of the validation part with their videos, on every process."""
        return self._held("val", self.sources.val)

    @property
    def test_dataloader(self) -> PairLoader:
        """Likewise of the test part, whose files nobody opens before."""
        return self._held("test", self.sources.test)

    def _held(self, name: str, source: Source | None) -> PairLoader:
        if source is None:
            raise DataError(f"there is no {name} part: training.{name}_data_path names none")
        assert isinstance(source, EvalSource)
        return PairLoader(Pairs.of(source), self.start.config, self.config.training.batch_size)


class PairLoader:
    """Batches of five tensors, see ``compute_training_loss``. ``shuffled``: every process has its share."""

    def __init__(self, source: Source, config: RunConfig, rows: int, *, shuffled: bool = False) -> None:
        self.source, self.config, self.rows, self.shuffled = source, config, rows, shuffled
        many = shuffled and distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if many else (0, 1)
        self.epoch = 0

    def __len__(self) -> int:
        if self.shuffled:
            return max(1, len(self.source) // (self.rows * self.world))
        return -(-len(self.source) // self.rows)

    def __iter__(self) -> Iterator[Five]:
        rows = self._shuffled() if self.shuffled else self._in_order()
        for batch in Batches(self.source, rows, self.config.loader):
            yield five(batch)

    def _shuffled(self) -> TrainingRows:
        """Those of the next epoch."""
        first, self.epoch = self.epoch * len(self), self.epoch + 1
        rows = self.rows * self.world
        order = order_of(self.source, self.config.seed, rows)
        return TrainingRows(order, Share(rows, 1, self.world), self.rank, first, first + len(self))

    def _in_order(self) -> list[list[tuple[int, int]]]:
        numbers = range(len(self.source))
        return [[(n, 0) for n in numbers[first : first + self.rows]] for first in range(0, len(numbers), self.rows)]


def precision(device: str) -> str:
    """What ``training.amp`` means on this machine: bf16 where the GPU has it, fp16 on others, fp32 on a CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


class Files(guide.EpochFiles):
    """The guide's, ``config.json``, and ``started_from.pth``: the file that a run of another mode began with."""

    ending = ".pth"

    def __init__(self, trainer: UnifiedModelTrainer) -> None:
        folder, every = trainer.config.folder, trainer.config.training.save_every_epochs
        super().__init__(trainer.family, folder, every, PREFIX, self._held)
        self.trainer, self.origin = trainer, trainer.start.config.train.warm_start

    @property
    def paths(self) -> tuple[Path, ...]:
        return *super().paths, self.folder / "config.json", self.started_from

    @property
    def started_from(self) -> Path:
        return self.folder / f"started_from{self.ending}"

    def keep_origin(self) -> None:
        """Give the file that the run begins with another name: new ones may take the one that it has."""
        if self.origin is None or Path(self.origin).absolute() == self.started_from.absolute():
            return
        second = self.started_from.with_name(f".{self.started_from.name}.tmp")
        remove(second)
        link_or_copy(Path(self.origin), second)
        rename(second, self.started_from)

    def _held(self, saved: Saved, *, stage: str, metrics: Mapping[str, float]) -> dict[str, Any]:
        config = session.read_config(self.family, saved.run)
        model, _ = sections(config)
        weights = checkpoint.load(saved.checkpoint, self.family.name).weights
        values = Values(
            config=self.trainer.config.to_dict(),
            mode=model.mode,
            stage=stage,
            active_parts=sorted(active_parts(model, stage)),
            model_class=self.trainer.own and self.trainer.own.name,
            epoch=saved.epoch,
            metrics=finite(metrics),
        )
        return portable_content(values, {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})


class Lines:
    """What the console shows; the engine tells what happens (listener.Listener)."""

    def __init__(self, trainer: UnifiedModelTrainer) -> None:
        self.trainer, self.files = trainer, trainer.files
        self.plan: list[Span] = []

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None:
        trainer, model = self.trainer, sections(config)[0]
        if trainer.start.point is None:
            self.files.begin_anew(but=config.train.warm_start)
            if Path(self.files.origin or "").is_file():
                self.files.keep_origin()
        trainer.config.to_json(self.files.folder / "config.json")
        self.plan = guide.plan(trainer.family, config, trainer.start.run, sources.train)
        wanted = trainer.config.training.amp and config.train.precision == "fp32"
        say(f"Device: {device.type}; precision: {precision}" + " (training.amp is for GPUs)" * wanted)
        stages = ", ".join(f"{span.stage.name} until step {span.end}" for span in self.plan)
        say(f"Model: {model.kind}, mode {model.mode}; epochs: {config.train.epochs or 0:g}; stages: {stages}")
        self.say_batch(config, model.loss.negatives)
        if trainer.own is not None and not trainer.own.grouped:
            say(f"{trainer.own.name}.compute_training_loss knows no groups: each row is a video of its own")
        say(f"These are the guide's values; {RECIPES}")

    def say_batch(self, config: RunConfig, negatives: str) -> None:
        rows, parts = config.train.batch_size, config.train.micro_batches
        if parts > 1 and negatives == "micro":
            say(
                f"Batch: {rows} videos in {parts} parts that do not meet: contrastive.negatives micro adds no negatives"
            )
        else:
            say(f"Batch: {rows} videos meet in one loss, {rows - 1} negatives each" + f"; {parts} parts" * (parts > 1))

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        span = next(span for span in self.plan if step <= span.end)
        if step % self.trainer.start.config.track.log_every == 0 or step in (span.first + 1, span.end):
            parts = [f"{name} {values[name]:.4f}" for name in ("loss", "tempme_loss", "stop_loss") if name in values]
            rates = [f"{name} {value:.1e}" for name, value in values.items() if name in ("lr/tempme", "lr/stop")]
            place = f"[{span.stage.name}] epoch {epoch:.2f} step {step}/{self.plan[-1].end}"
            say("  ".join([place, *parts, *rates]))

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        self.files.validated = step, metrics
        recall, r_sum, chance = (metrics[name] for name in ("t2v/R@1", "r_sum", "chance/r_sum"))
        say(f"Validation after epoch {epoch:.2f}: t2v_R1 {recall:.1f}, r_sum {r_sum:.1f} (chance {chance:.1f})")

    def saved(self, saved: Saved) -> None:
        self.files.write(saved)
        if saved.better:
            say(f"Best so far -> {self.files.best}")
