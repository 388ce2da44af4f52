"""Time and peak memory of something that is done again and again on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from sensorium.engine.check_memory import read_peak, reset_peak
from sensorium.errors import ConfigError


class Stopwatch:
    """A ``Meter`` of this process: medians of ``repeats`` after ``warmups``, of ``rows`` samples at a time.

    ``clock`` tells seconds; on a CPU that others use, too, ``time.process_time`` counts the work of this process alone.
    Raises ConfigError where ``device`` is cuda and no GPU is visible; auto takes one where there is one.
    """

    def __init__(
        self,
        device: str = "auto",
        rows: int = 1,
        warmups: int = 5,
        repeats: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("train.device is cuda, but no GPU is visible; use cpu or auto")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self.rows, self.warmups, self.repeats, self.clock = rows, warmups, repeats, clock
        self._before = self._used() if reset_peak(self.device) else None

    def _used(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else read_peak(self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, action: Callable[[], object]) -> float:
        """Median of one ``action``, until the device has finished it."""
        for _ in range(self.warmups):
            action()
        times = []
        for _ in range(self.repeats):
            self._wait()
            begun = self.clock()
            action()
            self._wait()
            times.append(self.clock() - begun)
        return statistics.median(times)

    def peak(self, action: Callable[[], object]) -> int | None:
        """Bytes in use at most during ``action``, above those when this meter was made: of the GPU's tensors, or
        resident memory of the process; None where the system does not tell."""
        if self._before is None or not reset_peak(self.device):
            return None
        action()
        self._wait()
        return read_peak(self.device) - self._before
