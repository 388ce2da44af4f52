"""What the scripts of the training guides share: their flags, files and way to the engine. Heavy imports wait."""

from __future__ import annotations

import argparse
import difflib
import importlib
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from sensorium import launched
from sensorium.errors import ConfigError, RunError, ShortageError, Stopped

if TYPE_CHECKING:
    from sensorium.engine.continuation import Start
    from sensorium.engine.contract import Evaluation, Family, Loaded, Source
    from sensorium.engine.listener import Listener, Saved
    from sensorium.engine.settings import RunConfig
    from sensorium.engine.stages import Span


class Parser(argparse.ArgumentParser):
    """Flags of which only those count that were given; a mistake is one line (ConfigError)."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def flag(self, name: str, kind: Callable[[str], Any], default: object, text: str) -> None:
        """Add a flag. ``default``: what the guide promises, for ``--help``; None where there is nothing to say."""
        shown = text if default is None else f"{text} (default: {default})"
        self.add_argument(name, type=kind, metavar=kind.__name__.upper(), help=shown)

    def given(self, words: Sequence[str] | None = None) -> dict[str, Any]:
        """The flags that were given, by name. Raises ConfigError."""
        typed = launched.words(sys.argv[1:] if words is None else words)
        known, unknown = self.parse_known_intermixed_args(typed)
        for word in unknown:
            close = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists the flags"
            raise ConfigError(f"{word}: unknown flag; {hint}")
        return vars(known)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")


def off_the_path(script: str) -> None:
    """Take the folder of a script out of the places where modules are looked for.

    A guide's own ``datasets.py`` or ``model.py`` beside it would otherwise be taken for the package of that name.
    """
    folder = Path(script).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != folder]


def settings_of(given: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """Flags as configuration: ``places`` says for each which ``section.key`` it sets."""
    tree: dict[str, Any] = {}
    for flag, place in places.items():
        if flag in given:
            section, _, key = place.partition(".")
            tree.setdefault(section, {})[key] = given[flag]
    return tree


class Files(Protocol):
    """The files that a guide promises. ``last``: of the newest checkpoint; ``flag``: what goes on from it."""

    @property
    def flag(self) -> str: ...

    @property
    def last(self) -> Path: ...

    @property
    def paths(self) -> tuple[Path, ...]: ...

    def write(self, saved: Saved) -> None: ...


@dataclass(frozen=True)
class BestAndLast:
    """``best.pt`` and ``last.pt`` in one folder, each written whole or not at all."""

    folder: Path
    flag: str = "--checkpoint"

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.best, self.last

    def write(self, saved: Saved) -> None:
        """``last.pt`` with each checkpoint, ``best.pt`` before it where it is the best so far."""
        from sensorium.engine.portable import write_pt

        for path in self.paths if saved.better else (self.last,):
            write_pt(saved, path)


class Content(Protocol):
    """From a complete checkpoint to what a family's own file holds: ``model_state_dict`` and plain values."""

    def __call__(self, saved: Saved, *, stage: str, metrics: Mapping[str, float]) -> dict[str, Any]: ...


class ModelContent(Protocol):
    """The same, from the run's whole model."""

    def __call__(self, loaded: Loaded, *, stage: str, epoch: float, metrics: Mapping[str, float]) -> dict[str, Any]: ...


def of_model(family: Family, content: ModelContent) -> Content:
    """What ``content`` gives for the model of a checkpoint, which is built and opened for that."""

    def from_checkpoint(saved: Saved, *, stage: str, metrics: Mapping[str, float]) -> dict[str, Any]:
        from sensorium.engine import session

        loaded = session.open_run(family, saved.run, saved.checkpoint.name)
        return content(loaded, stage=stage, epoch=saved.epoch, metrics=metrics)

    return from_checkpoint


class EpochFiles:
    """``best_model.pt``, ``final_model.pt``, ``checkpoint_epoch_N.pt`` (N from 1) and ``checkpoint_last.pt``.

    They hold what ``content`` gives: the weights whose names begin with ``prefix``, and plain values. Epochs that are
    multiples of ``every`` have a file, and those in which a stage ends.
    """

    flag, ending = "--resume", ".pt"

    def __init__(self, family: Family, folder: Path, every: int, prefix: str, content: Content) -> None:
        self.family, self.folder, self.every, self.prefix, self.content = family, folder, every, prefix, content
        self.validated: tuple[int, Mapping[str, float]] | None = None  # step and metrics, as a listener hears of them

    @property
    def best(self) -> Path:
        return self.folder / f"best_model{self.ending}"

    @property
    def last(self) -> Path:
        return self.folder / f"checkpoint_last{self.ending}"

    @property
    def final(self) -> Path:
        return self.folder / f"final_model{self.ending}"

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.best, self.final, self.last, *sorted(self.folder.glob(f"checkpoint_epoch_*{self.ending}"))

    def write(self, saved: Saved) -> None:
        """The last one, which gets the other names that are due, each whole or not at all."""
        from sensorium.engine import checkpoint, rundir, session
        from sensorium.engine.portable import write_part
        from sensorium.files import link_or_copy, remove, rename

        ends = rundir.read_json(saved.checkpoint / checkpoint.STATE)["stage_ends"]
        stages = self.family.stages(session.read_config(self.family, saved.run))
        stage = stages[bisect_left(ends, saved.step)].name
        content = self.content(saved, stage=stage, metrics=self._metrics(saved))
        write_part(saved, self.last, self.prefix, content)
        epoch = due_epoch(saved, self.every, ends)
        names = [self.best] * saved.better + [self.final] * (saved.step == ends[-1])
        for path in (*names, *([] if epoch is None else [self.folder / f"checkpoint_epoch_{epoch}{self.ending}"])):
            second = path.with_name(f".{path.name}.tmp")
            remove(second)  # of a process that was killed
            link_or_copy(self.last, second)
            rename(second, path)

    def _metrics(self, saved: Saved) -> Mapping[str, float]:
        """Of the validation at this step; empty where there was none."""
        from sensorium.engine.files import plain, read_lines

        if self.validated is not None and self.validated[0] == saved.step:
            found: Mapping[str, float] = plain(self.validated[1])
            return found
        if self.validated is not None or not (saved.run / "metrics.jsonl").exists():
            return {}
        lines = (line for line in read_lines(saved.run / "metrics.jsonl") if line.get("kind") == "val")
        return next((line["metrics"] for line in lines if line["step"] == saved.step), {})

    def begin_anew(self, but: str | None) -> None:
        """Remove what an earlier run left, which has been set aside with it; ``but``: the file that this one begins
        with."""
        from sensorium.files import remove

        for path in self.paths:
            if but is None or path.absolute() != Path(but).absolute():
                remove(path)


def due_epoch(saved: Saved, every: int, stage_ends: Sequence[int]) -> int | None:
    """The epoch, counted from 1, that ended at this step or in which a stage did; None where no file is due."""
    now, before = (round(saved.epoch * step / saved.step, 9) for step in (saved.step, saved.step - 1))
    if int(now / every) > int(before / every):
        return int(now / every) * every
    if saved.step not in stage_ends:
        return None
    return int(now) if int(now) > int(before) else math.ceil(now)


@contextmanager
def out_of_memory(ways_out: Callable[[str], str]) -> Iterator[None]:
    """Turn an end for want of memory into what ``ways_out`` says of its reason (RunError)."""
    from sensorium.engine import shortage

    try:
        yield
    except ShortageError as error:  # in training; the advice is ours
        raise RunError(ways_out(error.reason)) from error
    except (MemoryError, RuntimeError) as error:
        if not shortage.is_shortage(error):
            raise
        raise RunError(ways_out(shortage.reason_of(error))) from error


def no_8bit(device: str = "auto") -> str | None:
    """Why 8-bit AdamW cannot be used; None where it can: bitsandbytes imports, and training is on a GPU."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return "8-bit AdamW needs a GPU"
    try:
        importlib.import_module("bitsandbytes.optim")
    except ImportError:
        return "8-bit AdamW needs bitsandbytes"
    return None


def plan(family: Family, config: RunConfig, run: Path, source: Source) -> list[Span]:
    """The stages of a run with their steps: where they end by now, or will."""
    from sensorium.engine import checkpoint, rundir
    from sensorium.engine.order import clock_of
    from sensorium.engine.stages import spans

    good, _ = checkpoint.complete(run)
    ends = list(rundir.read_json(good[-1] / checkpoint.STATE)["stage_ends"]) if good else []
    return spans(family.stages(config), clock_of(source, config).total, ends)


def leads(start: Start) -> bool:
    """Whether this process is the one that speaks, of those that train: one a visible GPU.

    Leaves the program when nothing is left to be done, or when processes that it started have done it.
    """
    from sensorium.engine import launch

    if start.done is not None:
        if launch.is_main():
            print(start.done)
        sys.exit(0)
    code = launch.spread(start.config.train)
    if code is not None:
        sys.exit(code)
    return launch.is_main()


def train(family: Family, start: Start, listener: Listener, files: Files) -> Evaluation | None:
    """Train as decided; returns the evaluation of the best checkpoint, to the main process only."""
    from sensorium.engine import checkpoint, continuation, launch

    try:
        result = continuation.train(family, start, listener, files)
    except ShortageError:
        raise
    except (RunError, Stopped) as error:
        saved = files.last.exists() and checkpoint.complete(start.run)[0]  # else it is an earlier run's
        way = f"\nTo go on: {files.flag} {files.last}" if saved else ""
        told = type(error)(f"{error}{way}")
        told.exit_code = error.exit_code
        raise told from error
    return result if launch.is_main() else None
