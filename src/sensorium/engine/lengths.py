"""What a source may say of the lengths of its samples. A family need only have the method."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class LengthSource(Protocol):
    """A training source whose samples are padded to the longest of their micro-batch, so that the engine may put those
    of like length together (``loader.sort_window``). One whose rows meet in a loss does not say how long they are: its
    negatives would be others."""

    def length(self, index: int) -> int:
        """Tokens of sample ``index``, from what is at hand: no picture, recording or field is opened for it."""
