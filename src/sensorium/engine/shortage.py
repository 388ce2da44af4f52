"""The memory of a training step as its family foresees it: what it comes to, and what to do where it is too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sensorium.engine.contract import Demand, Family, Sources
from sensorium.engine.order import Share
from sensorium.engine.settings import RunConfig
from sensorium.engine.tables import size_text
from sensorium.errors import ShortageError


def is_shortage(error: BaseException) -> bool:
    """Whether this is an end for want of memory. The CPU's allocator has no error of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def reason_of(error: BaseException) -> str:
    """What the system says of it, one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def told(family: Family, config: RunConfig, sources: Sources, device: torch.device, world: int) -> Iterator[None]:
    """Turn an end for want of memory into one line: what it was foreseen to be, and what needs less (ShortageError)."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        rows, reason = share_of(config, world).rows, reason_of(error)
        found = None if family.demand is None else family.demand(config, sources, rows, device)
        if found is not None:
            reason = f"{reason}; foreseen: {parts_text(found)}"
        levers = ", ".join((*(found.levers if found is not None else ()), *_fewer(config, world)))
        advice = f"; the cheapest way out first: {levers}" * bool(levers)
        what = f"out of memory with {rows_text(rows)} at a time"
        raise ShortageError(f"{what} ({reason}){advice}", reason) from error


def share_of(config: RunConfig, world: int) -> Share:
    """How the rows of a step are divided. Raises ConfigError."""
    return Share(config.train.batch_size, config.train.micro_batches, world)


def rows_text(count: int) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} row{'s' * (count != 1)}"


def parts_text(found: Demand) -> str:
    """Part by part, and the sum."""
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in found.parts.items())
    return f"{parts}: {size_text(found.total)} in all"


def divisions(config: RunConfig, world: int) -> Iterator[Share]:
    """The ways in which a step can be computed with the same rows, most rows at a time first."""
    whole = config.train.batch_size // world
    for parts in range(1, whole + 1):
        if config.train.batch_size % (parts * world) == 0:
            yield Share(config.train.batch_size, parts, world)


def _fewer(config: RunConfig, world: int) -> list[str]:
    """Fewer rows at a time, where there can be."""
    fewer = [one.micro_batches for one in divisions(config, world) if one.micro_batches > config.train.micro_batches]
    return [f"train.micro_batches={fewer[0]} (the same steps)"] if fewer else []
