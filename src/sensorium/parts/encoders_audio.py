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
    Request,
    computing,
    config_digest,
    fixed_batches,
    freeze,
    load_pretrained,
    quiet,
    read_config,
    reason,
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
            (window, frames) for sound in prepared for window, frames in zip(sound.windows, sound.frames, strict=True)
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


def open_audio_folder(folder: Path, request: Request) -> AudioEncoder:
    """A Hugging Face folder with Whisper (only its encoder is loaded), AST or a waveform model. Raises ConfigError."""
    name = request.name
    config = read_config(folder)
    kind = config.get("model_type")
    if kind == "whisper":
        # In the file the encoder is one part of a larger model.
        prefix = {r"^(model\.)?encoder\.": ""}
        model = load_pretrained(WhisperEncoder.from_pretrained, folder, name, key_mapping=prefix)
        return _whisper(model, _extractor(folder, name), config_digest(config), request)
    if kind != "audio-spectrogram-transformer" and kind not in _WAVEFORM_TYPES:
        raise ConfigError(
            f"audio encoder {name}: {folder} holds a model of type {kind!r}; allowed are whisper, "
            f"audio-spectrogram-transformer, {', '.join(_WAVEFORM_TYPES)}"
        )
    model = load_pretrained(AutoModel.from_pretrained, folder, name)
    extractor = _extractor(folder, name)
    spectrogram = kind == "audio-spectrogram-transformer"
    front = _ast(model, extractor) if spectrogram else _waveform(extractor, request.options)
    if round(request.options.window_seconds * SAMPLE_RATE) < front.window:
        raise ConfigError(
            f"audio encoder {name}: window_seconds is {request.options.window_seconds}; this model always hears "
            f"{front.window / SAMPLE_RATE:.2f} s, give that or more"
        )
    facts = {"config": config_digest(config), "weights": weights_digest(model)}
    # Waveform models mix and normalise over time: padding would change a clip, so each goes alone.
    return _encoder(model, front, facts, request, request.batch_size(1, 16) if spectrogram else 1)


def random_audio(width: int, layers: int, request: Request) -> AudioEncoder:
    """A WhisperEncoder with random weights that hears the window asked for; the caller has seeded."""
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=max(1, width // 16),
        encoder_ffn_dim=4 * width,
        max_source_positions=_whisper_frames(request.options.window_seconds, 1500),
        init_std=0.1,  # with the usual 0.02 the position codes would drown the sound
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    return _whisper(WhisperEncoder(config), WhisperFeatureExtractor(), request.name, request)


def _whisper_frames(seconds: float, longest: int) -> int:
    return min(round(seconds * SAMPLE_RATE / _WHISPER_HOP), longest)


def _whisper(model: Any, extractor: Any, config: str, request: Request) -> AudioEncoder:
    facts = {"config": config, "weights": weights_digest(model)}
    frames = _whisper_frames(request.options.window_seconds, model.config.max_source_positions)
    if frames < model.config.max_source_positions:
        # A shorter window: the first position codes stay, the convolutions and blocks take any length.
        model.embed_positions = nn.Embedding.from_pretrained(model.embed_positions.weight[:frames].clone())
        model.config.max_source_positions = frames
    window = frames * _WHISPER_HOP

    def extract(wave: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # the caller may be training
            mel = extractor(wave, sampling_rate=SAMPLE_RATE, max_length=window, return_tensors="np")
        return np.asarray(mel["input_features"][0], dtype=np.float32)

    if extractor.dither:
        raise ConfigError(
            f"audio encoder {request.name}: its extractor adds noise (dither {extractor.dither}), so no sound has the "
            'same features twice; set "dither" to 0.0 in preprocessor_config.json'
        )
    keys = ("feature_size", "sampling_rate", "hop_length", "n_fft", "padding_value")
    front = Front(window, _WHISPER_HOP, extract, _last_hidden_state, _values(extractor, keys))
    # At the full window one clip fills two cores; on short windows a pass has too little to do for one.
    return _encoder(model, front, facts, request, request.batch_size(1 if frames > 400 else 4, 16))


def _ast(model: Any, extractor: Any) -> Front:
    """Patches are averaged over frequency: one frame every ``time_stride`` steps of 10 ms."""
    config = model.config
    bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1

    def run(module: nn.Module, x_BTM: Tensor) -> Tensor:
        patches_BND = module(input_values=x_BTM).last_hidden_state[:, _AST_SPECIAL:]
        return patches_BND.unflatten(1, (bands, -1)).mean(1)

    values = _values(extractor, ("num_mel_bins", "max_length", "do_normalize", "mean", "std", "sampling_rate"))
    hop = config.time_stride * 160
    return Front(config.max_length * 160, hop, _waveform_input(extractor), run, values | {"over": "frequency"})


def _waveform(extractor: Any, options: EncoderOptions) -> Front:
    values = _values(extractor, ("do_normalize", "sampling_rate", "padding_value"))
    window = round(options.window_seconds * SAMPLE_RATE)
    return Front(window, None, _waveform_input(extractor), _last_hidden_state, values)


def _waveform_input(extractor: Any) -> Callable[[np.ndarray], np.ndarray]:
    def extract(wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave, (0, max(0, _SHORTEST - len(wave))))
        values = extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"][0]
        return np.asarray(values, dtype=np.float32)

    return extract


def _last_hidden_state(module: nn.Module, x: Tensor) -> Tensor:
    hidden: Tensor = module(x).last_hidden_state
    return hidden


def _values(extractor: Any, keys: Sequence[str]) -> dict[str, Any]:
    values = extractor.to_dict()
    return {key: values[key] for key in keys}


def _extractor(folder: Path, name: str) -> Any:
    try:
        with quiet():
            extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"audio encoder {name}: {folder} has no feature extractor that can be loaded "
            f"({reason(error)}); give a folder with preprocessor_config.json"
        ) from error
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ConfigError(f"audio encoder {name}: it hears {extractor.sampling_rate} Hz; only 16000 Hz is allowed")
    return extractor


def _encoder(model: Any, front: Front, facts: Mapping[str, str], request: Request, batch_size: int) -> AudioEncoder:
    options = request.options
    width = int(model.config.hidden_size)
    identity = {
        "modality": "audio",
        "class": type(model).__name__,
        "width": width,
        "pooled_width": width,
        "has_vector": False,
        **facts,
        "extractor": dict(front.values),
        "window_samples": front.window,
        "frame_samples": front.hop,
        "max_seconds": options.max_seconds,
        "pool": options.pool,
        "features": options.features,
        "pooled": "mean of the real frames",
    }
    return AudioEncoder(
        name=request.name,
        modality="audio",
        module=freeze(model, request.device),
        device=request.device,
        identity=identity,
        width=width,
        pooled_width=width,
        has_vector=False,
        batch_size=batch_size,
        features=options.features,
        max_seconds=options.max_seconds,
        front=front,
        pool=options.pool,
    )
