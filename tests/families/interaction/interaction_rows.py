"""A small model of `interaction` and random rows for its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sensorium.families.interaction.config import ModelConfig, Shape
from sensorium.families.interaction.model import InteractionModel

Rows = dict[str, Tensor]

SHAPE = Shape(
    width=32, heads=4, vision_blocks=2, text_blocks=1, audio_blocks=2, fusion_layers=2, word_width=16, latents=4
)
SMALL = ModelConfig(
    size="custom",
    shape=SHAPE,
    image_size=32,
    patch=8,
    max_tokens=12,
    vocab=64,
    mel_bands=8,
    embedding=16,
    num_classes=5,
    dropout=0.0,
)
INPUTS = {"text": ("input_ids", "attention_mask"), "image": ("images",), "audio": ("audio", "audio_mask")}
EMBEDS = {"text": "text_embeds", "image": "vision_embeds", "audio": "audio_embeds"}


def changed(**values: object) -> ModelConfig:
    """The small configuration with other values."""
    return SMALL.model_copy(update=values)


def build(config: ModelConfig = SMALL, seed: int = 0) -> InteractionModel:
    """A model as if trained: no parameter is at a special value (zero, one) any more."""
    torch.manual_seed(seed)
    model = InteractionModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "temperatures" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make(size: int = 6, seed: int = 0) -> Rows:
    """Rows with all modalities; texts and sounds of different lengths, the first the longest."""
    generator = torch.Generator().manual_seed(seed)

    def mask(length: int) -> Tensor:
        lengths = torch.randint(3, length + 1, (size, 1), generator=generator)
        lengths[0] = length
        return torch.arange(length) < lengths

    return {
        "images": torch.randn(size, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(0, 64, (size, 10), generator=generator),
        "attention_mask": mask(10).long(),
        "audio": torch.randn(size, 27, 8, generator=generator),
        "audio_mask": mask(27),
    }


def pick(rows: Mapping[str, Tensor], order: Sequence[int]) -> Rows:
    """Some rows, in the given order."""
    return {name: tensor[list(order)] for name, tensor in rows.items()}


def only(rows: Mapping[str, Tensor], *modalities: str) -> Rows:
    """The rows without the other modalities."""
    return {name: rows[name] for modality in modalities for name in INPUTS[modality]}


def total(outputs: Mapping[str, Tensor | None]) -> Tensor:
    """A scalar that depends on every output, on each number in its own way."""
    parts = []
    for name in sorted(outputs):
        x = outputs[name]
        if x is not None:
            weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(name)))
            parts.append((x.double() * weights.double()).sum())
    return torch.stack(parts).sum()


def gradients(model: InteractionModel, rows: Mapping[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    """Of ``total``, by parameter, with the random numbers of ``seed``; "loss": the scalar itself."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = total(model(**rows))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}
