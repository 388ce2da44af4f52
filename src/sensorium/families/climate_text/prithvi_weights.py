"""Weights of a Prithvi WxC encoder, from a downloaded ``.pt`` or from a folder of ``sensorium export climate-encoder``.

A ``.pt`` may hold the state itself, or hold it as ``model_state``, ``model_state_dict`` or ``module``; names may begin
with ``module.``. The number of heads follows from no tensor: it is taken from a ``config`` inside the file, from the
``config.yaml`` beside it, or known for the published widths.

The folder:
```
encoder.json                        shape, scalers, dtype, source, licence, sha256 of the files, checksum of all that
model-00001-of-00004.safetensors …  weights by their published names
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sensorium import config as configuration
from sensorium import reading, tensor_files
from sensorium.config import Section
from sensorium.data.fields.channels import CONSTANT, MERRA2_160, Normal, Scalers
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.prithvi import CHANNELS, DAY_HOUR, STATIC, PrithviEncoder, PrithviShape

ABOUT, FORMAT, KIND = "encoder.json", 1, "prithvi"
_WRAPPERS = ("model_state", "model_state_dict", "module")
# What else a whole model holds, and the encoder alone does not.
_LEFT_OUT = ("mask_token", "output_scalers", "decoder.", "unembed.", "decoder_shifter.", "encoder_shifter.")
_SCALERS = ("input_scalers_mu", "input_scalers_sigma", "static_input_scalers_mu", "static_input_scalers_sigma")
_HEADS = {2560: 16, 1024: 16}  # of the published widths: 2300M and 600M


class ShapeValues(Section):
    """``PrithviShape`` as a file says it."""

    width: int = Field(ge=4, le=65_536)
    blocks: int = Field(ge=0, le=1024)
    heads: int = Field(ge=1, le=65_536)
    mlp: int = Field(ge=1, le=1024)
    channels: int = Field(ge=1, le=65_536)
    times: int = Field(ge=1, le=1024)
    static: int = Field(ge=DAY_HOUR, le=65_536)
    patch: int = Field(ge=1, le=1024)


class ScalerValues(Section):
    mean: tuple[float, ...]
    std: tuple[float, ...]


class About(Section):
    """``encoder.json``. ``static``: day and hour first, then the fields that stay."""

    library: str
    format: int
    kind: str
    shape: ShapeValues
    field: ScalerValues
    static: ScalerValues
    dtype: str
    weights: int
    bytes: int
    source: dict[str, Any]
    licence: str
    files: dict[str, str]


@dataclass(frozen=True)
class EncoderWeights:
    """Weights that can be had. ``read(names)``: those of these names, or all for None; on the CPU, mapped where that is
    possible. ``field``, ``static``: means and deviations as stored, the latter with day and hour first."""

    path: Path
    shape: PrithviShape
    field: ScalerValues
    static: ScalerValues
    names: tuple[str, ...]
    wrapped_in: str
    read: Callable[[tuple[str, ...] | None], dict[str, Tensor]]

    @property
    def scalers(self) -> Scalers:
        """Those of the fields; a climatology is scaled like the field that it is of."""
        field = Normal(tuple(channel.name for channel in MERRA2_160), self.field.mean, self.field.std)
        own = Normal(
            tuple(channel.name for channel in CONSTANT), self.static.mean[DAY_HOUR:], self.static.std[DAY_HOUR:]
        )
        return Scalers(field, own, field)

    @property
    def day_hour(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the codes of day and hour."""
        return self.static.mean[:DAY_HOUR], self.static.std[:DAY_HOUR]


def find_weights(path: Path, *, trusted: bool = False) -> EncoderWeights:
    """What lies at ``path``: a ``.pt`` file or an extracted folder. Every name and every shape is proven.

    ``trusted``: code in a ``.pt`` may run. Raises ConfigError where nothing is, CheckpointError for anything else.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise ConfigError(
            f"model.encoder_path {str(path)!r}: no such file or folder. Give the .pt of Prithvi WxC, or the folder "
            "that `sensorium export climate-encoder` made of it; for an untrained encoder set model.random_init=true"
        )
    return _of_file(path, trusted)


def open_prithvi(
    found: EncoderWeights, settings: ModelConfig, dtype: torch.dtype, checkpointed: tuple[int, ...]
) -> PrithviEncoder:
    """The encoder with its weights, on the CPU in ``dtype``. Raises CheckpointError."""
    with torch.device("meta"):
        encoder = PrithviEncoder(found.shape, settings, found.scalers, found.day_hour, checkpointed)
    weights = {name: tensor.to(dtype, copy=True) for name, tensor in found.read(None).items()}
    encoder.load_state_dict(weights, assign=True)
    return encoder


def expected_shapes(shape: PrithviShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of an encoder of this shape."""
    with torch.device("meta"):
        encoder = PrithviEncoder(shape, ModelConfig())
    return {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


# --- a .pt file


def _of_file(path: Path, trusted: bool) -> EncoderWeights:
    content = _load(path, trusted)
    wrapped_in, state = _unwrapped(path, content)
    # Masks of the decoder lie there under two names, so that all tensors together claim more than the file holds.
    state = {name: tensor for name, tensor in state.items() if not str(name).startswith(_LEFT_OUT)}
    tensor_files.require_plain(path, state)
    shape, field, static = _described(path, content, state)
    expected = expected_shapes(shape)
    _require(path, expected, state, [name for name in state if name not in expected and name not in _SCALERS])

    def read(names: tuple[str, ...] | None) -> dict[str, Tensor]:
        # Loaded anew: pages of the file that were read go with the tensors that they were read for.
        fresh = _unwrapped(path, _load(path, trusted))[1]
        return {name: fresh[name] for name in names or tuple(expected)}

    return EncoderWeights(path, shape, field, static, tuple(expected), wrapped_in, read)


def _load(path: Path, trusted: bool) -> Any:
    if not trusted:
        return tensor_files.read(path, mapped=True)
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def _unwrapped(path: Path, content: Any) -> tuple[str, dict[str, Tensor]]:
    """Where the state lay, and the state without a ``module.`` before every name."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a state of Prithvi WxC")
    wrapped_in = next((name for name in _WRAPPERS if isinstance(content.get(name), dict)), "")
    state = content[wrapped_in] if wrapped_in else content
    for prefix in ("_orig_mod.", "module."):
        if state and all(isinstance(name, str) and name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if not isinstance(state.get("patch_embedding.proj.weight"), Tensor):
        keys = ", ".join(str(name) for name in list(content)[:6])
        raise CheckpointError(
            f"{path}: no state of Prithvi WxC, neither by itself nor as {', '.join(_WRAPPERS)}; its keys are {keys}"
        )
    return wrapped_in, state


def _described(
    path: Path, content: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[PrithviShape, ScalerValues, ScalerValues]:
    """The shape, as the tensors have it, and the scalers."""
    missing = [name for name in _SCALERS if name not in state]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing; without its scalers an encoder cannot be used")
    field, static = (
        _scaler(state[f"{kind}_mu"], state[f"{kind}_sigma"]) for kind in ("input_scalers", "static_input_scalers")
    )
    weight, still = state["patch_embedding.proj.weight"], state.get("patch_embedding_static.proj.weight")
    first = state.get("encoder.lgl_block.transformers.0.ff.1.net.0.weight")
    count = len(field.mean)
    if still is None or first is None or weight.ndim != 4 or still.ndim != 4 or not count or weight.shape[1] % count:
        raise CheckpointError(f"{path}: its patch embeddings and scalers are not those of a Prithvi WxC encoder")
    width, patch = weight.shape[0], weight.shape[2]
    own = still.shape[1] - count
    if count != CHANNELS or own != STATIC or len(static.mean) < STATIC:
        raise CheckpointError(
            f"{path}: reads {count} channels and {own} besides a climatology of as many; Prithvi WxC reads {CHANNELS} "
            f"and {STATIC} (residual climate, positional_encoding fourier)"
        )
    layers = len({name.split(".")[3] for name in state if name.startswith("encoder.lgl_block.transformers.")})
    shape = PrithviShape(
        width=width,
        blocks=(layers - 1) // 2,
        heads=_heads(path, content, width),
        mlp=first.shape[0] // width,
        channels=count,
        times=weight.shape[1] // count,
        static=own,
        patch=patch,
    )
    # Positions were once three more channels; with Fourier codes of place only the last ones are read.
    last = ScalerValues(mean=static.mean[-own:], std=static.std[-own:])
    return shape, field, last


def _scaler(mean: Tensor, std: Tensor) -> ScalerValues:
    return ScalerValues(mean=tuple(mean.float().flatten().tolist()), std=tuple(std.float().flatten().tolist()))


def _heads(path: Path, content: Mapping[str, Any], width: int) -> int:
    beside = path.with_name("config.yaml")
    told: list[Any] = [content.get("config")]
    if beside.is_file():
        told.append(configuration.load_file(beside))
    for one in told:
        params = one.get("params", one) if isinstance(one, Mapping) else {}
        heads = params.get("n_heads") if isinstance(params, Mapping) else None
        if isinstance(heads, int) and heads > 0 and width % heads == 0:
            return heads
    if width in _HEADS:
        return _HEADS[width]
    raise CheckpointError(
        f"{path}: nothing says how many heads an encoder of width {width} has; put the config.yaml of the download "
        "beside it (params: n_heads)"
    )


def _require(
    path: Path, expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], unknown: list[str]
) -> None:
    """Raise CheckpointError unless exactly the expected tensors are there."""
    missing = [name for name in expected if name not in state]
    if unknown or missing:
        problem = f"unknown are {len(unknown)}, first {unknown[0]}" if unknown else f"missing is {missing[0]}"
        raise CheckpointError(f"{path}: not the weights of a Prithvi WxC encoder; {problem}")
    for name, sides in expected.items():
        if tuple(state[name].shape) != sides:
            raise CheckpointError(f"{path}: {name} has shape {list(state[name].shape)}; expected is {list(sides)}")


# --- an extracted folder


def _of_folder(folder: Path) -> EncoderWeights:
    about = read_about(folder)
    shape = PrithviShape(**about.shape.model_dump())
    expected = expected_shapes(shape)
    places: dict[str, Path] = {}
    sides: dict[str, tuple[int, ...]] = {}
    for name in about.files:
        for tensor_name, tensor_sides in _sides_in(folder / name):
            places[tensor_name], sides[tensor_name] = folder / name, tensor_sides
    if sides != expected:
        wrong = sorted(set(sides.items()) ^ set(expected.items()))[0][0]
        raise CheckpointError(f"{folder}: does not hold the weights that {ABOUT} describes, for example {wrong}")

    def read(names: tuple[str, ...] | None) -> dict[str, Tensor]:
        found = {}
        for name in names or tuple(expected):
            with _opened(places[name]) as file:
                found[name] = file.get_tensor(name)
        return found

    return EncoderWeights(folder, shape, about.field, about.static, tuple(expected), "", read)


def read_about(folder: Path) -> About:
    """The proven content of ``encoder.json``; every file has the size and hash that it says. Raises CheckpointError."""
    path = folder / ABOUT
    try:
        content = reading.parse_json(reading.read_bytes(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {ABOUT} there; give the folder of `sensorium export climate-encoder`, or the .pt file itself"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    checksum = content.pop("checksum", None) if isinstance(content, dict) else None
    if not isinstance(content, dict) or checksum != checksum_of(content):
        raise CheckpointError(f"{path}: is damaged or was edited (its checksum differs); export it anew")
    if (content.get("format"), content.get("kind")) != (FORMAT, KIND):
        raise CheckpointError(f"{path}: format {content.get('format')}; this version reads format {FORMAT}")
    try:
        about = About.model_validate(content)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CheckpointError(f"{path}: damaged at {place}: {error.errors()[0]['msg']}") from None
    for name, digest in about.files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing; export the encoder anew")
        if sha256_of(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: is damaged (its checksum differs); export the encoder anew")
    return about


def checksum_of(content: Mapping[str, Any]) -> str:
    """sha256 of plain values in a fixed order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's bytes. Raises OSError."""
    with reading.open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error


def _sides_in(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            yield name, tuple(file.get_slice(name).get_shape())
