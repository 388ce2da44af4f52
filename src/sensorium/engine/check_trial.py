"""Short real runs for ``sensorium check``: the loop itself in temporary folders, its memory, and its resume.

Nothing here copies the loop. A trial is ``loop.train`` with every stage of the family shortened to one step and the
last one to three; what a trial costs is read from the files that every run leaves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sensorium.engine import checkpoint, loop, rundir, session
from sensorium.engine import evaluate as evaluation
from sensorium.engine.backend import Backend
from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.engine.contract import Batch, Example, Family, Mix, Source, Sources, Stage
from sensorium.engine.files import read_lines
from sensorium.engine.settings import RunConfig
from sensorium.errors import Interrupted, RunError, Stopped
from sensorium.files import remove

GPU_TOLERANCE = 1e-3  # of the loss: kernels that add in a varying order differ by less, forgotten draws by more


@dataclass(frozen=True)
class Trial:
    """What a short run showed. ``peak``: bytes, None where this system does not measure them."""

    folder: Path
    batch_size: int
    steps: int
    losses: tuple[float, ...]
    skipped: int
    seconds: float  # of a step, once warm
    peak: int | None
    checkpoint_bytes: int
    trainable: int
    frozen: int


@dataclass(frozen=True)
class Trials:
    """What all trials of one check share. ``skip_broken``: broken samples are known and must not stop a trial."""

    family: Family
    config: RunConfig
    sources: Sources
    device: torch.device
    folder: Path
    skip_broken: bool = False

    def shortened(self) -> Family:
        """The family with its data as read, and its stages as short as a trial wants them."""
        stages = self.family.stages(self.config)
        total = self.steps()
        shares = [1 / total] * (len(stages) - 1) + [(total - len(stages) + 1) / total]
        short = tuple(replace(stage, share=share) for stage, share in zip(stages, shares, strict=True))

        def sources(*_: object) -> Sources:
            return self.sources

        def stage_list(_: RunConfig) -> tuple[Stage, ...]:
            return short

        return replace(self.family, sources=sources, stages=stage_list)

    def steps(self) -> int:
        return len(self.family.stages(self.config)) + 2

    def settings(self, batch_size: int) -> RunConfig:
        """The configuration of a trial: what is learned is the run's, what is written is little."""
        config, steps = self.config, self.steps()
        skipping = {"bad_samples": "skip", "max_bad": 1000} if self.skip_broken else {}
        return config.model_copy(
            update={
                "train": config.train.model_copy(update={"steps": steps, "epochs": None, "batch_size": batch_size}),
                "checkpoint": config.checkpoint.model_copy(
                    update={"every_steps": 1, "every_epochs": None, "milestone_steps": None, "keep": 2}
                ),
                "evaluate": config.evaluate.model_copy(
                    update={"every_epochs": None, "every_steps": None, "pictures_every_steps": None, "test": False}
                ),
                "track": config.track.model_copy(update={"tensorboard": False, "wandb": "off"}),
                "loader": config.loader.model_copy(update=skipping),
                "deepspeed": config.deepspeed.model_copy(update={"enabled": False}),
                "guard": config.guard.model_copy(update={"max_skipped": steps + 1}),
            }
        )

    def train(self, name: str, batch_size: int, *, resume: bool = False) -> Path:
        """One trial; its folder. Raises what ``loop.train`` raises; a stop that was asked for is no success here."""
        folder = self.folder / name
        try:
            loop.train(self.shortened(), self.settings(batch_size), folder, resume=resume, quiet=True)
        except Interrupted:
            raise Interrupted("check: stopped") from None
        except Stopped:
            raise RunError("check: stopped") from None
        return folder

    def run(self, name: str, batch_size: int) -> Trial:
        """Train and measure."""
        measured = reset_peak(self.device)
        folder = self.train(name, batch_size)
        peak = read_peak(self.device) if measured else None
        steps = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
        times = [line["seconds"] for line in read_lines(folder / "times.jsonl") if "seconds" in line]
        sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in checkpoint.complete(folder)[0]]
        summary = rundir.read_json(folder / "summary.json")
        return Trial(
            folder,
            batch_size,
            len(steps),
            tuple(float(line["loss"]) for line in steps if "loss" in line),
            summary["skipped_steps"],
            sum(times[-2:]) / 2,
            peak,
            max(sizes),
            **summary["parameters"],
        )


@dataclass(frozen=True)
class Difference:
    """What a repeated step did otherwise. ``small``: no more than a GPU that adds in a varying order explains."""

    text: str
    small: bool = False


def reload_differences(trials: Trials, trial: Trial) -> list[str]:
    """Names of the tensors that a fresh task, opened from the trial's last checkpoint, does not hold bit for bit."""
    loaded = session.open_run(trials.shortened(), trial.folder, "latest")
    stored = checkpoint.load(loaded.checkpoint, trials.family.name).weights
    fresh = loaded.task.state_dict()
    return [name for name in stored if not _same(stored[name], fresh[name])]


def resume_difference(trials: Trials, trial: Trial) -> Difference | None:
    """Do the last step again from the checkpoint before it, as after a kill; None when nothing differs."""
    last = checkpoint.folder_of(trial.folder, trial.steps)
    first, lines = checkpoint.load(last, trials.family.name), (trial.folder / "metrics.jsonl").read_bytes()
    remove(last)
    remove(trial.folder / "summary.json")
    trials.train(trial.folder.name, trial.batch_size, resume=True)
    again = checkpoint.load(last, trials.family.name)
    small = trials.device.type == "cuda" and _last_losses_agree(trial)
    tensors = (("weight", first.weights, again.weights), ("optimizer state", first.optimizer, again.optimizer))
    for what, ours, theirs in tensors:
        if ours.keys() != theirs.keys():
            return Difference(f"{what} {min(ours.keys() ^ theirs.keys())!r} is there only once")
        different = [name for name in ours if not _same(ours[name], theirs[name])]
        if different:
            name = max(different, key=lambda n: _distance(ours[n], theirs[n]))
            return Difference(f"{what} {name!r} differs by {_distance(ours[name], theirs[name]):.1e}", small)
    if first.state != again.state:
        return Difference("state.json differs")
    same = lines == (trial.folder / "metrics.jsonl").read_bytes()
    return None if same else Difference("the logged values differ", small)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return checkpoint.digest_of({"": left}) == checkpoint.digest_of({"": right})  # bytes: NaN equals itself


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.double() - right.double()).abs().max()) if left.shape == right.shape else float("inf")


def _last_losses_agree(trial: Trial) -> bool:
    losses = [float(line["loss"]) for line in read_lines(trial.folder / "metrics.jsonl") if "loss" in line]
    if not losses or not trial.losses:
        return False
    return abs(losses[-1] - trial.losses[-1]) <= GPU_TOLERANCE * abs(trial.losses[-1])


def validate(trials: Trials, trial: Trial, source: Source, chosen: Sequence[int]) -> tuple[Mapping[str, float], float]:
    """Metrics of the ``chosen`` samples, and the seconds that the whole of ``source`` would take.

    Where samples are left out, the answers to the chosen ones are repeated in their place: the names of the metrics
    and the time of the judgement are then real, their values are not.
    """
    config, length = trials.config, len(source)
    loaded = session.open_run(trials.shortened(), trial.folder, "latest")
    judge = trials.family.evaluator(config)
    with Backend(config.train) as backend:
        begun = time.monotonic()
        task = loaded.task.to(backend.device)
        collected = evaluation.collect(task, Rows(source, chosen), judge, config, backend, final=False)
        collecting = time.monotonic() - begun
        places = torch.arange(length) % len(chosen)
        answers = {name: tensor[places] for name, tensor in collected.items()} | {"index": torch.arange(length)}
        begun = time.monotonic()
        metrics = judge.score(answers, source, task.eval(), final=False).metrics
    return metrics, collecting * length / len(chosen) + time.monotonic() - begun


class Rows:
    """Some rows of a split, as a split: ``numbers`` are sample numbers of ``source``."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, numbers
        self.fingerprint = f"{len(numbers)} rows of {source.fingerprint}"
        self.groups = None if source.groups is None else source.groups[list(numbers)]
        self.mix: Mix | None = None  # it is evaluated, and trained on by nobody

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, seed: int) -> Example:
        return self.source.example(self.numbers[index], seed)

    def collate(self, examples: Sequence[Example]) -> Batch:
        return self.source.collate(examples)
