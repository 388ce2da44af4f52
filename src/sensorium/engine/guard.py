"""Steps whose loss or gradient is not finite: skipped, counted, and after too many in a row the run stops.

A skipped step leaves the task as it was. That its parameters stay is the optimizer's business; what a forward pass
writes into buffers (running statistics, queues, counters) is taken back here: one NaN in a running mean would stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sensorium.errors import RunError

PATIENCE = 500  # steps at chance before the alarm


class Guard:
    """Counts skipped steps, and steps at chance. The counts are part of the checkpoint, so that a resumed run gives
    up, or raises the alarm, at the same step."""

    def __init__(self, max_skipped: int, in_a_row: int = 0, skipped: int = 0, at_chance: int = 0) -> None:
        self.max_skipped, self.in_a_row, self.skipped, self.at_chance = max_skipped, in_a_row, skipped, at_chance

    def watch(self, at_chance: bool) -> str | None:
        """The line to show when the loss has been at chance for long enough, once."""
        self.at_chance = self.at_chance + 1 if at_chance else 0
        if self.at_chance != PATIENCE:
            return None
        return f"not learning: the loss has been at chance for {PATIENCE} steps"

    def dump(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "skipped": self.skipped, "at_chance": self.at_chance}

    def passed(self) -> None:
        self.in_a_row = 0

    def skip(self, step: int, what: str, last_good: str, scale: float | None = None) -> str:
        """Count one skipped step and return the line to show. Raises RunError when it was one too many.

        ``scale``: what the loss scaler of fp16 has come down to. Above 1 it is still on its way from a first guess that
        is far too large, and such steps do not count as a row.
        """
        self.skipped += 1
        if scale is not None and scale > 1:
            return f"step {step}: the {what} does not fit into fp16; step skipped, loss scale lowered to {scale:g}"
        self.in_a_row += 1
        if self.in_a_row >= self.max_skipped:
            raise RunError(
                f"step {step}: the {what} is not finite, {self.in_a_row} steps in a row; stopped. "
                f"Last good checkpoint: {last_good}. A lower optim.lr usually helps."
            )
        return f"step {step}: the {what} is not finite; step skipped ({self.in_a_row} in a row)"


class Buffers:
    """The persistent buffers of a task, as they were before a step.

    All are copied before each step, changed or not: the version that tensors count does not move when batch
    normalisation writes its running statistics.
    """

    def __init__(self, task: nn.Module) -> None:
        stored = task.state_dict().keys()
        self._places = [
            (module, name)
            for path, module in task.named_modules()
            for name, _ in module.named_buffers(recurse=False)
            if (f"{path}.{name}" if path else name) in stored
        ]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the present values."""
        if not self._places:
            return
        now = self._now()
        if not self._before:  # only now is the task where it trains
            self._before = [torch.empty_like(tensor) for tensor in now]
        torch._foreach_copy_(self._before, now)

    def kept(self) -> list[Tensor]:
        """The remembered values, on the CPU."""
        return [tensor.cpu() for tensor in self._before]

    @torch.no_grad()
    def put_back(self, values: Sequence[Tensor]) -> None:
        """Give the buffers these values, in the order of ``kept``."""
        for tensor, value in zip(self._now(), values, strict=True):
            tensor.copy_(value)

    def _now(self) -> list[Tensor]:
        return [getattr(module, name) for module, name in self._places]
