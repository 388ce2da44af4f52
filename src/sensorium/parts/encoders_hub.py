"""A model's name on the Hugging Face hub -> its files on this machine, or one clear line, quickly."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

# Base of the transport's errors; the package it comes from differs between versions of huggingface_hub.
from huggingface_hub.errors import HTTPError as TransportError

from sensorium.errors import ConfigError

_SECONDS = 5.0  # for the first answer; on a network that swallows everything the library waits for minutes
_SMALL_FILES = ["*.json", "*.txt", "*.model"]
_WEIGHTS = (["*.safetensors"], ["pytorch_model*.bin"])  # the second only where the first does not exist


def hub_folder(name: str, kind: str) -> Path:
    """The folder with configuration, tokenizer and weights of ``name``, downloaded when it is not there yet.

    ``kind``: "text", "vision" or "audio", for the message. ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_ENDPOINT`` are
    respected. Raises ConfigError naming the encoder, what failed and the ways out.
    """
    try:
        for weights in _WEIGHTS:
            folder = _local(name, weights)
            if folder is not None:
                return folder
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(_line(name, kind, "HF_HUB_OFFLINE forbids to fetch it"))
        _require_answer()
        for weights in _WEIGHTS:
            folder = Path(_snapshot(name, weights, only_local=False))
            if _complete(folder, weights):
                return folder
    except HFValidationError as error:
        raise ConfigError(_line(name, kind, "this is no possible hub name")) from error
    except (TransportError, http.client.HTTPException, OSError) as error:
        raise ConfigError(_line(name, kind, _reason(error))) from error
    raise ConfigError(_line(name, kind, "the hub has no config.json with safetensors or pytorch_model.bin for it"))


def _require_answer() -> None:
    """Raises OSError or HTTPException unless the hub answers anything at all, soon."""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer, if not the one for this page


def _local(name: str, weights: list[str]) -> Path | None:
    try:
        folder = Path(_snapshot(name, weights, only_local=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _complete(folder, weights) else None


def _snapshot(name: str, weights: list[str], only_local: bool) -> str:
    return snapshot_download(
        name,
        allow_patterns=_SMALL_FILES + weights,
        ignore_patterns=["*/*"],  # other formats and sub-models lie in sub-folders
        local_files_only=only_local,
        etag_timeout=_SECONDS,
    )


def _complete(folder: Path, weights: list[str]) -> bool:
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in weights)


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return f"{constants.ENDPOINT}: {lines[0] if lines else type(cause).__name__}"


def _line(name: str, kind: str, reason: str) -> str:
    return (
        f"{kind} encoder {name!r} is neither a folder nor in the local cache, and cannot be fetched ({reason}). "
        f"Give a local Hugging Face folder, or `random:{kind}` to try things out; "
        "`sensorium demo` and the examples' `--demo` need no hub."
    )
