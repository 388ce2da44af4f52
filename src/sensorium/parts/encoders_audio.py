"""Frozen sound encoders: Whisper's encoder, spectrogram transformers (AST) and waveform models (HuBERT, wav2vec 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from sensorium.errors import ConfigError, DataError
from sensorium.parts.encoders_base import (
    LOAD_ERRORS,
    SAMPLE_RATE,
    Encoded,
    EncoderOptions,
    FrozenEncoder,
    computing,
    config_digest,
    fixed_batches,
    freeze,
    load_pretrained,
    quiet,
    read_json,
    weights_digest,
)

_WHISPER_HOP = 320  # samples of one frame: mel hop 160, then a convolution of stride 2
_AST_SPECIAL = 2  # class and distillation token before the patches
_SHORTEST = 1600  # samples; waveform models need a few hundred for their first frame
_WAVEFORM_TYPES = ("hubert", "wav2vec2", "wav2vec2-conformer", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat")


@dataclass(frozen=True)
class PreparedAudio:
    """``windows``: model input of each window; ``frames``: how many of its frames are real (None: all)."""

    windows: tuple[np.ndarray, ...]
    frames: tuple[int | None, ...]
    cut: bool


@dataclass(frozen=True)
class Front:
    """How a kind of model listens: samples of a window, samples of a frame (None: the model decides), and functions
    from a window ``[samples]`` to its input and from a batch of inputs to frames ``[B, F, width]``."""

    window: int
    hop: int | None
    extract: Callable[[np.ndarray], np.ndarray]
    run: Callable[[nn.Module, Tensor], Tensor]
    values: Mapping[str, Any]  # every preprocessing value, for the identity


@dataclass(eq=False, kw_only=True)
class AudioEncoder(FrozenEncoder):
    """Frames of the padded window, cut to the real ones **after** encoding, windows joined, averaged by ``pool``.

    Whisper was trained on padded windows, so cutting before would give other features. Tokens: ``[ceil(n / pool),
    width]`` for n real frames, the last one averaged over the frames it has; pooled: mean over the real frames.
    """

    front: Front
    pool: int

    def prepare(self, sample: np.ndarray) -> PreparedAudio:
        if sample.ndim != 1 or sample.size == 0:
            raise DataError(f"the sound has shape {sample.shape}; needed is mono sound of at least one sample")
        if not np.isfinite(sample).all():
            raise DataError("the sound holds values that are not finite")
        assert self.max_seconds is not None
        longest = round(self.max_seconds * SAMPLE_RATE)
        # A copy: torch warns of arrays that it may not write to.
        wave = np.array(sample[:longest], dtype=np.float32)
        parts = [wave[start : start + self.front.window] for start in range(0, len(wave), self.front.window)]
        hop = self.front.hop
        return PreparedAudio(
            tuple(self.front.extract(part) for part in parts),
            tuple(None if hop is None else math.ceil(len(part) / hop) for part in parts),
            len(sample) > longest,
        )

    def encode(self, prepared: Sequence[PreparedAudio]) -> list[Encoded]:
        self.truncated += sum(sound.cut for sound in prepared)
        windows = [
            (window, frames)
            for sound in prepared
            for window, frames in zip(sound.windows, sound.frames, strict=True)
        ]
        outputs: list[Tensor] = []
        for real, rows in fixed_batches(len(windows), self.batch_size):
            x = torch.from_numpy(np.stack([windows[row][0] for row in rows]))
            with computing(self.device):
                frames_BFD = self.front.run(self.module, x.to(self.device)).cpu()
            outputs += [frames_BFD[place, : windows[row][1]] for place, row in enumerate(real)]
        results = []
        for sound in prepared:
            joined_FD = torch.cat([outputs.pop(0) for _ in sound.windows])
            results.append(self.encoded(pool_frames(joined_FD, self.pool), joined_FD.mean(0)))
        return results


def pool_frames(frames_FD: Tensor, size: int) -> Tensor:
    """Means of ``size`` frames after another ``[ceil(F / size), D]``; the last over the frames that are left."""
    full = len(frames_FD) // size * size
    means = frames_FD[:full].unflatten(0, (-1, size)).mean(1)
    rest = frames_FD[full:]
    return torch.cat([means, rest.mean(0, keepdim=True)]) if len(rest) else means


def open_audio_folder(folder: Path, name: str, options: EncoderOptions, device: str) -> AudioEncoder:
    """A Hugging Face folder with Whisper (only its encoder is loaded), AST or a waveform model. Raises ConfigError."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "whisper":
        # In the file the encoder is one part of a larger model.
        model = load_pretrained(
            WhisperEncoder.from_pretrained, folder, name, key_mapping={r"^(model\.)?encoder\.": ""}
        )
        return _whisper(model, _extractor(folder, name), config_digest(config), name, options, device)
    if kind != "audio-spectrogram-transformer" and kind not in _WAVEFORM_TYPES:
        raise ConfigError(
            f"audio encoder {name}: {folder} holds a model of type {kind!r}; allowed are whisper, "
            f"audio-spectrogram-transformer, {', '.join(_WAVEFORM_TYPES)}"
        )
    model = load_pretrained(AutoModel.from_pretrained, folder, name)
    extractor = _extractor(folder, name)
    front = _ast(model, extractor) if kind == "audio-spectrogram-transformer" else _waveform(extractor, options)
    if round(options.window_seconds * SAMPLE_RATE) < front.window:
        raise ConfigError(
            f"audio encoder {name}: window_seconds is {options.window_seconds}; this model always hears "
            f"{front.window / SAMPLE_RATE:.2f} s, give that or more"
        )
    # Waveform models normalise over time: a clip would be changed by padding, so each goes alone.
    batch_size = 1 if front.hop is None else options.batch_size or (1 if device == "cpu" else 16)
    return _encoder(model, weights_digest(model), front, config_digest(config), name, options, device, batch_size)
