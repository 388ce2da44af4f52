"""``sensorium check``: everything that can be known before a long run, and every problem at once.

Data are read and sampled, a few steps are trained, saved, loaded and done again, validation is judged, and memory,
time and disk are predicted. Nothing is written but a temporary folder beside the run's, and the feature cache.
"""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sensorium import config as configuration
from sensorium.engine import launch, rundir, zero_start
from sensorium.engine.backend import Backend
from sensorium.engine.check_ahead import foreseen
from sensorium.engine.check_memory import Memory, reset_peak, small_batches, usable
from sensorium.engine.check_trial import Trial, Trials, reload_differences, resume_difference, validate
from sensorium.engine.contract import Family, Source, Sources, Table
from sensorium.engine.order import Clock, clock_of
from sensorium.engine.seeds import derive, generator
from sensorium.engine.settings import RunConfig
from sensorium.engine.tables import print_table, size_text
from sensorium.engine.tracking import duration_text, progress_bar
from sensorium.engine.wandb_curves import import_wandb
from sensorium.errors import ConfigError, DataError, RunError, SensoriumError, ShortageError, Stopped
from sensorium.files import remove

TRIED = 64  # samples of a split
BATCHES = 4  # of validation; the rest is extrapolated

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    item: str
    found: str
    verdict: Verdict


@dataclass
class Report:
    """What ``check`` found. ``measured``: numbers in bytes, seconds, rows and steps."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    measured: dict[str, float | int | None] = field(default_factory=dict)

    def add(self, item: str, found: str, *problems: str, note: bool = False) -> None:
        verdict: Verdict = "problem" if problems else "note" if note else "ok"
        self.rows.append(Row(item, found, verdict))
        self.problems += [problem for problem in problems if problem not in self.problems]

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "ready": not self.problems,
            "items": [asdict(row) for row in self.rows],
            "problems": self.problems,
            "measured": self.measured,
        }

    def refuse(self) -> None:
        """Raise ConfigError with all problems in numbered lines, if there are any."""
        if self.problems:
            head = f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)} found"
            raise ConfigError("\n".join([head, *(f"  {n}. {text}" for n, text in enumerate(self.problems, start=1))]))


def print_report(report: Report) -> None:
    """Print the table; ``refuse`` prints the problems."""
    rows = tuple((row.item, row.found, row.verdict) for row in report.rows)
    print_table(Table("Check", ("item", "found", "verdict"), rows))


@dataclass(frozen=True)
class _Check:
    """What every part of a check needs."""

    family: Family
    config: RunConfig
    folder: Path  # of the run to come
    report: Report
    quiet: bool

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def check(family: Family, config: RunConfig, folder: Path, *, quiet: bool = False) -> Report:
    """Try what a run of ``config`` in ``folder`` would do, on this device and in this one process.

    Where the run will use several processes, the share of one of them is tried. What a user can mend is collected in
    the report. Raises ConfigError under a launcher, RunError or Interrupted when a signal stopped the check.
    """
    if not launch.alone():
        raise ConfigError("check works in one process; start it without a launcher")
    report = Report()
    this = _Check(family, config, folder, report, quiet)
    report.add("configuration", f"{family.name}, preset {config.preset}, digest {configuration.digest(config)}")
    count = _processes(this)
    _deepspeed(this)
    disk = _run_folder(this)
    read = _read(this, count)
    if read is None:
        return report
    sources, device = read
    broken = _try_samples(this, sources)
    if not _look_ahead(this, sources, device, count):
        return report
    try:
        temporary = tempfile.TemporaryDirectory(prefix=".sensorium-check-", dir=disk)
    except OSError as error:
        report.add("disk", str(disk), f"{disk}: cannot be written to ({error.strerror})")
        return report
    with temporary as name:
        done = _try_run(this, Trials(family, config, sources, device, Path(name), bool(broken["train"])), broken, count)
    if done is not None:
        _disk(this, done, disk)
    return report


def _processes(this: _Check) -> int:
    """How many processes the run will have; 1 where the configuration's number is a problem."""
    try:
        count = launch.processes(this.config.train)
        share = launch.divided(this.config.train, count)
    except ConfigError as error:
        this.report.add("processes", "not as configured", str(error))
        return 1
    micro = this.config.train.micro_batches
    parts = f", micro-batches: {micro}" * (micro > 1)
    this.report.add("processes", f"{count}, each with {share.rows} rows of a step{parts}")
    return count


def _deepspeed(this: _Check) -> None:
    """Where the run will use DeepSpeed: whether it is there. What is tried here is tried without it."""
    settings = this.config.deepspeed
    if not settings.used:
        return
    try:
        version = zero_start.load(not torch.cuda.is_available()).__version__
    except ConfigError as error:
        this.report.add("deepspeed", "not installed", str(error))
        return
    tools = ", ".join(f"{name} {'is' if shutil.which(name) else 'is not'} there" for name in ("c++", "ninja"))
    found = f"{version}, ZeRO {settings.zero_stage}; builds nothing, so needs no compiler ({tools}); tried without it"
    this.report.add("deepspeed", found)


def _run_folder(this: _Check) -> Path:
    """Look whether the run folder is free; the folder above it that exists already."""
    try:
        if this.folder.is_dir():
            rundir.refuse_used(this.folder)
        elif this.folder.exists():
            raise ConfigError(f"{this.folder}: a file; --run takes another folder")
        if this.config.track.wandb != "off":
            import_wandb()
    except ConfigError as error:
        this.report.add("run folder", str(this.folder), str(error))
    else:
        this.report.add("run folder", f"{this.folder} is free")
    return next(path for path in this.folder.absolute().parents if path.is_dir())


def _read(this: _Check, count: int) -> tuple[Sources, torch.device] | None:
    """Read the data, and encode what the family encodes; None when they cannot be used."""
    try:
        with Backend(this.config.train) as backend:
            several = f"; the first of {count} processes" * (count > 1)
            this.report.add("device", backend.describe() + several, note=backend.precision_note is not None)
            return this.family.sources(this.config, backend.host(quiet=this.quiet)), backend.device
    except SensoriumError as error:
        this.report.add("data", "cannot be used", str(error))
        return None


def _try_samples(this: _Check, sources: Sources) -> dict[str, dict[int, str]]:
    """Prepare some samples of each split; what is wrong with the broken ones, by split and number."""
    seed = this.config.seed
    splits = {"train": sources.train, "val": sources.val, "test": sources.test}
    splits |= {f"train of stage {name}": source for name, source in sources.stages.items()}
    present = {name: source for name, source in splits.items() if source is not None}
    chosen = {
        name: sorted(
            generator(seed, "check", name).choice(len(source), min(TRIED, len(source)), replace=False).tolist()
        )
        for name, source in present.items()
    }
    broken: dict[str, dict[int, str]] = {name: {} for name in present}
    total, done = sum(len(numbers) for numbers in chosen.values()), 0
    with progress_bar("try samples", total, this.quiet) as advance:
        for name, source in present.items():
            for number in chosen[name]:
                try:
                    source.example(number, derive(seed, "check", number))
                except DataError as error:
                    broken[name][number] = str(error)
                done += 1
                advance(done, total)
    for name, source in present.items():
        _samples(this, name, source, (len(chosen[name]), broken[name]))
    return broken


def _samples(this: _Check, split: str, source: Source, tried: tuple[int, Mapping[int, str]]) -> None:
    count, broken = tried
    loader = this.config.loader
    found = f"{len(source):,} samples; {count} tried, {len(broken) or 'none'} broken"
    problems = [f"{split}: {text}" for text in broken.values()]
    if split == "train" and loader.bad_samples == "skip":  # validation and test are never judged with gaps
        clock = clock_of(source, this.config)
        expected = round(clock.total * clock.batch_size * len(broken) / count)
        found += f", about {expected:,} to be replaced" * bool(broken)
        if expected <= loader.max_bad:
            problems = []
        else:
            problems.append(f"{split}: about {expected:,} would be replaced; loader.max_bad is {loader.max_bad}")
    this.report.add(f"data: {split}", found, *problems, note=bool(broken))


def _look_ahead(this: _Check, sources: Sources, device: torch.device, count: int) -> bool:
    """Say what can be known before anything is trained; False where that says that nothing can be."""
    try:
        for one in foreseen(this.family, this.config, sources, device, count):
            this.report.add(one.item, one.found, *filter(None, [one.problem]), note=one.warning)
            if one.problem:
                return False
    except SensoriumError as error:
        this.report.add("outlook", "stopped", str(error))
    return True


def _try_run(this: _Check, trials: Trials, broken: Mapping[str, Mapping[int, str]], count: int) -> Trial | None:
    """Steps, resume, validation and what they cost; the last trial, or None when not even that was possible."""
    multiple = this.config.train.micro_batches
    rows = max(multiple, this.config.train.batch_size // count // multiple * multiple)
    try:
        memory = _try_small_batches(this, trials, rows, count)
        fits = memory is None or memory.fits
        tried = rows if memory is None or fits else memory.high[0]
        this.say(f"Trial: {trials.steps()} steps of {tried} rows, saved, loaded and repeated; then validation")
        done = trials.run("whole", tried)
        if memory is not None and fits:
            memory = replace(memory, whole=done.peak)
        _training(this, done)
        _resume(this, trials, done)
        _memory(this, done, memory, count)
    except ShortageError as error:
        this.report.add("training", "out of memory", str(error))
        return None
    except (Stopped, RunError):  # a signal, or a loader worker that died
        raise
    except SensoriumError as error:
        this.report.add("training", "stopped", str(error))
        return None
    seconds = _validation(this, trials, done, broken.get("val", {}))
    if fits:
        _time(this, clock_of(trials.sources.train, this.config), done.seconds, seconds / count)
    return done


def _try_small_batches(this: _Check, trials: Trials, rows: int, count: int) -> Memory | None:
    """Measure two smaller batches; None where the batch is too small for it, or the system does not measure."""
    sizes = small_batches(rows, this.config.train.micro_batches)
    if sizes is None or not reset_peak(trials.device):
        return None
    this.say(f"Trial: {trials.steps()} steps of {sizes[0]} and of {sizes[1]} rows, for their memory")
    peaks = []
    for size in (sizes[0], *sizes):  # first unmeasured: what is imported or allocated once belongs to none of them
        small = trials.run("small", size)
        remove(small.folder)  # the disk need not hold more than the run will
        peaks.append((size, small.peak or 0))
    return Memory(peaks[1], peaks[2], rows, usable(trials.device, count))


def _training(this: _Check, done: Trial) -> None:
    this.report.add("model", f"{done.trainable:,} parameters train, {done.frozen:,} are frozen in the task")
    losses = ", ".join(f"{loss:.4g}" for loss in done.losses) or "never finite"
    found = f"{done.steps} steps of {done.batch_size} rows, loss {losses}"
    problem = f"the loss or its gradient was not finite in {done.skipped} of {done.steps} steps"
    searching = this.config.train.precision == "fp16" and done.losses  # the scale of the loss is found by such steps
    if done.skipped and not searching:
        this.report.add("training", found, problem)
    else:
        this.report.add("training", found, note=done.skipped > 0)
    this.report.measured |= {"parameters": done.trainable, "step_seconds": done.seconds}


def _resume(this: _Check, trials: Trials, done: Trial) -> None:
    different = reload_differences(trials, done)
    if different:
        problem = f"a fresh task does not hold what was saved, for example {different[0]!r}"
        this.report.add("save and load", f"{len(different)} tensors differ", problem)
    else:
        this.report.add("save and load", "equal bit for bit")
    difference = resume_difference(trials, done)
    if difference is None:
        this.report.add("resume", f"step {done.steps} repeated from the checkpoint before it: equal bit for bit")
    elif difference.small:
        this.report.add("resume", f"{difference.text}: this GPU adds in a varying order", note=True)
    else:
        advice = "draws must come from the seeds that are given, state must be in parameters and persistent buffers"
        this.report.add("resume", difference.text, f"resume is not exact: {difference.text}; {advice}")


def _memory(this: _Check, done: Trial, memory: Memory | None, count: int) -> None:
    workers = f", without the {this.config.loader.workers} loader workers" * bool(this.config.loader.workers)
    if done.peak is None:
        this.report.add("memory", "not measured: this system does not reset the peak of a process", note=True)
        return
    this.report.measured["memory_measured"] = done.peak
    if memory is None:
        this.report.add("memory", f"{size_text(done.peak)} measured{workers}; too few rows to predict other batches")
        return
    largest = memory.largest(this.config.train.micro_batches)
    limit = "any batch" if largest is None else f"train.batch_size up to about {largest * count:,}"
    predicted = f"{size_text(memory.predicted)} predicted from {memory.low[0]} and {memory.high[0]} rows"
    this.report.measured |= {
        "memory_predicted": round(memory.predicted),
        "memory_usable": round(memory.usable),
        "memory_error": memory.error,
        "largest_batch_size": None if largest is None else largest * count,
    }
    if memory.error is not None:
        predicted += f", {size_text(done.peak)} measured{workers} (error {memory.error:+.1%})"
    found = f"{predicted}; usable {size_text(memory.usable)}: {limit}"
    if memory.fits:
        this.report.add("memory", found)
    else:
        needed, room = size_text(memory.predicted), size_text(memory.usable)
        needs = f"{memory.rows} rows a process need about {needed}; usable: {room}"
        this.report.add("memory", found, f"{needs}; {limit} fits, or more train.micro_batches")


def _validation(this: _Check, trials: Trials, done: Trial, broken: Mapping[int, str]) -> float:
    """Judge a few batches, repeated to the length of the split where it has more; seconds of a whole validation."""
    source, name = trials.sources.val, this.config.checkpoint.best_metric
    if source is None:
        this.report.add("validation", "no such split: the last checkpoint counts as the best one", note=True)
        return 0.0
    whole = [number for number in range(len(source)) if number not in broken]
    chosen = whole[: BATCHES * this.config.evaluate.batch_size]
    if not chosen:
        this.report.add("validation", "no sample can be used", note=True)  # each of them is a problem above
        return 0.0
    try:
        metrics, seconds = validate(trials, done, source, chosen)
    except SensoriumError as error:
        this.report.add("validation", "stopped", str(error))
        return 0.0
    this.report.measured["validation_seconds"] = seconds
    part = "all" if len(chosen) == len(source) else f"{len(chosen)} of {len(source):,}"
    found = f"{part} samples, {len(metrics)} metrics; a whole one takes {duration_text(seconds)}"
    validates = this.config.evaluate.every_epochs is not None or this.config.evaluate.every_steps is not None
    if name in metrics or not validates:
        this.report.add("validation", found, note=not validates)
        return seconds if validates else 0.0
    close = [f"did you mean {one!r}?" for one in difflib.get_close_matches(name, metrics, n=1)]
    hint = close[0] if close else f"there are: {', '.join(metrics)}"
    this.report.add("validation", found, f"checkpoint.best_metric {name!r} is not measured; {hint}")
    return seconds


def _time(this: _Check, ticks: Clock, step: float, validation: float) -> None:
    """``step`` and ``validation``: seconds of one."""
    config, total = this.config, ticks.total
    due = [ticks.due(n, config.evaluate.every_steps, config.evaluate.every_epochs) for n in range(1, total + 1)]
    epoch, whole = step * ticks.length / ticks.batch_size, step * total + validation * sum(due)
    this.report.measured |= {"epoch_seconds": epoch, "run_seconds": whole, "steps": total}
    this.report.add(
        "time",
        f"{step:.3g} s a step, {duration_text(epoch)} an epoch; the run: {total:,} steps, "
        f"{sum(due)} validations, about {duration_text(whole)}",
    )


def _disk(this: _Check, done: Trial, where: Path) -> None:
    keep, free = this.config.checkpoint.keep, shutil.disk_usage(where).free
    # The newest, milestones, the best one, the one that is being written, and two of each earlier stage.
    keep += this.config.checkpoint.most_milestones(int(this.report.measured.get("steps") or 0))
    most = keep + 2 + 2 * len(this.family.stages(this.config)) - 2
    need = most * done.checkpoint_bytes
    this.report.measured |= {"checkpoint_bytes": done.checkpoint_bytes, "disk_needed": need, "disk_free": free}
    one, all_of_them, left = map(size_text, (done.checkpoint_bytes, need, free))
    # That it suffices was seen to before the trial's first step.
    this.report.add("disk", f"{one} a checkpoint, {all_of_them} for {most} of them; free {left}")
