"""Peak memory of a training step: measured, and predicted as a straight line over the batch size.

A CPU process is measured by its resident memory as the kernel keeps it (``VmHWM``), a GPU by what PyTorch's allocator
gave out. Both can be set back, so that trials in one process do not hide each other.
"""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.9  # of a GPU: the rest goes to fragments and the libraries' own buffers

Point = tuple[int, int]
"""Rows of a step in one process, and the bytes of its peak."""


def small_batches(rows: int, multiple: int) -> tuple[int, int] | None:
    """A quarter and half of the batch, as multiples of ``multiple``; None for batches too small to be divided."""
    parts = rows // multiple
    return (parts // 4 * multiple, parts // 2 * multiple) if parts >= 8 else None


@dataclass(frozen=True)
class Memory:
    """What is known of one process: two small batches, and ``rows``, the batch that the run will have.

    ``usable``: bytes that it may take. ``whole``: bytes measured with ``rows``, None where that was not tried.
    """

    low: Point
    high: Point
    rows: int
    usable: float
    whole: int | None = None

    @property
    def predicted(self) -> float:
        """Bytes for ``rows``, from the small batches alone."""
        return _line(self.low, self.high)[0] + _line(self.low, self.high)[1] * self.rows

    @property
    def fits(self) -> bool:
        return (self.predicted if self.whole is None else self.whole) <= self.usable

    @property
    def error(self) -> float | None:
        """Prediction over measurement, less one."""
        return None if self.whole is None else self.predicted / self.whole - 1

    def largest(self, multiple: int) -> int | None:
        """Largest batch that is usable, a multiple of ``multiple``; None where memory does not grow with the batch."""
        start, slope = _line(self.low, self.high if self.whole is None else (self.rows, self.whole))
        return max(0, int((self.usable - start) / slope) // multiple * multiple) if slope > 0 else None


def _line(low: Point, high: Point) -> tuple[float, float]:
    """Bytes without any row, and bytes a row."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return low[1] - slope * low[0], slope


def reset_peak(device: torch.device) -> bool:
    """Begin a new measurement of peak memory; False where this system has none."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier trial freed must not count as this one's
        RESET.write_text("5")  # sets VmHWM back to the present size (Linux: proc(5))
    except (AttributeError, OSError):  # no glibc, or no such /proc
        return False
    return True


def read_peak(device: torch.device) -> int:
    """Largest number of bytes since ``reset_peak``: of the GPU's tensors, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None  # Linux always writes it
    return int(found[1]) * 1024


def usable(device: torch.device, processes: int) -> float:
    """Bytes that each process may take: of its GPU, or its part of the machine and the container it runs in."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return HEADROOM * (free + torch.cuda.memory_reserved(device))
    available = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert available is not None
    limits = [int(available[1]) * 1024]
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        limits.append(int(most) - int(used.read_text()))
    return (min(limits) + _status("VmRSS")) / processes
