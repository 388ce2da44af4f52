"""What a family foresees of a run that is to be begun. Families find it in ``contract.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from sensorium.engine.contract import Sources
    from sensorium.engine.settings import RunConfig


@dataclass(frozen=True)
class Ahead:
    """A run that is to be begun.

    ``task``: as it would begin, on the CPU. ``reach``: the sum of its learning rates over all steps, by name of what
    trains: AdamW moves a weight by little more. ``rows``: of a micro-batch in one process.
    """

    config: RunConfig
    sources: Sources
    task: nn.Module
    reach: Mapping[str, float]
    rows: int


@dataclass(frozen=True)
class Finding:
    """One row of ``sensorium check``. ``problem``: why such a run cannot be, after which nothing is tried any more."""

    item: str
    found: str
    warning: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Demand:
    """Memory of a training step in one process where it is at its peak: bytes by part. ``levers``: settings that need
    less, ``section.key=value`` and what it costs, the cheapest first; that of fewer rows is the engine's."""

    parts: Mapping[str, int]
    levers: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())
