"""Where in a video a text is true: scores of single frames, and the stretch of them that stands out.

A video is looked at once a second, or more often where it is short, through half overlapping windows of as many frames
as the model reads. A frame is scored by what its own CLS token says, mean over the windows that hold it. From the first
group of clips on these tokens see other frames, too: nothing here was trained to find a stretch.

Legend: N instants, T frames of a window, E shared space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sensorium.data.frames import FrameReader, Stretch, stacked
from sensorium.data.sampling import Seconds
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel

Floats = NDArray[np.floating]
WINDOWS = 8  # of one pass


@dataclass(frozen=True)
class Frame:
    """One instant of a video: its number, seconds from the start, and cosine with the text."""

    index: int
    seconds: float
    score: float


@dataclass(frozen=True)
class Event:
    """The segment of a video that a text describes best. ``score``: mean over its frames; ``frames``: the best ones of
    it, best first."""

    start_s: float
    end_s: float
    score: float
    frames: tuple[Frame, ...]


def windows(count: int, length: int) -> list[range]:
    """Windows of ``length`` instants over ``count``, half overlapping; the last ends with the last instant. Where there
    are fewer instants than that, one window of all."""
    if count <= length:
        return [range(count)]
    step = max(1, length // 2)
    starts = [*range(0, count - length, step), count - length]
    return [range(start, start + length) for start in starts]


@dataclass(frozen=True)
class Timeline:
    """``vectors`` ``[N, E]``: what each instant shows, whose dot product with a text's vector is the mean of its
    cosines. The first begins at ``start``, the last ends at ``end``, seconds; ``frames``: of the model."""

    vectors: Floats
    start: float
    end: float
    frames: int

    @property
    def step(self) -> float:
        """Seconds that an instant stands for."""
        return step_of(self.end - self.start, self.frames)

    def event(self, text_E: Floats, top_k: int) -> Event:
        """The segment that a text's unit vector describes best."""
        scores = self.vectors @ text_E
        found = best_stretch(scores)
        order = sorted(found, key=lambda place: (-scores[place], place))[:top_k]
        frames = tuple(Frame(n, self.start + (n + 0.5) * self.step, float(scores[n])) for n in order)
        begin, end = (self.start + place * self.step for place in (found.start, found.stop))
        return Event(begin, min(end, self.end), float(scores[found.start : found.stop].mean()), frames)


@torch.no_grad()
def timeline(model: UnifiedTempMeSTOPModel, reader: FrameReader, stretch: Stretch) -> Timeline:
    """Look at a whole video, or a stretch of one. Raises DataError when it cannot be read."""
    lengths: list[float] = []

    def choose(length: float) -> Seconds:
        lengths.append(length)
        step = step_of(length, model.frames)
        return (np.arange(max(1, int(np.ceil(length / step - 1e-6)))) + 0.5) * step

    images = reader.read(stretch, choose)
    pixels = torch.from_numpy(stacked(images, reader.look.side))
    total, seen = np.zeros((len(images), model.clip.shape.embed)), np.zeros((len(images), 1))
    parts = windows(len(images), model.frames)
    device = next(model.parameters()).device
    for first in range(0, len(parts), WINDOWS):
        some = parts[first : first + WINDOWS]
        video = torch.stack([pixels[part.start : part.stop] for part in some]).to(device)
        missing = model.frames - video.shape[1]
        video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        mask = torch.arange(model.frames, device=device).expand(len(some), -1) < model.frames - missing
        frames = model.encode_video(video, mask).frames.float().cpu().numpy()
        for part, vectors in zip(some, frames, strict=True):
            total[part.start : part.stop] += vectors[: len(part)]
            seen[part.start : part.stop] += 1
    start = stretch.span[0] if stretch.span is not None else 0.0
    return Timeline((total / seen).astype(np.float32), start, start + lengths[0], model.frames)


def step_of(length: float, frames: int) -> float:
    """Seconds between two instants: one, or less in a video of fewer seconds than the model reads frames."""
    return min(1.0, length / frames) or 1.0


def best_stretch(scores_N: Floats) -> range:
    """The run of instants with the largest sum of score - mean - std / 2; all of them where all scores are equal.

    (Kadane's algorithm.) Of equals the first, and of those the shortest. Raises ValueError for none or NaN.
    """
    if len(scores_N) == 0 or not np.isfinite(scores_N).all():
        raise ValueError("there must be scores, and no NaN or infinity among them")
    spread = float(scores_N.std())
    if spread <= 1e-7 * max(1.0, float(np.abs(scores_N).max())):
        return range(len(scores_N))
    excess = scores_N - scores_N.mean() - spread / 2
    best, found = -np.inf, range(0, 1)
    start, running = 0, 0.0
    for place, value in enumerate(excess.tolist()):
        if running <= 0:
            start, running = place, 0.0
        running += value
        if running > best:
            best, found = running, range(start, place + 1)
    return found


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two stretches of time; 0 for those that do not meet."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    whole = max(one[1], other[1]) - min(one[0], other[0])
    return max(0.0, shared) / whole if whole > 0 else 0.0
