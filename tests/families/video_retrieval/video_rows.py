"""Small models and made-up videos for the tests of `video_retrieval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorium import config as configuration
from sensorium.families.video_retrieval.clip import Clip
from sensorium.families.video_retrieval.config import Kind, ModelConfig
from sensorium.families.video_retrieval.model import UnifiedTempMeSTOPModel
from sensorium.families.video_retrieval.shape import ClipShape, clip_shape

FRAMES, SIDE, WORDS = 8, 32, 16
TINY: Mapping[str, Any] = {
    "clip": "random:tiny",
    "frames": FRAMES,
    "words": WORDS,
    "groups": {1: 2, 2: 2, 3: 2},
    "frame_merge": 2,
    "cut_cross_pct": 30,
    "cut_inside_pct": 10,
    "tome_r": 2,
}


def config(kind: Kind, changes: Mapping[str, Any] | None = None) -> ModelConfig:
    """A tiny model of that kind."""
    return configuration.build(ModelConfig, configuration.merge(TINY, {"kind": kind}, changes or {}))


def build(kind: Kind, changes: Mapping[str, Any] | None = None, *, begun: bool = False) -> UnifiedTempMeSTOPModel:
    """A tiny model of that kind, in evaluation mode; what is trained is random unless it has only ``begun``."""
    torch.manual_seed(0)
    model = UnifiedTempMeSTOPModel(config(kind, changes)).eval()
    if not begun:
        randomise(model)
    return model


@torch.no_grad()
def randomise(model: UnifiedTempMeSTOPModel) -> None:
    """Nothing that is trained stays zero. The same name gets the same values in every model."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim:
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def on_paper(model: Mapping[str, Any], shape: ClipShape | None = None) -> UnifiedTempMeSTOPModel:
    """A model of any size without memory: shapes can be computed, numbers cannot."""
    given = configuration.build(ModelConfig, model)
    with torch.device("meta"):
        return UnifiedTempMeSTOPModel(given, clip=Clip(shape or clip_shape(given)))


def videos(rows: int, seed: int = 0, frames: int = FRAMES) -> Tensor:
    """``[rows, frames, 3, 32, 32]`` uint8: a pattern that moves and a square that appears, all of them different."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randint(0, 256, (rows, 1, 3, SIDE, SIDE), generator=generator)
    moving = torch.stack([still[:, 0].roll(3 * t, dims=-1) for t in range(frames)], dim=1)
    noise = torch.randint(0, 256, (rows, frames, 3, SIDE, SIDE), generator=generator)
    return ((moving + noise // 2) % 256).to(torch.uint8)


def everything(rows: int, frames: int = FRAMES) -> Tensor:
    """A mask without padding."""
    return torch.ones(rows, frames, dtype=torch.bool)


def texts(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[rows, WORDS]``: texts of different lengths, an end token, and end tokens as padding."""
    shape = clip_shape(config("clip_mean"))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, shape.eot_id - 1, (rows, WORDS), generator=generator)
    ends = torch.randint(3, WORDS, (rows,), generator=generator)
    places = torch.arange(WORDS)
    ids[places >= ends[:, None]] = shape.eot_id
    return ids, (places <= ends[:, None]).long()


def losses(model: UnifiedTempMeSTOPModel, rows: int = 4, groups: Tensor | None = None) -> dict[str, Tensor]:
    ids, mask = texts(rows)
    return model(videos(rows), everything(rows), ids, mask, torch.zeros_like(ids), groups)
