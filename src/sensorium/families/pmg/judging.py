"""Pictures against what they were made for: their targets, the pictures and texts of their users.

Legend: S samples, G pictures of a sample, d width of CLIP's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sensorium.data.media import load_image
from sensorium.data.tastes import Taste
from sensorium.engine.contract import Host
from sensorium.errors import DataError
from sensorium.families.pmg.board import AESTHETIC, CLIPS, HPS, LPIPS, SSIM
from sensorium.families.pmg.clip import Clip
from sensorium.families.pmg.encoders import Resize, square
from sensorium.families.pmg.judges import Aesthetic, Judges, Missing
from sensorium.metrics.generation import frechet_distance, ssim
from sensorium.metrics.inception import Inception
from sensorium.metrics.lpips import Lpips

Show = Callable[[int], list[Image.Image]]
"""The pictures of a sample by its number."""
FID_SAMPLES = 2048  # below it a covariance of 2,048 numbers has no full rank
_NO_HPS = "there is no code here that computes HPS v2.1"


@dataclass
class Judging:
    """Samples to be judged, with their numbers in the file, and by whom. Pictures are compared as squares of ``side``
    pixels."""

    samples: Sequence[Taste]
    numbers: Sequence[int]
    judges: Judges
    side: int
    resize: Resize
    device: str
    skipped: dict[str, str] = field(init=False)
    _known: dict[Path, Tensor] = field(init=False, default_factory=dict)
    _texts: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        judges, found = self.judges, {HPS: _NO_HPS}
        for names, judge in ((LPIPS, judges.lpips), (CLIPS, judges.clip), ((AESTHETIC,), judges.aesthetic)):
            if isinstance(judge, Missing):
                found |= dict.fromkeys(names, judge.reason)
        silent = sum(not taste.style for taste in self.samples)
        if silent and "cps" not in found:
            found["cps"] = f"{silent} of {len(self.samples)} samples have no style text"
        if isinstance(judges.clip, Missing):
            found["fd_clip"] = judges.clip.reason
        elif len(self.samples) < 2:
            found["fd_clip"] = "needs two samples"
        if len(self.samples) < FID_SAMPLES:
            found["fid"] = f"needs {FID_SAMPLES:,} samples, there are {len(self.samples):,}; see fd_clip"
        elif isinstance(judges.inception, Missing):
            found["fid"] = judges.inception.reason
        self.skipped = found

    @torch.no_grad()
    def row(self, name: str, show: Show, host: Host) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
        """Every metric that is not skipped: of each sample ``[S]``, the mean over its pictures; and of all at once."""
        found: dict[str, list[float]] = {}
        sets: dict[str, list[Tensor]] = {}
        with host.progress(f"judge {name}", len(self.samples)) as advance:
            for number, taste in enumerate(self.samples):
                pictures = [self._square(picture) for picture in show(number)]
                for metric, value in self._sample(taste, pictures, sets).items():
                    found.setdefault(metric, []).append(value)
                advance(number + 1, len(self.samples))
        return {metric: np.array(values) for metric, values in found.items()}, self._sets(sets)

    def _sample(self, taste: Taste, pictures: Sequence[Image.Image], sets: dict[str, list[Tensor]]) -> dict[str, float]:
        references = [self._square(load_image(liked.path)) for liked in (*taste.history, taste.target)]
        made, real = self._pixels(pictures), self._pixels(references)
        found = dict(zip(reversed(SSIM), _against(ssim, made, real), strict=True))
        judges = self.judges
        if isinstance(judges.lpips, Lpips):
            found |= zip(reversed(LPIPS), _against(judges.lpips, 2 * made - 1, 2 * real - 1), strict=True)
        if isinstance(judges.clip, Clip):
            vectors = judges.clip.pictures(pictures)
            found |= self._alike(judges.clip, taste, vectors)
            sets.setdefault("clip made", []).append(vectors)
            sets.setdefault("clip real", []).append(self._vector(judges.clip, taste.target.path)[None])
        if isinstance(judges.aesthetic, Aesthetic):
            rated = judges.aesthetic.rate(judges.aesthetic.clip.pictures(pictures))
            found[AESTHETIC] = float(rated.mean())
        if isinstance(judges.inception, Inception) and "fid" not in self.skipped:
            sets.setdefault("inception made", []).append(judges.inception(made).cpu())
            sets.setdefault("inception real", []).append(judges.inception(real[-1:]).cpu())
        return found

    def _alike(self, clip: Clip, taste: Taste, vectors_Gd: Tensor) -> dict[str, float]:
        history = torch.stack([self._vector(clip, liked.path) for liked in taste.history])
        found = {
            "cpis_history_avg": vectors_Gd @ history.T,
            "cpis_target": vectors_Gd @ self._vector(clip, taste.target.path),
            "clip_score_target": vectors_Gd @ self._text(clip, taste.target.caption),
        }
        if "cps" not in self.skipped:
            found["cps"] = vectors_Gd @ self._text(clip, taste.style)
        return {name: float(values.double().mean()) for name, values in found.items()}

    def _sets(self, sets: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        kinds = {"fd_clip": "clip", "fid": "inception"}
        return {
            metric: frechet_distance(torch.cat(list(sets[f"{kind} made"])), torch.cat(list(sets[f"{kind} real"])))
            for metric, kind in kinds.items()
            if metric not in self.skipped
        }

    def _square(self, picture: Image.Image) -> Image.Image:
        return square(picture, self.side, self.resize)

    def _pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """``[B, 3, side, side]`` in 0..1."""
        array = np.stack([np.asarray(picture, np.float32) for picture in pictures])
        return torch.from_numpy(array.transpose(0, 3, 1, 2) / 255).to(self.device)

    def _vector(self, clip: Clip, path: Path) -> Tensor:
        if path not in self._known:
            self._known[path] = clip.pictures([self._square(load_image(path))])[0]
        return self._known[path]

    def _text(self, clip: Clip, text: str) -> Tensor:
        if text not in self._texts:
            self._texts[text] = clip.texts([text])[0]
        return self._texts[text]


def _against(measure: Callable[[Tensor, Tensor], Tensor], made: Tensor, real: Tensor) -> tuple[float, float]:
    """Mean over the pictures of a sample: to its history, and to its target, the last of ``real``."""
    one = made.repeat_interleave(len(real), 0)
    values = measure(one, real.repeat(len(made), 1, 1, 1)).view(len(made), len(real)).double()
    return float(values[:, :-1].mean()), float(values[:, -1].mean())


def unreadable(samples: Sequence[Taste]) -> dict[int, str]:
    """By number, why a picture that a sample is compared with cannot be had."""
    reasons: dict[Path, str | None] = {}
    found = {}
    for number, taste in enumerate(samples):
        for liked in (*taste.history, taste.target):
            if liked.path not in reasons:
                reasons[liked.path] = _reason(liked.path)
            reason = reasons[liked.path]
            if reason is not None:
                found.setdefault(number, reason)
    return found


def _reason(path: Path) -> str | None:
    try:
        load_image(path)
    except DataError as error:
        return str(error)
    return None


def common(bad: Mapping[int, str], count: int, host: Host, *, allow_missing: bool) -> list[int]:
    """The numbers of the samples of which nothing is missing. Raises DataError where some are, unless allowed, and
    where none is left."""
    if not bad:
        return list(range(count))
    first = min(bad)
    text = f"{len(bad)} of {count} samples lack a picture, first sample {first} ({bad[first]})"
    if not allow_missing or len(bad) == count:
        raise DataError(f"{text}; --allow-missing judges the others alone, in every row")
    kept = [number for number in range(count) if number not in bad]
    host.say(f"{text}; {len(kept)} samples are left, in every row")
    return kept
