"""Steps whose loss or gradient is not finite: skipped, counted, and after too many in a row the run stops."""

from __future__ import annotations

from sensorium.errors import RunError


class Guard:
    """Counts skipped steps. ``in_a_row`` is part of the checkpoint, so that a resumed run gives up at the same step."""

    def __init__(self, max_skipped: int, in_a_row: int = 0, skipped: int = 0) -> None:
        self.max_skipped, self.in_a_row, self.skipped = max_skipped, in_a_row, skipped

    def passed(self) -> None:
        self.in_a_row = 0

    def skip(self, step: int, what: str, last_good: str) -> str:
        """Count one skipped step and return the line to show. Raises RunError when it was one too many."""
        self.in_a_row += 1
        self.skipped += 1
        if self.in_a_row >= self.max_skipped:
            raise RunError(
                f"step {step}: the {what} is not finite, {self.in_a_row} steps in a row; stopped. "
                f"Last good checkpoint: {last_good}. A lower optim.lr usually helps."
            )
        return f"step {step}: the {what} is not finite; step skipped ({self.in_a_row} in a row)"
