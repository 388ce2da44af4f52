"""Which samples a step sees: a pure function of (seed, step, micro-batch, rank).

The training set is an endless stream of positions; position p belongs to epoch ``p // length``. A step takes
``batch_size`` consecutive positions, so every batch is full, no sample is lost or repeated within an epoch, and the
order does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from sensorium.engine.seeds import derive, generator
from sensorium.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """How a step's rows are divided: over ``world`` processes and ``micro_batches`` in each."""

    batch_size: int
    micro_batches: int
    world: int

    def __post_init__(self) -> None:
        parts = self.micro_batches * self.world
        if self.batch_size % parts:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}; it must be a multiple of {parts} "
                f"({self.world} processes x {self.micro_batches} micro-batches)"
            )

    @property
    def rows(self) -> int:
        """Rows of one micro-batch on one process."""
        return self.batch_size // (self.micro_batches * self.world)

    def positions(self, step: int, micro: int, rank: int) -> range:
        """Stream positions of one micro-batch. ``step`` counts from 0."""
        start = step * self.batch_size + (micro * self.world + rank) * self.rows
        return range(start, start + self.rows)


class Order:
    """Stream position -> sample number.

    ``groups`` ``[length]``: an epoch is then a sequence of rounds, and a group occurs at most once in each: with five
    captions a picture, a round shows every picture once, with another of its captions than the rounds before.
    """

    def __init__(self, length: int, seed: int, groups: np.ndarray | None = None) -> None:
        self.length, self.seed, self.groups = length, seed, groups
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        draw = generator(self.seed, "order", epoch)
        if self.groups is None:
            return draw.permutation(self.length)
        shuffled = draw.permutation(self.length)
        groups = self.groups[shuffled]
        by_group = np.argsort(groups, kind="stable")
        starts = np.searchsorted(groups[by_group], groups[by_group])
        rounds = np.empty(self.length, np.int64)
        rounds[by_group] = np.arange(self.length) - starts
        # A second draw, so that the place within a round does not depend on the group's size.
        return shuffled[np.lexsort((draw.permutation(self.length), rounds))]

    def sample(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        return int(self._epoch(epoch)[place])

    def rows(self, positions: range) -> list[tuple[int, int]]:
        """(sample number, seed of the sample) of each position."""
        return [(self.sample(p), derive(self.seed, "example", p)) for p in positions]


def total_steps(length: int, batch_size: int, epochs: float | None, steps: int | None) -> int:
    """Optimizer steps of a run; an epoch's last step may reach into the next one."""
    return steps if steps is not None else max(1, ceil(round(length * (epochs or 0) / batch_size, 9)))


@dataclass(frozen=True)
class Clock:
    """When something is due that happens each so many steps or epochs, and always after the last step."""

    length: int
    batch_size: int
    total: int

    def epoch(self, steps_done: int) -> float:
        return steps_done * self.batch_size / self.length

    def due(self, steps_done: int, every_steps: int | None, every_epochs: float | None) -> bool:
        if steps_done == self.total:
            return every_steps is not None or every_epochs is not None
        if every_steps is not None and steps_done % every_steps == 0:
            return True
        if every_epochs is None:
            return False
        now, before = (round(self.epoch(s) / every_epochs, 9) for s in (steps_done, steps_done - 1))
        return int(now) > int(before)


def evaluation_batches(length: int, batch_size: int, rank: int, world: int) -> Iterator[range]:
    """Batches in file order; a batch's rows do not depend on the number of processes."""
    starts = range(0, length, batch_size)
    for number in range(rank, len(starts), world):
        yield range(starts[number], min(starts[number] + batch_size, length))
