"""Whisper weights in CTranslate2's ``model.bin`` -> a Hugging Face folder that transformers loads.

CTranslate2 (https://github.com/OpenNMT/CTranslate2, ``src/models/model.cc`` reads the file, and
``python/ctranslate2/specs/model_spec.py`` writes it) stores self-attention as one fused q,k,v matrix and
cross-attention as q and a fused k,v; transformers keeps three. Numbers are only moved, never changed: the folder
holds the same values in the same precision as ``model.bin``.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sensorium.errors import ConfigError, DataError
from sensorium.files import copy_file, new_folder, remove, write_by_library, write_json

# CTranslate2's numbers of its types (include/ctranslate2/types.h) that a Whisper file holds.
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_FILES = "files.json"
_FORMAT = 1  # of the folder written here; a change makes older folders unused


def converted(source: Path, cache: Path) -> Path:
    """The Hugging Face folder made from the CTranslate2 folder ``source``; written on first use.

    It lies in ``cache/encoders/<name>-<digest of model.bin>`` and appears by one rename::

        config.json  preprocessor_config.json  model.safetensors  tokenizer.json (if the source has one)
        files.json   names and sizes of the others; a folder that differs from it is made again

    Raises ConfigError if ``model.bin`` is not a Whisper model of the known format,
    DiskError if the folder cannot be written.
    """
    binary = source / "model.bin"
    try:
        digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{binary}: cannot be read ({error.strerror})") from error
    target = cache / "encoders" / f"whisper-ct2-{digest[:16]}-{_FORMAT}"
    if not _is_whole(target):
        _write_folder(source, target)
    return target


def _write_folder(source: Path, target: Path) -> None:
    tensors = read_model(source / "model.bin")
    try:
        state = to_transformers(tensors)
        config = _config(tensors, state)
    except (ValueError, LookupError, TypeError) as error:
        raise _no_whisper(source / "model.bin", error) from error
    if target.is_dir() and not _is_whole(target):
        remove(target)
    try:
        with new_folder(target) as folder:
            write_by_library(
                folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"})
            )
            write_json(folder / "config.json", config)
            write_json(folder / "preprocessor_config.json", _preprocessor(config))
            if (source / "tokenizer.json").is_file():
                copy_file(source / "tokenizer.json", folder / "tokenizer.json")
            write_json(folder / _FILES, {path.name: path.stat().st_size for path in folder.iterdir()})
    except DataError:
        if not _is_whole(target):  # otherwise another process was first, with the same bytes
            raise


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _FILES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def read_model(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a CTranslate2 file (binary version 6, ``WhisperSpec``) by name, aliases resolved."""
    data = path.read_bytes()
    try:
        return _parse(data)
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise _no_whisper(path, error) from error


def _no_whisper(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} is not a Whisper model as CTranslate2 writes it ({error}); install the package again")


def _parse(data: bytes) -> dict[str, np.ndarray]:
    place = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from("<" + form, data, place)
        place += struct.calcsize("<" + form)
        return values

    def text() -> str:
        (length,) = take("H")
        (raw,) = take(f"{length}s")
        return bytes(raw).rstrip(b"\0").decode("utf-8")

    (version,) = take("I")
    spec = text()
    if version != 6 or spec != "WhisperSpec":
        raise ValueError(f"binary version {version} and kind {spec!r}, expected 6 and 'WhisperSpec'")
    take("I")  # revision of the specification
    arrays: dict[str, np.ndarray] = {}
    for _ in range(take("I")[0]):
        name = text()
        (rank,) = take("B")
        shape = take(f"{rank}I")
        kind, size = take("BI")
        dtype = np.dtype(_DTYPES[kind])
        if size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)) or place + size > len(data):
            raise ValueError(f"array {name} is cut off")
        arrays[name] = np.frombuffer(data, dtype, count=size // dtype.itemsize, offset=place).reshape(shape)
        place += size
    for _ in range(take("I")[0]):
        alias, name = text(), text()
        arrays[alias] = arrays[name]
    return arrays


def to_transformers(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """State dict of ``WhisperForConditionalGeneration``. Raises ConfigError if an array has no place in it."""
    state: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if array.ndim == 0 or name.startswith("decoder/alignment") or name == "decoder/projection/weight":
            continue  # settings, word timing, and the output matrix that is tied to the embeddings
        if array.dtype not in (np.float16, np.float32):
            raise ConfigError(f"array {name} is quantised ({array.dtype}); a float16 or float32 model is needed")
        value = torch.from_numpy(array.copy())
        for key, part in _places(name, value):
            if key in state:
                raise ConfigError(f"array {name} takes the place {key} a second time")
            if key.endswith("k_proj.bias"):
                if part.any():
                    raise ConfigError(f"array {name} has a bias for the attention keys, which Whisper has not")
                continue
            state[key] = part.contiguous()
    return state


_SINGLE = {
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/weight": "embed_tokens.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
}
_BLOCKS = {"self_attention": "self_attn", "attention": "encoder_attn", "ffn": ""}
_LINEARS = {
    ("self_attention", "linear_0"): ("q_proj", "k_proj", "v_proj"),
    ("self_attention", "linear_1"): ("out_proj",),
    ("attention", "linear_0"): ("q_proj",),
    ("attention", "linear_1"): ("k_proj", "v_proj"),
    ("attention", "linear_2"): ("out_proj",),
    ("ffn", "linear_0"): ("fc1",),
    ("ffn", "linear_1"): ("fc2",),
}


def _places(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Where an array goes: one or several (key, rows of the array)."""
    side, _, rest = name.partition("/")
    if rest in _SINGLE:
        return [(f"model.{side}.{_SINGLE[rest]}", value)]
    layer, block, part, kind = rest.split("/")
    if not layer.startswith("layer_") or block not in _BLOCKS:
        raise ConfigError(f"array {name} has no place in a Whisper model")
    stem = f"model.{side}.layers.{layer.removeprefix('layer_')}"
    if part == "layer_norm":
        norm = "final_layer_norm" if block == "ffn" else f"{_BLOCKS[block]}_layer_norm"
        return [(f"{stem}.{norm}.{'weight' if kind == 'gamma' else 'bias'}", value)]
    names = _LINEARS[block, part]
    inner = f"{stem}.{_BLOCKS[block]}" if _BLOCKS[block] else stem
    return [(f"{inner}.{key}.{kind}", rows) for key, rows in zip(names, value.chunk(len(names)), strict=True)]


def _config(arrays: Mapping[str, np.ndarray], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """``config.json`` with just what the arrays tell: the library fills in the rest with Whisper's own values."""
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    english = vocabulary == 51864  # the multilingual vocabularies have 51865 or 51866 entries
    layers = {
        side: 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"model.{side}.layers."))
        for side in ("encoder", "decoder")
    }
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": state["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_attention_heads": int(arrays["encoder/num_heads"]),
        "decoder_attention_heads": int(arrays["decoder/num_heads"]),
        "encoder_ffn_dim": state["model.encoder.layers.0.fc1.weight"].shape[0],
        "decoder_ffn_dim": state["model.decoder.layers.0.fc1.weight"].shape[0],
        "max_source_positions": state["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": state["model.decoder.embed_positions.weight"].shape[0],
        "decoder_start_token_id": 50257 if english else 50258,
        "bos_token_id": 50256 if english else 50257,
        "eos_token_id": 50256 if english else 50257,
        "pad_token_id": 50256 if english else 50257,
    }


def _preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": False,
    }
