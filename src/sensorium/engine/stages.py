"""Which parameters train at which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from sensorium.engine.contract import Stage
from sensorium.errors import ConfigError


@dataclass(frozen=True)
class Span:
    """A stage with its steps: ``first`` is its first step, ``end`` the one after its last (both counted from 0)."""

    stage: Stage
    first: int
    end: int


def spans(stages: Sequence[Stage], total: int, stored_ends: Sequence[int] = ()) -> list[Span]:
    """Divide ``total`` steps by the stages' shares. A longer run keeps ``stored_ends`` of all stages but the last.

    In a run of few steps a stage may have none (``first`` is then ``end``).
    """
    if abs(sum(stage.share for stage in stages) - 1.0) > 1e-6:
        raise ConfigError(f"the shares of the stages sum to {sum(s.share for s in stages):g}; they must sum to 1")
    if stored_ends:
        ends = [*stored_ends[:-1], total]
    else:
        shares = [sum(s.share for s in stages[: i + 1]) for i in range(len(stages))]
        ends = [round(total * share) for share in shares[:-1]] + [total]
    firsts = [0, *ends[:-1]]
    if any(end < first for first, end in zip(firsts, ends, strict=True)):
        raise ConfigError(f"{total} steps end before the last stage, {stages[-1].name!r}, begins at step {firsts[-1]}")
    return [Span(*parts) for parts in zip(stages, firsts, ends, strict=True)]


def stage_at(stages: Sequence[Stage], ends: Sequence[int], step: int) -> Stage:
    """The stage that the last of ``step`` steps belonged to; ``ends`` as they are stored."""
    return next(stage for stage, end in zip(stages, ends, strict=True) if step <= end)


def learnable(task: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the family means to train, by name: those that it did not freeze itself."""
    return {name: p for name, p in task.named_parameters() if p.requires_grad}


def select(parameters: dict[str, nn.Parameter], stage: Stage) -> dict[str, nn.Parameter]:
    """Switch gradients on for what ``stage`` trains and off for the rest; returns what trains."""
    chosen = {n: p for n, p in parameters.items() if any(fnmatchcase(n, pattern) for pattern in stage.trainable)}
    unused = [pattern for pattern in stage.trainable if not any(fnmatchcase(n, pattern) for n in parameters)]
    if unused or not chosen:
        raise ConfigError(f"stage {stage.name!r} names parameters that the model does not have: {', '.join(unused)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
        if name not in chosen:
            parameter.grad = None
    return chosen
