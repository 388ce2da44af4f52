"""Randomness from position: every random draw is a function of (seed, purpose, position).

Nothing here remembers anything, so a checkpoint needs no random-number state.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache

import numpy as np
import torch


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose and position, for example ``derive(seed, "example", position)``."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *parts: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose and position."""
    return np.random.Generator(np.random.PCG64(derive(seed, *parts)))


def reseed(seed: int, *parts: int | str) -> None:
    """Set every global generator (Python, NumPy, torch on CPU and GPUs) from a position."""
    value = derive(seed, *parts)
    random.seed(value)
    np.random.seed(value % 2**32)
    # torch.manual_seed would queue a stack trace for each kind of device that is not there: a millisecond a step.
    torch.default_generator.manual_seed(value)
    if _has_gpu():
        torch.cuda.manual_seed_all(value)


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()
