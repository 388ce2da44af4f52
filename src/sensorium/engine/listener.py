"""How a script follows its run: who is told what happens, and what is said of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from sensorium.engine.contract import Sources
    from sensorium.engine.settings import RunConfig


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was completed just now. ``better``: it holds the best validation so far, of ``value``."""

    run: Path
    checkpoint: Path
    step: int
    epoch: float
    better: bool
    value: float | None


class Listener(Protocol):
    """Is told what happens in a run, by its main process: how a script prints its own lines and writes its own files.

    With a listener the console shows the bar and the warnings, but no lines of steps and validations.
    """

    def begun(self, config: RunConfig, sources: Sources, device: torch.device, precision: str) -> None:
        """Data and model are ready. ``precision``: the one in use, and the one asked for where it is another."""

    def stepped(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """An optimizer step was done, the ``step``-th counted from 1."""

    def validated(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """The validation split was evaluated."""

    def saved(self, saved: Saved) -> None:
        """A checkpoint is complete."""


@runtime_checkable
class ShardListener(Listener, Protocol):
    """A listener that also wants DeepSpeed's own files of what such a run saves."""

    def shards(self, saved: Saved) -> Path | None:
        """A folder that is not there yet, whose name becomes their tag; all processes write into it, and ``saved`` is
        called when they are through. None: not of this checkpoint."""
