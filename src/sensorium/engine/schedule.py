"""Learning rate as a function of the step: no state, nothing to save."""

from __future__ import annotations

from math import cos, pi

from sensorium.engine.settings import Schedule
from sensorium.engine.stages import Span


def in_steps(schedule: Schedule, steps_of_epoch: float) -> Schedule:
    """The same with its warm-up counted in steps."""
    if schedule.warmup_epochs is None:
        return schedule
    steps = round(schedule.warmup_epochs * steps_of_epoch)
    return schedule.model_copy(update={"warmup_steps": steps, "warmup_epochs": None})


def learning_rate(schedule: Schedule, base: float, span: Span, step: int) -> float:
    """Rate at ``step`` (from 0) inside ``span``: linear warm-up, then constant, cosine or linear to the span's end.

    The warm-up must be given in steps (``in_steps``).
    """
    done = step - span.first
    peak = base * span.stage.lr_scale
    length = span.end - span.first
    warmup = schedule.warmup_steps
    if schedule.warmup_fraction is not None:
        warmup = min(warmup, int(length * schedule.warmup_fraction))
    if done < warmup:
        return peak * (done + 1) / warmup
    if schedule.name == "constant":
        return peak
    left = (done + 1 - warmup) / max(1, length - warmup)
    fall = (1 - cos(pi * left)) / 2 if schedule.name == "cosine" else left
    return peak * (1 - (1 - schedule.final_fraction) * fall)
