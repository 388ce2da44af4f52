"""The shape of a CLIP, known before any weight is read: what the token plan, the cost and the tokenizer need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sensorium.errors import ConfigError
from sensorium.families.video_retrieval.config import ModelConfig

Activation = Literal["quick_gelu", "gelu"]
_ALLOWED = "a local folder in Hugging Face format, a hub name, or random:tiny, random:b32, random:b16"
_ADVICE = "Give model.clip a local folder with config.json and model.safetensors of a CLIP, or random:tiny for a trial."


@dataclass(frozen=True)
class ClipShape:
    """Sizes of both towers. ``resolution`` and ``patch`` in pixels, ``inner`` the width inside an MLP, ``embed`` that
    of the shared space, ``context`` the longest text in tokens, ``eot_id`` the token whose state stands for a text."""

    resolution: int
    patch: int
    layers: int
    width: int
    heads: int
    inner: int
    text_layers: int
    text_width: int
    text_heads: int
    text_inner: int
    embed: int
    vocab: int
    context: int
    eot_id: int
    activation: Activation = "quick_gelu"
    text_activation: Activation = "quick_gelu"
    eps: float = 1e-5
    text_eps: float = 1e-5

    @property
    def side(self) -> int:
        """Patches in a row of a frame."""
        return self.resolution // self.patch

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return self.side**2


_B32 = ClipShape(224, 32, 12, 768, 12, 3072, 12, 512, 8, 2048, 512, 49408, 77, 49407)
_B16 = ClipShape(224, 16, 12, 768, 12, 3072, 12, 512, 8, 2048, 512, 49408, 77, 49407)
RANDOM: Mapping[str, ClipShape] = {
    # 256 bytes, the same at the end of a word, start and end of a text
    "random:tiny": ClipShape(32, 8, 4, 64, 4, 256, 4, 64, 4, 256, 64, 514, 77, 513),
    "random:b32": _B32,
    "random:b16": _B16,
}
# Published shapes, so that a plan and its cost need no download; the weights are checked against them.
_PUBLISHED: Mapping[str, ClipShape] = {"openai/clip-vit-base-patch32": _B32, "openai/clip-vit-base-patch16": _B16}


def clip_shape(config: ModelConfig) -> ClipShape:
    """The shape of ``model.clip``, from its config.json alone. Raises ConfigError where none can be used."""
    name = config.clip
    if name.startswith("random:"):
        if name not in RANDOM:
            raise ConfigError(f"model.clip {name!r}: no such random CLIP; there are {', '.join(RANDOM)}")
        return RANDOM[name]
    if name in _PUBLISHED and not Path(name).is_dir():
        return _PUBLISHED[name]
    return read_shape(clip_folder(config), name)


def clip_folder(config: ModelConfig) -> Path:
    """The folder of ``model.clip``, downloaded where it is a hub name. Raises ConfigError."""
    from sensorium.parts.encoders_hub import model_folder

    return model_folder(config.clip, "CLIP", _ALLOWED, _ADVICE)


def read_shape(folder: Path, name: str) -> ClipShape:
    """The shape that ``folder/config.json`` describes. Raises ConfigError for anything but a CLIP."""
    from transformers import CLIPConfig

    from sensorium.parts.encoders_base import LOAD_ERRORS, quiet, read_config, reason

    kind = read_config(folder).get("model_type")
    if kind != "clip":
        raise ConfigError(f"CLIP {name}: {folder} holds a model of type {kind!r}, not 'clip'; {_ADVICE}")
    try:
        with quiet():
            found = CLIPConfig.from_pretrained(folder, local_files_only=True)
    except LOAD_ERRORS as error:
        raise ConfigError(f"CLIP {name}: {folder}/config.json cannot be used ({reason(error)}); {_ADVICE}") from error
    return shape_of(found, name)


def shape_of(found: Any, name: str) -> ClipShape:
    """The shape of a ``transformers.CLIPConfig``. Raises ConfigError for what our towers do not compute."""
    vision, text = found.vision_config, found.text_config
    for part, section in (("vision", vision), ("text", text)):
        if section.hidden_act not in ("quick_gelu", "gelu"):
            raise ConfigError(
                f"CLIP {name}: {part}_config.hidden_act is {section.hidden_act!r}; allowed are quick_gelu and gelu"
            )
    if vision.image_size % vision.patch_size or vision.num_channels != 3:
        raise ConfigError(
            f"CLIP {name}: pictures of {vision.image_size} pixels and {vision.num_channels} channels in patches of "
            f"{vision.patch_size}; needed are 3 channels and whole patches"
        )
    # Configurations from before transformers 4.30 say 2 and mean the last token of the vocabulary.
    eot = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    return ClipShape(
        resolution=vision.image_size,
        patch=vision.patch_size,
        layers=vision.num_hidden_layers,
        width=vision.hidden_size,
        heads=vision.num_attention_heads,
        inner=vision.intermediate_size,
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        text_heads=text.num_attention_heads,
        text_inner=text.intermediate_size,
        embed=found.projection_dim,
        vocab=text.vocab_size,
        context=text.max_position_embeddings,
        eot_id=eot,
        activation=vision.hidden_act,
        text_activation=text.hidden_act,
        eps=vision.layer_norm_eps,
        text_eps=text.layer_norm_eps,
    )
