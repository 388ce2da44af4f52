"""Which samples a step sees: a pure function of (seed, step, micro-batch, rank).

The training set is an endless stream of positions; position p belongs to epoch ``p // length``. A step takes
``batch_size`` consecutive positions, so every batch is full, no sample is lost or repeated within an epoch, and the
order does not depend on the number of processes. Where kinds of samples shall not meet in one step, each kind has such
a stream of its own, and a plan says which of them a step draws from. Where steps shall hold samples of like length,
those of some steps within an epoch change places, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from sensorium.engine.contract import Mix, Source, Sources
from sensorium.engine.lengths import LengthSource
from sensorium.engine.seeds import derive, generator
from sensorium.engine.settings import RunConfig
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

    def __init__(self, length: int, seed: int, groups: np.ndarray | None = None, kind: tuple[int, ...] = ()) -> None:
        self.length, self.seed, self.groups, self.kind = length, seed, groups, kind
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        draw = generator(self.seed, "order", *self.kind, epoch)
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


class MixedOrder:
    """Stream position -> sample number, where all ``batch_size`` positions of a step hold one kind of sample.

    An epoch has as many steps as hold all samples, shared out among the kinds by their weights (largest remainder, at
    least one step each) and shuffled. A kind's own stream goes on from turn to turn, so none of its samples is lost or
    comes again before the others of its kind.
    """

    def __init__(self, mix: Mix, seed: int, groups: np.ndarray | None, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size
        sizes = np.bincount(mix.kinds)
        self._turns = _shared_out(mix.weights or tuple(sizes), ceil(len(mix.kinds) / batch_size))
        self._members = [np.flatnonzero(mix.kinds == kind) for kind in range(len(sizes))]
        self._orders = [
            Order(len(rows), seed, None if groups is None else groups[rows], (kind,))
            for kind, rows in enumerate(self._members)
        ]
        self.length = sum(self._turns) * batch_size
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The kind of each step, and how many steps of that kind stood before it in this epoch."""
        plan = generator(self.seed, "plan", epoch).permutation(np.repeat(np.arange(len(self._turns)), self._turns))
        before = np.empty_like(plan)
        for kind, turns in enumerate(self._turns):
            before[plan == kind] = np.arange(turns)
        return plan, before

    def sample(self, position: int) -> int:
        step, place = divmod(position, self.batch_size)
        epoch, step = divmod(step, sum(self._turns))
        plan, before = self._epoch(epoch)
        kind = int(plan[step])
        turn = epoch * self._turns[kind] + int(before[step])
        return int(self._members[kind][self._orders[kind].sample(turn * self.batch_size + place)])


def _shared_out(weights: tuple[float, ...], steps: int) -> list[int]:
    """``steps`` divided in proportion to ``weights``: at least one each, so that it may become more of them."""
    parts = np.array(weights, np.float64) / sum(weights) * max(steps, len(weights))
    turns = np.maximum(1, np.floor(parts)).astype(int)
    for kind in np.argsort(np.floor(parts) - parts, kind="stable")[: max(0, steps - turns.sum())]:
        turns[kind] += 1
    return [int(number) for number in turns]


class SortedOrder:
    """Stream position -> sample number, where the rows of a step are of like length.

    Of each ``window`` steps (the last ones of an epoch may be fewer), the samples of ``order`` are sorted by length,
    equal ones as they came, and dealt out step by step; these steps then come in an order of their own, for from short
    to long would be a curriculum. A step with rows of two epochs stays as it is, so that an epoch keeps its samples.
    Rows of a step ascend: those of a process and of a micro-batch are alike, too.
    """

    def __init__(self, order: Order, length_of: Callable[[int], int], batch_size: int, window: int) -> None:
        self.order, self.length_of, self.batch_size, self.window = order, length_of, batch_size, window
        self.length, self.seed = order.length, order.seed
        self._samples = lru_cache(maxsize=2)(self._sort)

    def _sort(self, first: int, end: int) -> np.ndarray:
        """Samples ``[end - first, batch_size]`` of the steps of a window."""
        found = [self.order.sample(p) for p in range(first * self.batch_size, end * self.batch_size)]
        ascending = np.array(sorted(found, key=self.length_of)).reshape(-1, self.batch_size)
        turns = generator(self.seed, "window", first).permutation(end - first)
        if first == 0:  # begins with the longest, so that a lack of memory shows at once
            turns = np.append(end - 1, turns[turns != end - 1])
        return ascending[turns]

    def sample(self, position: int) -> int:
        step, place = divmod(position, self.batch_size)
        epoch = step * self.batch_size // self.length
        begin, end = -(-epoch * self.length // self.batch_size), (epoch + 1) * self.length // self.batch_size
        if step >= end:  # its last rows are of the next epoch
            return self.order.sample(position)
        first = step - (step - begin) % self.window
        return int(self._samples(first, min(first + self.window, end))[step - first, place])


AnyOrder = Order | MixedOrder | SortedOrder


def order_of(source: Source, seed: int, batch_size: int, sort_window: int = 0) -> AnyOrder:
    """The order of a training source; with a window, of one that ``require_lengths`` has let pass."""
    if source.mix is not None:
        return MixedOrder(source.mix, seed, source.groups, batch_size)
    order = Order(len(source), seed, source.groups)
    if not sort_window:
        return order
    assert isinstance(source, LengthSource)
    return SortedOrder(order, source.length, batch_size, sort_window)


def require_lengths(sources: Sources, config: RunConfig) -> None:
    """Raise ConfigError where samples are to be sorted by a length that they do not have."""
    window, trained = config.loader.sort_window, (sources.train, *sources.stages.values())
    if window and not all(isinstance(one, LengthSource) and one.groups is None and one.mix is None for one in trained):
        raise ConfigError(
            f"loader.sort_window is {window}, but the training samples of this run ({config.family}) have no length to "
            "sort by: nothing is padded to the longest of a batch, or its rows are each other's negatives; set it to 0"
        )


def rows_at(order: AnyOrder, positions: range) -> list[tuple[int, int]]:
    """(sample number, seed of the sample) of each position."""
    return [(order.sample(p), derive(order.seed, "example", p)) for p in positions]


def stand_in(source: Source, index: int, seed: int, attempt: int) -> int:
    """The sample that replaces a broken one: of the same kind, and from the seed, as a resumed run takes the same."""
    draw = derive(seed, "replacement", attempt)
    if source.mix is None:
        return draw % len(source)
    alike = np.flatnonzero(source.mix.kinds == source.mix.kinds[index])
    return int(alike[draw % len(alike)])


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
        return every_epochs is not None and self.crosses(steps_done, every_epochs)

    def crosses(self, steps_done: int, every_epochs: float) -> bool:
        """Whether the last step led to a multiple of so many epochs, or beyond it."""
        now, before = (round(self.epoch(s) / every_epochs, 9) for s in (steps_done, steps_done - 1))
        return int(now) > int(before)


def clock_of(source: Source, config: RunConfig) -> Clock:
    """The clock of a run whose epochs are those of ``source``. Raises ConfigError where a step is larger than those."""
    batch_size = config.train.batch_size
    if batch_size > len(source):
        raise ConfigError(
            f"train.batch_size is {batch_size:,}, but there are {len(source):,} training samples; give at most as many "
            "rows"
        )
    length = order_of(source, config.seed, batch_size).length
    return Clock(length, batch_size, total_steps(length, batch_size, config.train.epochs, config.train.steps))


def evaluation_batches(length: int, batch_size: int, rank: int, world: int) -> Iterator[range]:
    """Batches in file order; a batch's rows do not depend on the number of processes."""
    starts = range(0, length, batch_size)
    for number in range(rank, len(starts), world):
        yield range(starts[number], min(starts[number] + batch_size, length))
