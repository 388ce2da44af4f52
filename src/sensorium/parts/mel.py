"""Log-mel spectrograms behind the interface of an encoder, so that the feature cache keeps them.

16 kHz mono, windows of 25 ms every 10 ms (Hann, FFT of 512), natural logarithm of the power in mel bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.errors import DataError
from sensorium.parts.encoders_base import SAMPLE_RATE, Encoded

WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms
FLOOR = 1e-6  # of the power, below which there is silence; its logarithm and that of a full-scale tone fit float16
FRAMES_PER_SECOND = SAMPLE_RATE // HOP


@lru_cache(maxsize=4)
def _filters(bands: int) -> Tensor:
    """``[257, bands]``, triangles of height 1 on the HTK scale from 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank  # half a second that using a trained model need not wait

    filters = mel_filter_bank(FFT // 2 + 1, bands, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk")
    return torch.from_numpy(filters).float()


def log_mel(wave: np.ndarray, bands: int) -> np.ndarray:
    """``[samples]`` at 16 kHz to ``[ceil(samples / 160), bands]`` float32; the ends are padded with silence."""
    frames = -(-len(wave) // HOP)
    padded = np.zeros(WINDOW // 2 + frames * HOP + FFT, np.float32)
    padded[WINDOW // 2 : WINDOW // 2 + len(wave)] = wave
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        windows = torch.from_numpy(padded).unfold(0, WINDOW, HOP)[:frames] * torch.hann_window(WINDOW)
        power = torch.fft.rfft(windows, n=FFT).abs().square()
        found: np.ndarray = (power @ _filters(bands)).clamp_min(FLOOR).log().numpy()
    return found


class LogMel:
    """What the feature cache asks: tokens are frames ``[T, bands]``, pooled their mean."""

    modality = "audio"
    has_vector = False
    batch_size = 16
    device = "cpu"

    def __init__(self, bands: int, max_seconds: float) -> None:
        self.name = f"log-mel, {bands} bands"
        self.width = self.pooled_width = bands
        self.max_seconds: float | None = max_seconds
        self.truncated = 0
        self.identity: Mapping[str, Any] = {
            "modality": "audio",
            "class": "log-mel",
            "width": bands,
            "pooled_width": bands,
            "has_vector": False,
            "samples": [SAMPLE_RATE, WINDOW, HOP, FFT],
            "scale": "htk",
            "floor": FLOOR,
            "max_seconds": max_seconds,
        }

    def prepare(self, sample: Any) -> Encoded:
        """The frames of mono sound ``[samples]`` at 16 kHz. Raises DataError for an empty one."""
        if sample.ndim != 1 or sample.size == 0:
            raise DataError(f"the sound has shape {sample.shape}; needed is mono sound of at least one sample")
        assert self.max_seconds is not None
        longest = round(self.max_seconds * SAMPLE_RATE)
        self.truncated += len(sample) > longest
        frames = log_mel(np.asarray(sample[:longest], np.float32), self.width)
        return Encoded(frames, frames.mean(axis=0))

    def encode(self, prepared: Sequence[Any]) -> list[Encoded]:
        return list(prepared)
