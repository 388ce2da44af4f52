"""What the towers learn from before they are aligned: labels or hidden patches of pictures, hidden spans of sound.

Legend: B rows, P patches, K visible patches, U sound tokens, D width, C labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.towers import STD, patches, positions
from sensorium.parts.attention import Block, full_precision, init_weights

HIDDEN_PATCHES = 0.75  # as in MAE
HIDDEN_SOUND = 0.65
SPAN = 10  # sound tokens of 40 ms hidden together; single ones could be guessed from their neighbours
FRAMES = 4  # log-mel frames behind a sound token


class Pretraining(nn.Module):
    """Heads that are thrown away after the first stage. ``labels``: how many the pictures have; 0 hides patches."""

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        dims = config.dims
        self.labels = nn.Linear(dims.width, labels) if labels else None
        self.pixels = None if labels else PatchDecoder(config)
        self.sound = nn.Linear(dims.width, FRAMES * config.mel_bands)
        init_weights(self)

    def picture_losses(self, model: InteractionModel, images_BCHW: Tensor, labels_BC: Tensor | None) -> Tensor:
        """``[B]``: binary cross-entropy of the labels, or squared error of hidden patches."""
        if self.labels is not None:
            assert labels_BC is not None
            logits = full_precision(self.labels(model.encode_image(images_BCHW).pooled))
            target = labels_BC.to(logits.dtype)
            return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
        assert self.pixels is not None
        losses: Tensor = self.pixels(model, images_BCHW)
        return losses

    def sound_losses(self, model: InteractionModel, mel_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """``[B]``: squared error of the standardised frames behind hidden tokens (65 %, in spans); the tower sees the
        mean, zero, in their place."""
        tokens = mask_BT[:, ::2][:, ::2]
        hidden = _spans(tokens)
        frames = hidden.repeat_interleave(FRAMES, dim=1)[:, : mask_BT.shape[1]]
        seen = model.encode_audio(mel_BTC.masked_fill(frames[..., None], 0.0), mask_BT)
        said = full_precision(self.sound(seen.tokens))
        pad = FRAMES * tokens.shape[1] - mel_BTC.shape[1]
        target = functional.pad(mel_BTC, (0, 0, 0, pad)).unflatten(1, (-1, FRAMES)).flatten(2)
        real = functional.pad(mask_BT, (0, pad)).unflatten(1, (-1, FRAMES))
        weight = (hidden[..., None] & real).repeat_interleave(mel_BTC.shape[2], dim=2)
        error = (said - target).square().masked_fill(~weight, 0.0)
        return error.sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1)


class PatchDecoder(nn.Module):
    """A masked autoencoder's decoder (He et al. 2021, arXiv 2111.06377): from a quarter of the patches to the rest."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dims = config.dims
        self.patch = config.patch
        self.hidden = nn.Parameter(torch.empty(dims.width))
        self.blocks = nn.ModuleList(Block(dims.width, dims.heads) for _ in range(2))
        self.norm = nn.LayerNorm(dims.width)
        self.out = nn.Linear(dims.width, 3 * config.patch**2)
        nn.init.normal_(self.hidden, std=STD)

    def forward(self, model: InteractionModel, images_BCHW: Tensor) -> Tensor:
        """``[B]``: mean squared error over hidden patches, each brought to mean 0 and deviation 1."""
        target = full_precision(patches(images_BCHW, self.patch))
        target = (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()
        rows, count = target.shape[:2]
        order = torch.rand(rows, count, device=target.device).argsort(dim=1)
        visible = max(1, round(count * (1 - HIDDEN_PATCHES)))
        kept, gone = order[:, :visible], order[:, visible:]
        seen = model.vision(images_BCHW, None, kept).tokens
        codes = positions(count, seen.shape[2], seen.device)
        asked = (self.hidden + codes)[gone]
        x = torch.cat([seen[:, :1], seen[:, 1:] + codes[kept], asked.to(seen.dtype)], dim=1)
        everything = torch.ones_like(x[..., 0], dtype=torch.bool)
        for block in self.blocks:
            x = block(x, everything)
        said = full_precision(self.out(self.norm(x[:, 1 + visible :])))
        wanted = target.gather(1, gone[..., None].expand(-1, -1, target.shape[2]))
        return (said - wanted).square().mean(dim=(1, 2))


def _spans(tokens_BU: Tensor) -> Tensor:
    """Which real tokens are hidden, ``[B, U]`` bool: about 65 % of each row, in spans, and at least one."""
    rows, length = tokens_BU.shape
    blocks = -(-length // SPAN)
    shift = torch.randint(SPAN, (rows, 1), device=tokens_BU.device)
    number = (torch.arange(length, device=tokens_BU.device) + shift) // SPAN
    draw = torch.rand(rows, blocks + 1, device=tokens_BU.device).gather(1, number)
    # Each span by the same draw of all its tokens; the lowest 65 % of the real tokens are hidden.
    ranked = draw.masked_fill(~tokens_BU, 2.0)
    count = (tokens_BU.sum(dim=1, keepdim=True) * HIDDEN_SOUND).ceil().clamp_min(1).long()
    limit = ranked.sort(dim=1).values.gather(1, count - 1)
    return (ranked <= limit) & tokens_BU
