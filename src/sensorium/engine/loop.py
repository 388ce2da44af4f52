"""``train()``: the loop.

A step is a function of (weights, optimizer state, step number). Everything else, data order and random draws
included, follows from the step number, so a resumed run continues bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sensorium import config as configuration
from sensorium.engine import checkpoint, optim, rundir, shortage, signals, tracking, zero_start
from sensorium.engine import evaluate as evaluation
from sensorium.engine.backend import Backend
from sensorium.engine.contract import Batch, Begin, Evaluation, Family, Host, Output, Source, Sources
from sensorium.engine.finish import finish
from sensorium.engine.guard import Buffers
from sensorium.engine.listener import Listener, Saved
from sensorium.engine.loader import Batches, TrainingRows
from sensorium.engine.order import Share, clock_of, order_of, require_lengths
from sensorium.engine.schedule import in_steps, learning_rate
from sensorium.engine.seeds import reseed
from sensorium.engine.session import (
    Mute,
    Run,
    begin,
    build_task,
    fingerprints,
    first_weights,
    frozen_digest,
    require_room,
    restore,
    sizes,
    warm_start,
    weights_of,
)
from sensorium.engine.settings import RunConfig, preset_groups
from sensorium.engine.stages import Span, learnable, select, spans
from sensorium.engine.tracking import Tracker
from sensorium.errors import CheckpointError, ConfigError, DataError


def train(
    family: Family,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    listener: Listener | None = None,
) -> Evaluation | None:
    """Train, or continue, the run in ``folder``; returns the evaluation of the best checkpoint on the test split, or on
    validation where there is no test split.

    ``listener``, if given, is told what happens, on the main process.

    Raises ConfigError, DataError, CheckpointError (exit code 2) or RunError (1). SIGTERM (Stopped, 0) and Ctrl-C
    (Interrupted, 130) save and stop, SIGUSR1 saves; see docs/determinism.md for what they do outside of the steps.
    """
    # Say now what is missing, not after the data were encoded.
    optim.require(config.optim)
    zero_start.require(config.deepspeed, config.optim.name, family.accumulation)
    tracking.require(config.track)
    advice = f"; {_again(folder)}"
    processes = Backend(config.train, advice, config.deepspeed, whole_gradient=family.whole_gradient)
    with processes as backend, _stoppable(folder) as stop:
        started = configuration.flat(config) | rundir.versions() | {"resume": resume}
        backend.agree("configuration (start all with the same command)", started, ConfigError)
        if not backend.is_main:
            return _train(_Job(family, config, folder, backend, resume, True, None, stop))
        with rundir.locked(folder):
            if not resume:
                rundir.refuse_used(folder)
            return _train(_Job(family, config, folder, backend, resume, quiet, listener, stop))


@contextmanager
def _stoppable(folder: Path) -> Iterator[signals.Signals]:
    """Make one line of the signal that ends the block."""
    with signals.noted(insist=True) as stop:
        try:
            stop.enter("stopped before any step; {again}", waits=False)
            yield stop
            stop.enter("stopped; the run is complete", waits=False)  # asked for while the report was written
            stop.waits = True
        except signals.Now as now:
            begun = (folder / "config.yaml").exists()
            again = _again(folder) if begun else "nothing of the run is there yet, the same command begins again"
            raise signals.stopped(now.number, stop.line.replace("{again}", again)) from None


def _again(folder: Path) -> str:
    return f"`sensorium resume {folder}` continues"


class _Job(NamedTuple):
    """What ``train`` was asked for, on this process."""

    family: Family
    config: RunConfig
    folder: Path
    backend: Backend
    resume: bool
    quiet: bool
    listener: Listener | None
    stop: signals.Signals


def _train(job: _Job) -> Evaluation | None:
    family, config, folder, backend, resume, quiet, listener, stop = job
    begun = time.monotonic()
    host = backend.host(quiet=quiet)
    say = host.say
    if listener is None:
        say(f"Device: {backend.describe()}")
    for note in backend.notes:
        say(note)
    warm = None if resume else warm_start(config)
    sources = _sources(job, host)
    backend.agree("run folder (all must see one)", {"its lock": rundir.identity(folder)}, CheckpointError)
    clock = clock_of(sources.train, config)
    if backend.is_main and not resume:  # only now: missing data must not leave half a run behind
        rundir.create(folder, config)
    task, _ = build_task(family, config, sources, folder, backend)
    parameters = learnable(task)
    optim.require_groups(parameters, family.group, config.optim, preset_groups(family, config.preset))
    progress = restore(folder, task, parameters, config, say)
    if progress is None:
        progress = begin(family, task, config, warm or warm_start(config), say)
    backend.agree("position", {"step": progress.step}, CheckpointError)
    if clock.total < progress.step:
        done = f"{progress.step} steps are done already"
        raise ConfigError(f"{done}; the run cannot be made shorter ({clock.total} asked for)")
    plan = spans(family.stages(config), clock.total, progress.stage_ends)
    progress.stage_ends = [span.end for span in plan]
    if progress.step >= clock.total and rundir.finished(folder, progress.step):
        say(f"All {progress.step} steps are done; train.steps or train.epochs makes the run longer.")
        return None
    if backend.is_main:
        milestones = config.checkpoint.most_milestones(clock.total)
        require_room(folder, task, parameters, config, 2 * len(plan) - 2 + milestones)
    if backend.is_main and resume:  # only now: what cannot be trained must not stay
        rundir.store_config(folder, config)
        checkpoint.clear_leftovers(folder)  # where all steps are done, no save follows that would
    timings = {"data": time.monotonic() - begun}
    writer: Tracker | Mute = Mute()
    if backend.is_main:
        writer = Tracker(folder, config.track, clock.total, progress.step, quiet=quiet, listener=listener)
    stop.enter("stopped at once; the last checkpoint stays. {again}", waits=True)
    with writer as tracker:
        parts = config.train.micro_batches if family.accumulation == "sum" else 1
        share = Share(clock.batch_size, parts, backend.world)
        frozen = frozen_digest(task, parameters)
        run = Run(folder, family, config, backend, sources, task, parameters, frozen, Buffers(task), host, share, clock, progress, tracker, stop.received)  # fmt: skip  # noqa: E501
        _announce(run, listener)
        timings["train"] = _run_stages(run, plan)
    return finish(run, timings, say, stop)


def _sources(job: _Job, host: Host) -> Sources:
    """The data: the same on all processes, and such as can be ordered as the configuration says."""
    sources = job.family.sources(job.config, host)
    job.backend.agree("data", fingerprints(sources), DataError)
    require_lengths(sources, job.config)
    return sources


def _announce(run: Run, listener: Listener | None) -> None:
    """Say what begins; a listener says the size of it."""
    trainable, frozen = sizes(run)
    clock, say = run.clock, run.tracker.say
    epochs = clock.epoch(clock.total)
    if listener is None:
        say(f"Train samples: {len(run.sources.train)}; {clock.total} steps of {clock.batch_size} ({epochs:.4g} epochs)")
    say(f"Parameters: {trainable:,} trainable, {frozen:,} frozen in the task")
    if run.progress.step:
        say(f"Resumed at step {run.progress.step} of {clock.total}")
        before, now = run.progress.processes, run.backend.world
        if before is not None and before != now:
            say(
                f"Processes: {before} until now, {now} from here: the same samples at each step, but floating point "
                "sums and draws within the model differ, so not bit for bit what it would have been"
            )
    if listener is not None:
        precision = run.backend.precision_note or run.backend.precision
        listener.begun(run.config, run.sources, run.backend.device, precision)


def _run_stages(run: Run, plan: Sequence[Span]) -> float:
    """Train from the present step to the last one; the seconds that took."""
    begun = time.monotonic()
    with shortage.told(run.family, run.config, run.sources, run.backend.device, run.backend.world):
        for span in plan:
            if span.first == span.end:
                run.tracker.say(f"Stage {span.stage.name}: no step, for the whole run has {run.clock.total}")
            elif run.progress.step < span.end:
                _run_stage(run, span)
    return time.monotonic() - begun


def _run_stage(run: Run, span: Span) -> None:
    """Train from the present step to the end of ``span``."""
    progress, config = run.progress, run.config
    source = _begin_stage(run, span)
    chosen = select(run.parameters, span.stage)
    optimizer = optim.build(chosen, run.family.group, config.optim, span.stage.lr_scales)
    model = run.backend.prepare(run.task, optimizer, chosen, progress.optimizer, run.share)
    run.backend.read_state(progress.scaler)
    run.task.train()
    order = order_of(source, config.seed, config.train.batch_size, config.loader.sort_window)
    rows = TrainingRows(order, run.share, run.backend.rank, progress.step, span.end)
    batches = Batches(source, rows, config.loader, replaced=progress.replaced)
    stream = iter(batches)
    schedule = in_steps(config.schedule, 1 / run.clock.epoch(1))
    for step in range(progress.step, span.end):
        rates = optim.set_rates(optimizer, learning_rate(schedule, config.optim.lr, span, step))
        values = _step(run, model, stream, step)
        progress.step = step + 1
        if config.loader.bad_samples == "skip":  # counted over all processes
            more = torch.tensor([float(batches.replaced - progress.replaced)])
            batches.replaced = progress.replaced = progress.replaced + int(run.backend.sum(more)[0])
        for problem in batches.news:
            run.tracker.event(progress.step, f"bad sample replaced: {problem}", "warning")
        batches.news.clear()
        values |= {f"lr/{name}": rate for name, rate in rates.items()}
        values["skipped_steps"] = float(progress.guard.skipped)
        run.tracker.train(
            progress.step, run.clock.epoch(progress.step), span.stage.name, values, config.train.batch_size
        )
        _after_step(run, chosen, last_of_stage=progress.step == span.end)


def _begin_stage(run: Run, span: Span) -> Source:
    """Prepare for ``span``, at its beginning or within it; returns what it trains on."""
    progress = run.progress
    run.backend.release()
    if 0 < span.first == progress.step:
        progress.begin_stage()
    source = run.sources.stages.get(span.stage.name, run.sources.train)
    if run.family.begin_stage is not None:

        def weights() -> Mapping[str, torch.Tensor]:
            if progress.step == span.first:
                return {name: tensor.cpu() for name, tensor in weights_of(run.task, run.parameters).items()}
            if span.first == 0:  # before any checkpoint
                return first_weights(run)
            return checkpoint.load(checkpoint.folder_of(run.folder, span.first), run.family.name).weights

        run.family.begin_stage(run.task, Begin(span.stage, run.config, run.sources.shared, run.host, weights))
    return source


def _step(run: Run, model: Callable[[Batch], Output], stream: Iterator[Batch], step: int) -> dict[str, float]:
    """One optimizer step; returns what is logged. A step whose loss or gradient is not finite changes no weight."""
    backend, config, share = run.backend, run.config, run.share
    micros = [next(stream) for _ in range(share.micro_batches)]
    logs: dict[str, float] = {}
    weight = 0.0
    run.buffers.keep()
    for micro, loaded in enumerate(micros):
        batch = {name: tensor.to(backend.device, non_blocking=True) for name, tensor in loaded.items()}
        batch["step"] = torch.tensor(step)
        last = micro == share.micro_batches - 1
        reseed(config.seed, "forward", step, micro, backend.rank)
        with backend.micro_batch(last=last):
            output = model(batch)
            if backend.any(not bool(torch.isfinite(output.loss))):
                backend.drop_step(output.loss)
                return _skip(run, step, "loss", {})
            # Sums now, one division at the end: right also when micro-batches hold different numbers of items.
            backend.backward(output.loss * (output.weight / (share.rows * share.micro_batches)))
        weight += output.weight
        for name, value in {"loss": output.loss, **output.logs}.items():
            logs[name] = logs.get(name, 0.0) + float(value.detach()) * output.weight
    sums = backend.sum(torch.tensor([weight, *logs.values()], dtype=torch.float64)).tolist()
    values = {name: total / sums[0] for name, total in zip(logs, sums[1:], strict=True)}
    norm, moved = backend.finish_step(config.train.batch_size / sums[0], config.train.grad_clip)
    if not moved:
        return _skip(run, step, "gradient", values, run.backend.loss_scale())
    run.progress.guard.passed()
    alarm = run.family.at_chance and run.progress.guard.watch(run.family.at_chance(values))
    if alarm:
        run.tracker.event(step + 1, alarm, "alarm")
    if run.family.after_step is not None:
        with backend.whole(changed=True):
            run.family.after_step(run.task, step)
    return {**values, "grad_norm": norm}


def _skip(run: Run, step: int, what: str, values: dict[str, float], scale: float | None = None) -> dict[str, float]:
    # All take those of the main process: they are what a checkpoint holds, and DDP hands them on before a forward pass
    # only when the one before it was the last of its step.
    run.buffers.put_back(run.backend.from_main(run.buffers.kept))
    good, _ = checkpoint.complete(run.folder)
    line = run.progress.guard.skip(step + 1, what, str(good[-1]) if good else "none", scale)
    run.tracker.event(step + 1, line, "warning")
    return values


def _after_step(run: Run, chosen: dict[str, nn.Parameter], *, last_of_stage: bool) -> None:
    """Evaluate, save and stop, where that is due."""
    progress, config, clock = run.progress, run.config, run.clock
    step = progress.step
    better = False
    if run.sources.val is not None and clock.due(step, config.evaluate.every_steps, config.evaluate.every_epochs):
        better = _validate(run, run.sources.val)
    _draw(run)
    wanted = [number in run.stop for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)]
    saving, *stopping = run.backend.anywhere(wanted)
    due = clock.due(step, config.checkpoint.every_steps, config.checkpoint.every_epochs)
    due = due or clock.due(step, config.checkpoint.milestone_steps, config.checkpoint.milestone_epochs)
    if due or better or saving or any(stopping) or last_of_stage:
        progress.optimizer = run.backend.optimizer_state(chosen)
        progress.scaler, progress.processes = run.backend.write_state(), run.backend.world
        weights = run.backend.weights(lambda: weights_of(run.task, run.parameters))
        if run.backend.is_main:
            run.tracker.settle()
            content = checkpoint.Content(weights, progress.optimizer, progress.dump(), run.frozen)
            checkpoint.save(run.folder, run.family.name, step, content)
        best = progress.best or {}
        native = checkpoint.folder_of(run.folder, step)
        saved = Saved(run.folder, native, step, clock.epoch(step), better, best.get("value"))
        run.backend.save_shards(lambda: run.tracker.shards(saved))
        if run.backend.is_main:
            # First told, then pruned: until the listener's own files are new, what they were made from is there.
            run.tracker.saved(saved)
            kept = [*progress.kept, *_milestones(run), *([int(best["step"])] if best else [])]
            checkpoint.prune(run.folder, config.checkpoint.keep, kept, step)
        run.backend.barrier()
        while signal.SIGUSR1 in run.stop:
            run.stop.remove(signal.SIGUSR1)
        if saving:
            run.tracker.say(f"Saved at step {step}, as SIGUSR1 asked")
        run.tracker.restart_clock()
    if any(stopping):
        number = signal.SIGINT if stopping[-1] else signal.SIGTERM
        raise signals.stopped(number, f"stopped at step {step}; saved. {_again(run.folder)}")


def _milestones(run: Run) -> list[int]:
    """Steps of the newest checkpoints that were due as milestones."""
    settings = run.config.checkpoint
    steps = [step for folder in checkpoint.named(run.folder) if (step := checkpoint.step_of(folder))]
    if settings.milestone_steps is not None:
        found = [step for step in steps if step % settings.milestone_steps == 0]
    elif settings.milestone_epochs is not None:
        found = [step for step in steps if run.clock.crosses(step, settings.milestone_epochs)]
    else:
        return []
    return found[-(settings.milestones or settings.keep) :]


def _draw(run: Run) -> None:
    """Have the family draw pictures, where it does and they are due."""
    step, every = run.progress.step, run.config.evaluate.pictures_every_steps
    if run.family.pictures is None or run.sources.val is None or not run.clock.due(step, every, None):
        return
    found = evaluation.draw(run.task, run.sources.val, run.family, run.config, run.backend)
    run.tracker.pictures(step, found)
    run.tracker.restart_clock()


def _validate(run: Run, source: Source) -> bool:
    """Evaluate on the validation split; True when this is the best value so far."""
    progress, settings = run.progress, run.config.checkpoint
    judge = run.family.evaluator(run.config)
    result = evaluation.evaluate(run.task, source, judge, run.config, run.backend, final=False)
    run.tracker.validation(progress.step, run.clock.epoch(progress.step), dict(result.metrics))
    for warning in result.warnings:
        run.tracker.event(progress.step, warning, "alarm")
    if settings.best_metric not in result.metrics:
        raise ConfigError(
            f"checkpoint.best_metric {settings.best_metric!r} is not measured; there are: {', '.join(result.metrics)}"
        )
    value = result.metrics[settings.best_metric]
    if math.isnan(value):
        run.tracker.event(progress.step, f"{settings.best_metric} is not a number: this is not the best", "alarm")
        return False
    sign = 1 if settings.best_mode == "max" else -1
    if progress.best is not None and sign * value <= sign * progress.best["value"]:
        return False
    progress.best = {"step": progress.step, "value": value}
    return True
