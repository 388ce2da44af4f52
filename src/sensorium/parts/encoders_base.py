"""What all frozen encoders share: options, results, digests, fixed-shape batches and quiet loading."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from sensorium.errors import ConfigError

Modality = Literal["text", "image", "audio"]
SAMPLE_RATE = 16000
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class EncoderOptions:
    """How samples are prepared; what changes a result is part of the encoder's identity.

    ``prefix``: put before every text; None takes the model's own (``"query: "`` for E5, else nothing).
    ``max_tokens``: longest text, special tokens included. ``pool``: sound frames averaged into one token.
    ``max_seconds``: part of a recording that counts. ``window_seconds``: sound that the encoder sees at once; below
    the model's own window (Whisper: 30) the rest of it is cut off, which is an approximation, but much faster.
    ``features``: "pooled" keeps no tokens. ``batch_size``: rows of one forward pass; None takes one that suits the
    device.
    """

    prefix: str | None = None
    max_tokens: int = 64
    pool: int = 4
    max_seconds: float = 30.0
    window_seconds: float = 30.0
    features: Literal["tokens", "pooled"] = "tokens"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; it must lie between {low} and {high}"
            for name, value, low, high in (
                ("max_tokens", self.max_tokens, 3, 8192),
                ("pool", self.pool, 1, 1500),
                ("max_seconds", self.max_seconds, 0.1, 36000),
                ("window_seconds", self.window_seconds, 0.1, 600),
                ("batch_size", self.batch_size or 1, 1, 4096),
            )
            if not low <= value <= high
        ]
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True)
class Request:
    """What was asked for: the encoder's name as the user wrote it, its options, and where it computes."""

    name: str
    options: EncoderOptions
    device: str

    def batch_size(self, on_cpu: int, elsewhere: int) -> int:
        return self.options.batch_size or (on_cpu if self.device == "cpu" else elsewhere)


@dataclass(frozen=True)
class Encoded:
    """float32 features of a sample: ``tokens`` ``[n, width]`` (n = 0 if only pooled), ``pooled`` ``[pooled_width]``."""

    tokens: np.ndarray
    pooled: np.ndarray


@dataclass(eq=False, kw_only=True)
class FrozenEncoder(ABC):
    """A pretrained network that is only asked, never trained. It belongs to no task module.

    ``identity``: JSON values that decide the features to the bit: digest of the weights, class, configuration and
    every preprocessing value. ``has_vector``: ``pooled`` is a projection of its own (CLIP), not a mean of the tokens.
    ``batch_size``: rows of one forward pass. Every pass has exactly this many rows, missing ones are filled with
    copies, and the shape depends on the sample alone: so a result does not depend on its batch mates (bit-equal on
    CPUs, where it is tested). ``truncated``: samples seen so far of which an end was cut off.
    """

    name: str
    modality: Modality
    module: nn.Module
    device: str
    identity: Mapping[str, Any]
    width: int
    pooled_width: int
    has_vector: bool
    batch_size: int
    features: Literal["tokens", "pooled"]
    max_seconds: float | None = None
    truncated: int = 0

    @abstractmethod
    def prepare(self, sample: Any) -> Any:
        """CPU preprocessing of one decoded sample: a caption, a PIL picture (RGB), or mono sound ``[samples]`` at
        16 kHz. Raises DataError if the sample is empty or not finite."""

    @abstractmethod
    def encode(self, prepared: Sequence[Any]) -> list[Encoded]:
        """Features of prepared samples, in their order. Inference mode, float32, no graph."""

    def encoded(self, tokens_ND: Tensor, pooled_D: Tensor) -> Encoded:
        kept = tokens_ND if self.features == "tokens" else tokens_ND[:0]
        return Encoded(kept.float().cpu().numpy().copy(), pooled_D.float().cpu().numpy().copy())


def fixed_batches(count: int, size: int) -> Iterator[tuple[list[int], list[int]]]:
    """``(real, rows)`` numbers: ``rows`` always has ``size`` entries, filled up with copies of the last real one."""
    for start in range(0, count, size):
        real = list(range(start, min(start + size, count)))
        yield real, real + [real[-1]] * (size - len(real))


@contextmanager
def computing(device: str) -> Iterator[None]:
    """Inference mode and true float32, whatever the caller has switched on for training."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast(torch.device(device).type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def freeze(module: ModelT, device: str) -> ModelT:
    """The module on its device, in eval mode, without gradients."""
    return module.eval().requires_grad_(False).to(device)


def weights_digest(module: nn.Module) -> str:
    """sha256 over the sorted tensors of the state: name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Keys of config.json that say where a model comes from or which library wrote it, not what it computes.
_NOT_COMPUTING = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "_commit_hash"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises ConfigError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a complete Hugging Face folder") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object; give a complete Hugging Face folder")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises ConfigError, also when it wants code from the hub to run, and for files
    that cannot be read to an end (pipes, devices)."""
    strange = [path.name for path in sorted(folder.iterdir()) if not (path.is_file() or path.is_dir())]
    if strange:
        raise ConfigError(f"{folder / strange[0]} is no plain file; give a complete Hugging Face folder")
    config = read_json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for key, value in (pair for part in parts for pair in part.items()):
        if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
            raise ConfigError(f"{folder / 'config.json'} wants code of the hub to run ({key}: {value}): never done")
    return config


def config_digest(config: Mapping[str, Any]) -> str:
    """Digest of ``config.json`` as it lies on disk, so that another library version does not change it."""

    def computing_part(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: computing_part(inner) for key, inner in value.items() if key not in _NOT_COMPUTING}
        return value

    return hashlib.sha256(json.dumps(computing_part(config), sort_keys=True).encode()).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings and load reports of transformers; what matters in them becomes an error of ours."""
    from transformers.utils import logging as transformers_logging  # half a second, for encoders of others alone

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


# What transformers and torch raise for a folder that is incomplete, damaged, of another kind, or holds code.
LOAD_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    EOFError,
    AssertionError,
    SafetensorError,
    StrictDataclassError,
    pickle.UnpicklingError,
)


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is damaged, or holds more than tensors; code in it was not run"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_pretrained(
    load: Callable[..., tuple[ModelT, dict[str, Any]]],
    folder: Path,
    name: str,
    key_mapping: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    kind: str = "encoder",
) -> ModelT:
    """``load`` is a class's ``from_pretrained``; ``key_mapping``: names in the file (patterns) -> names in the model;
    ``kind``: what the message calls it.

    Every weight comes from the file: one that is missing would be drawn at random, and is a ConfigError here. An unused
    ``pooler`` is left out.
    """
    try:
        with quiet():
            model, report = load(
                folder,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                key_mapping=key_mapping,
                weights_only=True,
                trust_remote_code=False,
            )
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"{kind} {name}: {folder} cannot be loaded ({reason(error)}); give a complete folder"
        ) from error
    if "pooler" in dict(model.named_children()):
        model.pooler = None
    wrong = sorted(
        str(key)
        for kind in ("missing_keys", "mismatched_keys")
        for key in report[kind]
        if not str(key).startswith("pooler.")
    )
    if wrong:
        raise ConfigError(
            f"{kind} {name}: {len(wrong)} of its weights are not in {folder} or have another shape, first {wrong[0]}; "
            "give the folder of a complete model of this kind"
        )
    return model
