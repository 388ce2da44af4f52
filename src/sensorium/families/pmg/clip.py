"""CLIP (arXiv 2103.00020): how well pictures fit texts. Legend: N pictures or texts, d width of their vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sensorium.errors import ConfigError
from sensorium.families.pmg.folders import clip_folder, part_digest
from sensorium.parts.encoders_base import LOAD_ERRORS, computing, freeze, load_pretrained, quiet, read_config, reason

if TYPE_CHECKING:
    from transformers import CLIPModel

_ROWS = 16  # of one pass


class Clip:
    """A CLIP in float32. ``name``: as it was asked for; ``digest``: of its configuration and weights."""

    def __init__(self, name: str, model: CLIPModel, tools: tuple[Any, Any], digest: str, device: str) -> None:
        self.name, self.digest, self.device = name, digest, device
        self.model = freeze(model, device)
        self._tokenizer, self._processor = tools

    @classmethod
    def open(cls, name: str, device: str = "cpu") -> Clip:
        """A folder, a hub name or ``random:tiny``. Raises ConfigError."""
        folder = clip_folder(name)
        kind = read_config(folder).get("model_type")
        if kind != "clip":
            raise ConfigError(f"CLIP {name}: {folder} holds a model of kind {kind!r}; give one of kind 'clip'")
        from transformers import CLIPModel

        load: Any = CLIPModel.from_pretrained
        model: CLIPModel = load_pretrained(load, folder, name, kind="CLIP")
        return cls(name, model, _tools(folder, name), part_digest(folder), device)

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors ``[N, d]`` float32 on the CPU, one by one the same as together but for rounding."""

        def run(some: Sequence[Image.Image]) -> Tensor:
            pixels = self._processor(images=[one.convert("RGB") for one in some], return_tensors="pt")["pixel_values"]
            seen = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            return self.model.visual_projection(seen)

        return self._unit(pictures, run)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Likewise; a text that is longer than CLIP reads (77 tokens) is cut."""
        longest = self.model.config.text_config.max_position_embeddings

        def run(some: Sequence[str]) -> Tensor:
            ids = self._tokenizer(
                list(some), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
            )["input_ids"]
            return self.model.text_projection(self.model.text_model(input_ids=ids.to(self.device)).pooler_output)

        return self._unit(texts, run)

    def _unit(self, given: Sequence[Any], run: Callable[[Sequence[Any]], Tensor]) -> Tensor:
        found = []
        for start in range(0, len(given), _ROWS):
            with computing(self.device):
                found.append(functional.normalize(run(given[start : start + _ROWS]).float(), dim=1).cpu())
        return torch.cat(found).clone() if found else torch.zeros(0, self.model.config.projection_dim)


def _tools(folder: Path, name: str) -> tuple[Any, Any]:
    """Tokenizer and image processor. Raises ConfigError."""
    from transformers import AutoImageProcessor, AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"CLIP {name}: {folder} has no tokenizer or no image processor ({reason(error)}); give a complete folder"
        ) from error
    return tokenizer, processor
