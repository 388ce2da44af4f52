"""Where the frozen models lie, and by what they are known: digests of the files that hold their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from sensorium.data.feature_keys import ContentKeys
from sensorium.data.feature_store import MEMO
from sensorium.data.features import default_root
from sensorium.errors import ConfigError, DataError
from sensorium.families.pmg.config import GONE, MOVED, RANDOM, ModelConfig
from sensorium.families.pmg.tiny import CLIP, DIFFUSION, LLM, tiny_folder
from sensorium.parts.encoders_base import config_digest, read_config
from sensorium.parts.encoders_hub import model_folder

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_ALLOWED = "a local folder of diffusers, a hub name like {name}, and random:tiny"
_ADVICE = (
    "Llama models are gated: accept the terms on https://huggingface.co/{name} and run `hf auth login`. Or download it "
    "elsewhere and give the local folder in model.{key}"
)
_SMALL = ["*.json", "*/*.json", "*/*.txt"]
_WEIGHTS = ("*.safetensors", "*.bin")


def llm_folder(model: ModelConfig, *, weights: bool = True) -> Path:
    """The folder of the language model. Raises ConfigError, quickly."""
    if model.llm == RANDOM:
        return tiny_folder(LLM)
    advice = _ADVICE.format(name=model.llm, key="llm")
    return model_folder(model.llm, "language model", _ALLOWED.format(name=model.llm), advice, weights=weights)


def clip_folder(name: str) -> Path:
    """The folder of a CLIP. Raises ConfigError, quickly."""
    if name == RANDOM:
        return tiny_folder(CLIP)
    allowed = "a local folder with a CLIPModel, a hub name such as openai/clip-vit-base-patch32, and random:tiny"
    return model_folder(name, "CLIP", allowed, "Download it elsewhere and give the local folder (model.clip, --clip)")


def diffusion_folder(model: ModelConfig, say: Callable[[str], None] | None = None) -> Path:
    """The folder of Stable Diffusion, with its five parts. Raises ConfigError, quickly."""
    name = model.stable_diffusion
    if name == RANDOM:
        return tiny_folder(DIFFUSION)
    if name == GONE:
        name = MOVED
        if say is not None:
            say(f"model.stable_diffusion: {GONE} is gone from the hub; {MOVED} is the same model")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(
            f"Stable Diffusion {name}: {folder} has no {', '.join(missing)}; expected a folder of diffusers with "
            f"{', '.join(PARTS)} (there is {there})"
        )
    return folder


def _fetched(name: str) -> Path:
    patterns = [*_SMALL, *(f"{part}/*.safetensors" for part in PARTS)]
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except LocalEntryNotFoundError:
            if constants.HF_HUB_OFFLINE:
                raise
            return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=5.0))
    except (HFValidationError, LocalEntryNotFoundError, HTTPError, OSError) as error:
        advice = _ADVICE.format(name=name, key="stable_diffusion").partition("Or ")[2]
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"Stable Diffusion {name!r} is neither a folder nor in the local cache, and cannot be fetched ({reason}). "
            f"{advice[:1].upper()}{advice[1:]}"
        ) from error


def part_digest(folder: Path) -> str:
    """sha256 of configuration and weight files of a model folder: the same whatever precision it is loaded in.
    Raises ConfigError where there are no weights. Hashes of files are remembered."""
    files = next((found for one in _WEIGHTS if (found := sorted(folder.glob(one)))), [])
    if not files:
        raise ConfigError(f"{folder}: holds no weights ({', '.join(_WEIGHTS)}); give the folder of a complete model")
    text = "\n".join([config_digest(read_config(folder)), *(file_digest(path) for path in files)])
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, remembered. Raises ConfigError where it cannot be read."""
    try:
        return ContentKeys(default_root() / MEMO).key(path)
    except DataError as error:
        raise ConfigError(str(error)) from error


def base_digests(model: ModelConfig) -> dict[str, str]:
    """Of all frozen models, by part."""
    diffusion = diffusion_folder(model)
    found = {part: part_digest(diffusion / part) for part in ("unet", "vae", "text_encoder")}
    return {"llm": part_digest(llm_folder(model)), **found}
