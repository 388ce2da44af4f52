"""How a guide's script begins: anew, or from a ``.pt`` file that it wrote before, exactly wherever that is possible.

From such a file a run goes on

- in place, where the file was made from the newest checkpoint of its run;
- as a branch, where it was made from an earlier one, or is to go on in another folder: the run as it was is kept;
- with the weights alone (``train.warm_start``), where its native checkpoint is gone.

It is always said which. What is decided (``continue_from``) and what is done (``train``) are apart, because every
process of a run decides, and the main process alone touches files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sensorium import config as configuration
from sensorium.engine import checkpoint, launch, loop, portable, portable_folder, ranks, rundir, session, settings
from sensorium.engine.contract import Evaluation, Family
from sensorium.engine.listener import Listener, Saved
from sensorium.engine.settings import RunConfig, config_class
from sensorium.errors import CheckpointError, ConfigError
from sensorium.files import remove, rename


class Files(Protocol):
    """The files that a guide promises beside the run folder."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them, written or not."""

    def write(self, saved: Saved) -> None:
        """Write what follows from a complete checkpoint."""


@dataclass(frozen=True)
class Point:
    """A native checkpoint to go on from exactly; ``epoch``: its position in epochs."""

    native: Path
    epoch: float


@dataclass(frozen=True)
class Start:
    """How a run begins. ``done``: the line to end with, as nothing is left to be done."""

    config: RunConfig
    run: Path
    point: Point | None = None
    notes: tuple[str, ...] = ()
    done: str | None = None


def continue_from(
    family: Family, path: Path, changes: Mapping[str, Any], run: Path | None = None, longer: str = "--epochs "
) -> Start:
    """Decide how to go on from the file ``path``, with what ``changes`` of its configuration.

    ``run``: the folder to go on in; None: the one that the file's run has. ``longer``: what makes a run longer, on the
    command line. Raises CheckpointError for a file that
    cannot be used, ConfigError listing every change of what a run cannot change.
    """
    found = portable_folder.read_any(path)
    head = found.head
    if head.family != family.name:
        raise CheckpointError(f"{path}: of family {head.family!r}, not {family.name!r}")
    stored = configuration.build(config_class(family), found.config, str(path))
    layers = (configuration.dump(stored), changes)
    wanted = settings.resolve(family, stored.preset, *layers, origin="command line")
    try:
        configuration.check_resume(stored, wanted)
    except ConfigError as error:
        raise ConfigError(f"{error}\n  a new run may begin with these weights: train.warm_start={path}") from None
    native, reason = portable.find_native(found), "is gone"
    if native is not None:
        try:
            session.load(native, family.name)
        except CheckpointError as error:
            native, reason = None, f"cannot be used: {error}"
    name = Path(head.checkpoint.absolute).parents[1].name
    target = run or (path.parent / name if native is None else native.parents[1].with_name(name))
    if _reached(wanted, head) and not (native and _unevaluated(native, head.step)):
        return Start(wanted, target, done=_done(wanted, head, longer))
    if native is not None:
        return Start(wanted, target, Point(native, head.epoch), _inexact(stored, wanted))
    train = wanted.train.model_copy(update={"warm_start": str(path)})
    note = f"The native checkpoint of {path} {reason}; only its weights can be used"
    return Start(wanted.model_copy(update={"train": train}), target, notes=(note,))


def train(family: Family, start: Start, listener: Listener, files: Files) -> Evaluation | None:
    """Carry out what was decided, keep what stood in the way, and train. Raises as ``loop.train`` does."""
    with ranks.met(start.config.train.timeout_minutes):  # who has yet to decide must find all as it was
        return _train(family, start, listener, files)


def _train(family: Family, start: Start, listener: Listener, files: Files) -> Evaluation | None:
    if launch.is_main():
        for note in start.notes:
            print(note, flush=True)
    if start.point is None:
        with _making_room(start.run, files) if launch.is_main() else nullcontext():
            return loop.train(family, start.config, start.run, listener=listener)
    if launch.is_main():
        _stand_at(family, start.point, start.run, files)
    return loop.train(family, start.config, start.run, resume=True, listener=listener)


def _reached(wanted: RunConfig, head: portable.Head) -> bool:
    if wanted.train.steps is not None:
        return head.step >= wanted.train.steps
    return round(head.epoch - (wanted.train.epochs or 0), 9) >= 0


def _done(wanted: RunConfig, head: portable.Head, longer: str) -> str:
    asked, done, unit, flag = wanted.train.epochs, head.epoch, "epochs", longer
    if asked is None:
        asked, done, unit, flag = wanted.train.steps or 0, head.step, "steps", "--set train.steps="
    whole = max(asked, math.floor(round(done, 9)))  # a last step may have reached into the next epoch
    done = whole if 2 * whole > done else math.ceil(100 * done) / 100
    return f"{done:g} of {asked:g} {unit} are done; give {flag}{2 * done:g} to go on"


def _unevaluated(native: Path, step: int) -> bool:
    """Whether the run ended here, and was killed before it was evaluated and summed up."""
    run = native.parents[1]
    return _newest(run) == native.resolve() and not rundir.finished(run, step)


def _newest(run: Path) -> Path | None:
    good, _ = checkpoint.complete(run)
    return good[-1].resolve() if good else None


def _inexact(stored: RunConfig, wanted: RunConfig) -> tuple[str, ...]:
    """Allowed changes that make another run of it than the one that was begun."""
    changed = []
    if stored.optim.lr != wanted.optim.lr:
        changed.append(f"learning rate {stored.optim.lr:g}, now {wanted.optim.lr:g}")
    lengths = [(c.train.epochs, c.train.steps) for c in (stored, wanted)]
    if wanted.schedule.name != "constant" and lengths[0] != lengths[1]:
        changed.append(f"the {wanted.schedule.name} schedule ends elsewhere")
    return (f"Not bit-exact from here: {'; '.join(changed)}",) if changed else ()


@contextmanager
def _making_room(run: Path, files: Files) -> Iterator[None]:
    """Set an earlier run aside; it gets its name back when no new one was begun, for want of data, say."""
    created = [folder for folder in run.parents if not folder.exists()]
    aside = rundir.set_aside(run, files.paths)
    if aside is not None:
        print(f"The earlier run is kept as {aside}", flush=True)
    try:
        yield
    except BaseException:
        if aside is not None and not run.exists():
            rename(aside, run)
            for path in files.paths:
                remove(run / path.name)
            if {path.name for path in run.iterdir()} <= {".lock"}:  # there had been files, and no run
                remove(run)
            print(f"No new run was begun: {aside} is {run} again", flush=True)
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                remove(folder)
        raise


def _stand_at(family: Family, point: Point, run: Path, files: Files) -> None:
    """Make ``run`` stand at the point and nowhere later, and the guide's files say so."""
    origin, native = point.native.parents[1], point.native
    state = session.load(native, family.name).state
    step, best = int(state["step"]), state["best"]
    at = f"exactly at step {step} (epoch {point.epoch:.4g})"
    # Those of earlier stages, too: a stage may ask for the weights that it began with.
    earlier = {*state["kept"], *([] if best is None else [int(best["step"])])} - {step}
    there = {number: checkpoint.folder_of(origin, number) for number in sorted(earlier)}
    folders = {number: folder for number, folder in there.items() if folder.is_dir()} | {step: native}
    if _newest(run) == native.resolve():
        print(f"Continuing {run} {at}", flush=True)
    else:
        aside = rundir.branch(origin, tuple(folders.values()), run, files.paths)
        kept = "" if aside is None else f"; what was there is kept as {aside}"
        print(f"Continuing {origin} {at}, as a branch in {run}{kept}", flush=True)
        for path in files.paths if aside is not None else ():  # of a later point; the folder set aside has them
            remove(path)
    with rundir.locked(run):
        for number in folders:
            better = best is not None and int(best["step"]) == number
            value = None if best is None else float(best["value"])
            epoch = point.epoch * number / step
            files.write(Saved(run, checkpoint.folder_of(run, number), number, epoch, better, value))
