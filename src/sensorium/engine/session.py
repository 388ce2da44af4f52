"""What a run is made of: opening it, giving it weights, and the summary it leaves."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError
from torch import Tensor, nn

from sensorium import config as configuration
from sensorium.engine import checkpoint, optim, portable_folder, rundir
from sensorium.engine.contract import Begin, Family, Host, Loaded, Source, Sources
from sensorium.engine.guard import Buffers, Guard
from sensorium.engine.listener import Saved
from sensorium.engine.order import Clock, Share
from sensorium.engine.seeds import reseed
from sensorium.engine.settings import RunConfig, config_class
from sensorium.engine.stages import learnable, stage_at
from sensorium.engine.tracking import Level, Tracker
from sensorium.errors import CheckpointError

if TYPE_CHECKING:  # accelerate, which using a trained model need not wait for
    from sensorium.engine.backend import Backend

Say = Callable[[str], None]
_log = logging.getLogger(__name__)


class Mute:
    """The tracker of the processes that do not write."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        pass

    def train(self, step: int, epoch: float, stage: str, values: Mapping[str, float], rows: int) -> None:
        pass

    def validation(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        pass

    def pictures(self, step: int, found: Mapping[str, bytes]) -> None:
        pass

    def settle(self) -> None:
        pass

    def saved(self, saved: Saved) -> None:
        pass

    def shards(self, saved: Saved) -> Path | None:
        return None

    def event(self, step: int, text: str, level: Level = "info") -> None:
        pass

    def restart_clock(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Best(configuration.Section):
    """The best validation so far."""

    step: int = Field(ge=0)
    value: float = Field(allow_inf_nan=True)


class State(configuration.Section):
    """What ``state.json`` holds: what ``Progress`` dumps."""

    step: int = Field(ge=0)
    best: Best | None
    stage_ends: list[int]
    kept: list[int]
    replaced: int = Field(ge=0)
    scaler: dict[str, float]
    processes: int | None = Field(ge=1)
    guard: dict[str, int]


@dataclass
class Progress:
    """Everything of a run that is not in its configuration, weights and optimizer: the content of ``state.json``."""

    guard: Guard
    step: int = 0
    best: dict[str, float] | None = None
    stage_ends: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)  # steps of the checkpoints that are not pruned: see begin_stage
    replaced: int = 0
    processes: int | None = None  # that trained up to here; checkpoints of before do not say
    scaler: dict[str, float] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        names = ("step", "best", "stage_ends", "kept", "replaced", "processes", "scaler")
        return {**{name: getattr(self, name) for name in names}, "guard": self.guard.dump()}

    def begin_stage(self) -> None:
        """Another stage has another measure: its best is chosen anew. What the last one reached is kept for good."""
        self.kept = sorted({*self.kept, *([int(self.best["step"])] if self.best else []), self.step})
        self.best = None

    @classmethod
    def load(cls, state: dict[str, Any], optimizer: dict[str, Tensor], max_skipped: int) -> Progress:
        values = {**state, "guard": Guard(max_skipped, **state["guard"])}
        return cls(**values, optimizer=optimizer)


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    folder: Path
    family: Family
    config: RunConfig
    backend: Backend
    sources: Sources
    task: nn.Module
    parameters: dict[str, nn.Parameter]  # all that the family means to train, whichever the stage
    frozen: str  # digest of the other parameters
    buffers: Buffers
    host: Host
    share: Share
    clock: Clock
    progress: Progress
    tracker: Tracker | Mute
    stop: list[int]  # signals received


def build_task(
    family: Family, config: RunConfig, sources: Sources, folder: Path, backend: Backend
) -> tuple[nn.Module, dict[str, Any]]:
    """The task and its facts: those stored with a resumed run, or taken from the data of a new one."""
    prints = fingerprints(sources)

    def stored_or_new() -> dict[str, Any]:
        if not os.path.lexists(folder / "facts.json"):
            if checkpoint.named(folder):  # taken anew, they could be those of other data, and nobody would know
                raise CheckpointError(f"{folder}: facts.json is gone; copy it back, or train anew in another folder")
            rundir.write_facts(folder, prints, family.facts(config, sources))
        return rundir.read_facts(folder)

    stored = backend.from_main(stored_or_new)
    require_same_data(folder, stored, prints)
    reseed(config.seed, "weights")
    return family.task(config, stored["facts"]), stored["facts"]


def fingerprints(sources: Sources) -> dict[str, str]:
    """Of each split that is there."""
    splits: dict[str, Source | None] = {"train": sources.train, "val": sources.val, "test": sources.test}
    stages = {f"train of stage {name}": source for name, source in sources.stages.items()}
    return {name: source.fingerprint for name, source in (splits | stages).items() if source is not None}


def require_same_data(folder: Path, stored: Mapping[str, Any], prints: Mapping[str, str]) -> None:
    """Raise CheckpointError when a split is not the one that ``facts.json`` was written with, or is gone, or new."""
    before = stored["fingerprints"]
    changed = [name for name in before.keys() | prints.keys() if before.get(name) != prints.get(name)]
    if changed:
        names = ", ".join(sorted(changed))
        raise CheckpointError(f"{folder}: the {names} data are not those that this run was begun with")


def frozen_digest(task: nn.Module, parameters: dict[str, nn.Parameter]) -> str:
    """Digest of the parameters that the family froze itself; they are not stored."""
    return checkpoint.digest_of({name: p for name, p in task.named_parameters() if name not in parameters})


def weights_of(task: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """What a checkpoint holds: the learnable parameters and all persistent buffers."""
    learned = set(map(id, parameters.values()))
    named = task.named_parameters(remove_duplicate=False)  # of tied weights all names
    frozen = {name for name, parameter in named if id(parameter) not in learned}
    return {name: tensor for name, tensor in task.state_dict().items() if name not in frozen}


def require_room(
    folder: Path, task: nn.Module, parameters: dict[str, nn.Parameter], config: RunConfig, more: int
) -> None:
    """Before the first step: what is known to end on a full disk is not begun. ``more``: kept besides the newest."""
    weights = sum(tensor.nbytes for tensor in weights_of(task, parameters).values())
    size = weights + optim.state_bytes(parameters, config.optim)
    checkpoint.require_room(folder, size, config.checkpoint.keep + more)


def load_weights(
    task: nn.Module, parameters: dict[str, nn.Parameter], content: checkpoint.Content, origin: Path
) -> None:
    """Give ``task`` the weights of a checkpoint: strict over everything that ``weights_of`` names, or over the part.

    Raises CheckpointError naming the first difference, also when the frozen weights are not the same.
    """
    if content.frozen != frozen_digest(task, parameters):
        raise CheckpointError(f"{origin}: the frozen weights are not those that this run was begun with")
    weights = content.weights
    expected = {name: tensor for name, tensor in weights_of(task, parameters).items() if name.startswith(content.part)}
    wrong = sorted(expected.keys() ^ weights.keys()) or [n for n in expected if expected[n].shape != weights[n].shape]
    if wrong:
        raise CheckpointError(f"{origin}: does not fit the model of this configuration, for example at {wrong[0]!r}")
    task.load_state_dict(weights, strict=False)


def load(path: Path, family: str) -> checkpoint.Content:
    """A checkpoint of a run, every byte proven, with a state as this version writes it. Raises CheckpointError."""
    content = checkpoint.load(path, family)
    _prove_state(path, content.state)
    return content


def _prove_state(path: Path, state: dict[str, Any]) -> None:
    try:
        found = State.model_validate(state, strict=True)
    except ValidationError as error:
        reason = checkpoint.first_problem(error)
        raise CheckpointError(f"{path}: {checkpoint.STATE} is not as this version writes it ({reason})") from None
    if found.guard.keys() != Guard(0).dump().keys():
        raise CheckpointError(f"{path}: {checkpoint.STATE} is not as this version writes it (guard)")
    if found.step != checkpoint.check(path).step:
        raise CheckpointError(f"{path}: {checkpoint.STATE} is that of step {found.step}")


def newest(folder: Path, family: str) -> Iterator[tuple[Path, checkpoint.Content | str]]:
    """As ``checkpoint.newest``, and a state that this version did not write is a reason, too."""
    for path, content in checkpoint.newest(folder, family):
        if not isinstance(content, str):
            try:
                _prove_state(path, content.state)
            except CheckpointError as error:
                yield path, f"passed over: {error}"
                continue
        yield path, content


def restore(
    folder: Path, task: nn.Module, parameters: dict[str, nn.Parameter], config: RunConfig, say: Say
) -> Progress | None:
    """Load the newest whole checkpoint into ``task``; None when there is none yet (the run then starts at step 0).

    Raises CheckpointError when there are some, but none that can be used: starting anew would throw them away.
    """
    damaged = 0
    for path, content in newest(folder, config.family):
        if isinstance(content, str):
            say(content)
            damaged += 1
            continue
        load_weights(task, parameters, content, path)
        progress = Progress.load(content.state, content.optimizer, config.guard.max_skipped)
        if progress.best and (problem := _best_problem(folder, config.family, int(progress.best["step"]), path)):
            say(f"The best checkpoint so far, of step {int(progress.best['step'])}, {problem}: best is chosen anew")
            progress.best = None
        return progress
    if damaged:
        raise CheckpointError(f"{folder}: none of its {damaged} checkpoints can be used; train anew in another folder")
    return None


def _best_problem(folder: Path, family: str, step: int, proven: Path) -> str | None:
    """Why the best checkpoint could not be evaluated when the run ends; known now, there is time for another one."""
    best = checkpoint.folder_of(folder, step)
    if best == proven:
        return None
    if not best.is_dir():
        return "is gone"
    try:
        checkpoint.prove(best, family)
    except CheckpointError as error:
        return f"cannot be used ({error})"
    return None


def warm_start(config: RunConfig) -> checkpoint.Content | None:
    """The weights that ``train.warm_start`` names, None where it names none. Raises CheckpointError."""
    if config.train.warm_start is None:
        return None
    path = Path(config.train.warm_start).expanduser()
    if path.is_dir() and not portable_folder.is_one(path):
        if there := checkpoint.named(path):  # a run, whose best checkpoint may be another one tomorrow
            raise CheckpointError(f"{path}: is a run; train.warm_start takes one checkpoint of it, such as {there[-1]}")
        return checkpoint.load(path.resolve(), config.family)
    found = portable_folder.read_any(path)
    if found.head.family != config.family:
        raise CheckpointError(f"{path}: weights of family {found.head.family!r}, not {config.family!r}")
    return found.content()


def begin(family: Family, task: nn.Module, config: RunConfig, warm: checkpoint.Content | None, say: Say) -> Progress:
    """The start of a run that has no checkpoint yet, with the weights of ``warm`` if there are any."""
    if warm is not None:
        origin = str(config.train.warm_start)
        load_weights(task, learnable(task), warm, Path(origin))
        say(f"Weights of {origin}; optimizer and position start anew")
    elif family.initial is not None:
        family.initial(task, config)
    return Progress(Guard(config.guard.max_skipped))


def first_weights(run: Run) -> dict[str, Tensor]:
    """What the run began with, made anew from its seed. Raises CheckpointError when what it started from is gone."""
    reseed(run.config.seed, "weights")
    task = run.family.task(run.config, rundir.read_facts(run.folder)["facts"])
    begin(run.family, task, run.config, warm_start(run.config), lambda _: None)
    return weights_of(task, learnable(task))


def read_config(family: Family, folder: Path) -> RunConfig:
    """The resolved configuration of a run. Raises CheckpointError when the run is of another family."""
    content = rundir.stored_config(folder)
    if content.get("family") != family.name:
        raise CheckpointError(f"{folder}: a run of family {content.get('family')!r}, not {family.name!r}")
    return configuration.build(config_class(family), content, str(folder / "config.yaml"))


def choose_checkpoint(folder: Path, family: str, which: str) -> Path:
    """``best``, ``latest`` or the name of a checkpoint folder. Raises CheckpointError listing what there is.

    ``latest`` is the newest that is whole, of which ``best`` is asked for; one passed over is said on standard error.
    """
    if which not in ("best", "latest"):
        chosen = folder / "checkpoints" / which
        if which in ("", "..") or Path(which).name != which or not chosen.is_dir():
            there = ", ".join(path.name for path in checkpoint.complete(folder)[0]) or "none"
            raise CheckpointError(f"{folder}: no checkpoint {which!r}; there are: best, latest, {there}")
        return chosen
    problem = "holds no complete checkpoint yet"
    for path, found in newest(folder, family):
        if not isinstance(found, str):
            best = found.state["best"] if which == "best" else None
            return checkpoint.folder_of(folder, best["step"]) if best else path
        _log.warning("%s", found)
        problem = "holds no checkpoint that can be used"
    raise CheckpointError(f"{folder}: {problem}")


def open_run(family: Family, folder: Path, which: str = "best") -> Loaded:
    """A trained run, ready for use on the CPU, in evaluation mode. Raises CheckpointError."""
    config = read_config(family, folder)
    path = choose_checkpoint(folder, family.name, which)
    reseed(config.seed, "weights")
    facts = rundir.read_facts(folder)["facts"]
    task = family.task(config, facts)
    parameters = learnable(task)
    content = load(path, family.name)
    load_weights(task, parameters, content, path)
    if family.begin_stage is not None:
        stage = stage_at(family.stages(config), content.state["stage_ends"], content.state["step"])
        family.begin_stage(task, Begin(stage, config, None, Host(), lambda: content.weights))
    return Loaded(folder, path, config, facts, task.eval(), checkpoint.digest_of(content.weights))


def sizes(run: Run) -> tuple[int, int]:
    """How many numbers any stage of the run trains, and how many stay as they are."""
    patterns = {pattern for stage in run.family.stages(run.config) for pattern in stage.trainable}
    names = (name for name in run.parameters if any(fnmatchcase(name, pattern) for pattern in patterns))
    trainable = sum(run.parameters[name].numel() for name in names)
    return trainable, sum(p.numel() for p in run.task.parameters()) - trainable


def summary(run: Run, timings: dict[str, float]) -> dict[str, Any]:
    """``summary.json``: what the run cost and reached."""
    trainable, frozen = sizes(run)
    best = run.progress.best
    return {
        "parameters": {"trainable": trainable, "frozen": frozen},
        "seconds": {name: round(value, 2) for name, value in timings.items()},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu_bytes": run.backend.peak_memory(),
        "steps": run.progress.step,
        "best": None if best is None else {**best, "metric": run.config.checkpoint.best_metric},
        "skipped_steps": run.progress.guard.skipped,
        "replaced_samples": run.progress.replaced,
    }
