"""What the scripts of the training guides share: their flags, files and way to the engine. Heavy imports wait."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sensorium.errors import ConfigError, RunError, Stopped

if TYPE_CHECKING:
    from sensorium.engine.continuation import Start
    from sensorium.engine.contract import Evaluation, Family, Listener, Saved


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
        known, unknown = self.parse_known_args(words)
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


@dataclass(frozen=True)
class BestAndLast:
    """``best.pt`` and ``last.pt`` in one folder, each written whole or not at all."""

    folder: Path

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


def train(family: Family, start: Start, listener: Listener, files: BestAndLast) -> Evaluation | None:
    """Train as decided; returns the evaluation of the best checkpoint, to the main process only."""
    from sensorium.engine import checkpoint, continuation, launch

    try:
        result = continuation.train(family, start, listener, files)
    except (RunError, Stopped) as error:
        saved = files.last.exists() and checkpoint.complete(start.run)[0]  # else it is an earlier run's
        way = f"\nTo go on: --checkpoint {files.last}" if saved else ""
        told = type(error)(f"{error}{way}")
        told.exit_code = error.exit_code
        raise told from error
    return result if launch.is_main() else None
