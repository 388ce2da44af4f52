"""Frames of videos and of still pictures as a model looks at them: at certain instants, of one size, cut to a square.

A video is only ever looked at on a grid of instants, whether its frames are kept (frame_cache.py) or decoded each time:
so both show the same frames, and differ by what JPEG loses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from sensorium.data.media import load_image
from sensorium.data.sampling import Seconds, grid, nearest
from sensorium.data.video import opened
from sensorium.errors import DataError

_LONGEST = 4  # times the short side; of longer pictures the middle is kept

Choice = Callable[[float], Seconds]
"""From the length of a video to the instants that are wanted, in seconds from its beginning."""


@dataclass(frozen=True)
class Stretch:
    """A video, or the seconds ``span`` of it, from and to; or, ``still``, a picture that does not move."""

    path: Path
    span: tuple[float, float] | None = None
    still: bool = False

    def __str__(self) -> str:
        return str(self.path) if self.span is None else f"{self.path} ({self.span[0]:g} to {self.span[1]:g} s)"

    def within(self, seconds: float) -> tuple[float, float]:
        """Beginning and length, in a file of ``seconds``. Raises DataError when the file ends before."""
        if self.span is None:
            return 0.0, seconds
        start, end = self.span[0], min(self.span[1], seconds)
        if start > 0 and start >= seconds:
            raise DataError(f"{self.path}: {start:g} s is wanted, the video ends at {seconds:.2f} s")
        return start, max(0.0, end - start)


@dataclass(frozen=True)
class Look:
    """``side``: of the square that the model sees, pixels, which becomes the short side. ``fps`` and ``most``: the grid
    of instants (see ``sampling.grid``)."""

    side: int
    fps: float
    most: int

    def instants(self, length: float) -> Seconds:
        return grid(length, self.fps, self.most)

    def numbers(self, length: float, choose: Choice) -> npt.NDArray[np.int64]:
        """Numbers of the instants of the grid that stand for the chosen ones."""
        return nearest(choose(length), self.instants(length))

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture with its short side as long as the model wants it; bicubic, smoothed where it shrinks."""
        image = middle(image, _LONGEST * min(image.size))
        scale = self.side / min(image.size)
        size = (max(self.side, round(image.width * scale)), max(self.side, round(image.height * scale)))
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


class FrameReader(Protocol):
    """Gives the frames of a stretch; ``DirectFrames`` and ``CachedFrames`` do."""

    @property
    def look(self) -> Look: ...

    def read(self, stretch: Stretch, choose: Choice) -> list[Image.Image]:
        """RGB pictures, short side ``look.side``, of the chosen instants; equal ones are one object. Raises DataError
        naming file and reason."""


@dataclass(frozen=True)
class DirectFrames:
    """Decodes each time."""

    look: Look

    def read(self, stretch: Stretch, choose: Choice) -> list[Image.Image]:
        """See ``FrameReader``."""
        if stretch.still:
            return [self.look.fit(load_image(stretch.path))] * len(choose(0.0))
        with opened(stretch.path) as video:
            start, length = stretch.within(video.seconds)
            wanted = start + self.look.instants(length)[self.look.numbers(length, choose)]
            frames = video.frames(wanted.tolist())
        fitted = {id(frame): self.look.fit(frame) for frame in frames}
        return [fitted[id(frame)] for frame in frames]


def middle(image: Image.Image, most: int) -> Image.Image:
    """The middle of a picture, no side longer than ``most``."""
    width, height = min(image.width, most), min(image.height, most)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def stacked(frames: Sequence[Image.Image], side: int) -> npt.NDArray[np.uint8]:
    """``[T, 3, side, side]`` uint8: the middle squares."""
    squares = {id(frame): np.asarray(middle(frame, side), np.uint8).transpose(2, 0, 1) for frame in frames}
    return np.stack([squares[id(frame)] for frame in frames])
