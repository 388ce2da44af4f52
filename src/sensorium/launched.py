"""What DeepSpeed's launcher does to the command that it starts. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_MARK = "CROSS_SIZE"  # set by DeepSpeed's launcher, and by torchrun not
_RANK = re.compile(r"--local[-_]rank=\d+")


def by_deepspeed() -> bool:
    """Whether DeepSpeed's launcher started this process."""
    return _MARK in os.environ


def words(given: Sequence[str]) -> list[str]:
    """The words of a command line as they were typed: without the ``--local_rank=N`` that DeepSpeed's launcher adds."""
    return [word for word in given if not (by_deepspeed() and _RANK.fullmatch(word))]
