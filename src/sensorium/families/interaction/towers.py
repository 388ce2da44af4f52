"""The towers of `interaction`: pictures, texts and sound, each by itself, and the latents that look at all of them.

Legend: B rows, C channels or mel bands, D width, N tokens, P patches, L words, T mel frames, U = T / 4 sound tokens,
R latents.

A tower is given nothing of another modality. What padding and absent rows hold is replaced before anything is computed
from it (it may be anything, NaN included), and an absent row is computed as if its padding were there: finite numbers
that nobody may look at (``Encoding.mask``), rather than a softmax over nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sensorium.data.items import MODALITIES, Modality
from sensorium.errors import DataError
from sensorium.families.interaction.config import ModelConfig
from sensorium.parts.attention import Block, ChannelDropout, CrossAttention, Keys, full_precision, init_weights, join

STD = 0.02  # of positions, word vectors and everything else that is learned without being a matrix of a layer


@dataclass(frozen=True)
class Encoding:
    """One modality of some rows. ``pooled`` ``[B, D]``, float32, zeros where a row lacks the modality; ``tokens``
    ``[B, N, D]``; ``mask`` ``[B, N]`` bool: where a token may be seen."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal codes ``[N, D]``, float32: sines, then cosines (Vaswani et al. 2017, arXiv 1706.03762)."""
    rates = torch.arange(width // 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / (width // 2))
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def patches(images_BCHW: Tensor, size: int) -> Tensor:
    """``[B, C, H, W] -> [B, P, C * size * size]``: patches row by row, each as channels, rows, columns."""
    x = images_BCHW.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def shown(x: Tensor) -> str:
    """The shape, for a message."""
    return str(list(x.shape))


def masked_mean(x_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over the tokens that may be seen, ``[B, D]`` float32; zeros where there are none."""
    total = full_precision(x_BND).masked_fill(~mask_BN[..., None], 0.0).sum(dim=1)
    return total / mask_BN.sum(dim=1, keepdim=True).clamp_min(1)


class Trunk(nn.Module):
    """Transformer blocks and the last LayerNorm. With ``use_checkpoint`` each block keeps its input alone and is
    computed again in the backward pass, with the same random numbers."""

    def __init__(self, config: ModelConfig, blocks: int) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        dims, chunk = config.dims, config.attention_chunk
        self.blocks = nn.ModuleList(Block(dims.width, dims.heads, config.dropout, chunk=chunk) for _ in range(blocks))
        self.norm = nn.LayerNorm(dims.width)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """``mask``: at least one token of every row."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, mask_BN, use_reentrant=False)
            else:
                x_BND = block(x_BND, mask_BN)
        result: Tensor = self.norm(x_BND)
        return result


class VisionTower(nn.Module):
    """A ViT (Dosovitskiy et al. 2020, arXiv 2010.11929), pre-norm; pooled: the class token after the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.image_size, self.patch = config.dims.width, config.image_size, config.patch
        self.project = nn.Linear(3 * self.patch**2, width)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + (self.image_size // self.patch) ** 2, width))
        self.trunk = Trunk(config, config.dims.vision_blocks)
        init_weights(self)
        nn.init.normal_(self.class_token, std=STD)
        nn.init.normal_(self.positions, std=STD)

    def forward(self, images_BCHW: Tensor, present_B: Tensor | None = None, kept_BP: Tensor | None = None) -> Encoding:
        """``images`` ``[B, 3, H, W]``; ``present`` ``[B]`` bool: rows that have one (None: all); ``kept`` ``[B, P]``
        int64: numbers of the patches that are looked at (None: all, in order), as masked pre-training needs it.

        Tokens: the class token, then the patches. Raises DataError for pictures of another size.
        """
        size = (3, self.image_size, self.image_size)
        if images_BCHW.ndim != 4 or images_BCHW.shape[1:] != size:
            wanted = ", ".join(map(str, size))
            raise DataError(f"images have shape {shown(images_BCHW)}; this model reads [B, {wanted}]")
        if present_B is None:
            present_B = torch.ones(len(images_BCHW), dtype=torch.bool, device=images_BCHW.device)
        pixels = images_BCHW.masked_fill(~present_B[:, None, None, None], 0.0)
        x = self.project(patches(pixels, self.patch)) + self.positions[1:]
        if kept_BP is not None:
            x = x.gather(1, kept_BP[..., None].expand(-1, -1, x.shape[-1]))
        first = (self.class_token + self.positions[0]).to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1)
        tokens = self.trunk(x, torch.ones_like(x[..., 0], dtype=torch.bool))
        pooled = full_precision(tokens[:, 0]).masked_fill(~present_B[:, None], 0.0)
        return Encoding(pooled, tokens, present_B[:, None].expand(-1, tokens.shape[1]))


class TextTower(nn.Module):
    """Word vectors, learned positions, blocks; pooled: mean of the tokens.

    A word table narrower than the tower is widened by a Linear.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, word_width = config.dims.width, config.dims.word_width
        self.words = nn.Embedding(config.vocab, word_width)
        self.widen = nn.Linear(word_width, width) if word_width < width else nn.Identity()
        self.positions = nn.Parameter(torch.empty(config.max_tokens, width))
        self.trunk = Trunk(config, config.dims.text_blocks)
        init_weights(self)
        nn.init.normal_(self.words.weight, std=STD)
        nn.init.normal_(self.positions, std=STD)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Encoding:
        """``ids`` int64; ``mask`` bool, False everywhere for a row without text. Raises DataError for longer texts than
        the model has positions."""
        length, most = ids_BL.shape[-1], len(self.positions)
        if ids_BL.ndim != 2 or not 1 <= length <= most:
            raise DataError(
                f"input_ids have shape {shown(ids_BL)}; this model reads [B, L] with L from 1 to {most} "
                "(model.max_tokens): cut longer texts, as its tokenizer does"
            )
        x = self.widen(self.words(ids_BL.masked_fill(~mask_BL, 0))) + self.positions[:length]
        tokens = self.trunk(x, _never_empty(mask_BL))
        return Encoding(masked_mean(tokens, mask_BL), tokens, mask_BL)


class AudioTower(nn.Module):
    """Two convolutions of stride 2 over log-mel frames, sinusoidal positions, blocks; pooled: mean of the tokens.

    Padding frames are zeroed before each convolution, so that a longer padding changes nothing. Token u stands on
    frame 4u, and is one where that frame is: of n frames ceil(ceil(n / 2) / 2) tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bands, width = config.mel_bands, config.dims.width
        self.first = nn.Conv1d(self.bands, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.trunk = Trunk(config, config.dims.audio_blocks)
        init_weights(self)
        for conv in (self.first, self.second):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, mel_BTC: Tensor, mask_BT: Tensor) -> Encoding:
        """``mel`` ``[B, T, bands]``, any T; ``mask`` bool, False everywhere for a row without sound. Raises DataError
        for other shapes."""
        if mel_BTC.ndim != 3 or mel_BTC.shape[1] == 0 or mel_BTC.shape[2] != self.bands:
            raise DataError(
                f"audio has shape {shown(mel_BTC)}; this model reads [B, T, {self.bands}]: time before bands, T >= 1"
            )
        x, mask = mel_BTC, mask_BT
        for conv in (self.first, self.second):
            x = x.masked_fill(~mask[..., None], 0.0).transpose(1, 2)
            x = functional.gelu(conv(x)).transpose(1, 2)
            mask = mask[:, ::2]
        x = x + positions(x.shape[1], x.shape[2], x.device)
        tokens = self.trunk(x, _never_empty(mask))
        return Encoding(masked_mean(tokens, mask), tokens, mask)


def _never_empty(mask_BN: Tensor) -> Tensor:
    """The mask, but all of it in rows that have nothing."""
    return mask_BN | ~mask_BN.any(dim=1, keepdim=True)


class FusionLayer(nn.Module):
    """Latents look at the tokens of all modalities, then exchange what they found."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dims, chunk = config.dims, config.attention_chunk
        self.cross = CrossAttention(dims.width, dims.heads, key_norm=False, chunk=chunk)
        self.dropout = ChannelDropout(config.dropout)
        self.block = Block(dims.width, dims.heads, config.dropout, chunk=chunk)

    def forward(self, z_BRD: Tensor, keys: Keys) -> Tensor:
        z = z_BRD + self.dropout(self.cross(z_BRD, [keys]))
        result: Tensor = self.block(z)
        return result


class Fusion(nn.Module):
    """A bottleneck of latents (Jaegle et al. 2021, arXiv 2107.14795): linear in the tokens, takes any subset.

    ``keys`` projects the tokens of each modality once; ``forward`` may then be asked about any rows and subsets.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        self.latents = nn.Parameter(torch.empty(config.dims.latents, config.dims.width))
        self.modalities = nn.ParameterDict({m: nn.Parameter(torch.empty(config.dims.width)) for m in MODALITIES})
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.dims.fusion_layers))
        self.norm = nn.LayerNorm(config.dims.width)
        init_weights(self)
        for vectors in (self.latents, *self.modalities.values()):
            nn.init.normal_(vectors, std=STD)

    def keys(self, encodings: Mapping[Modality, Encoding]) -> dict[Modality, tuple[Keys, ...]]:
        """Of each modality the projected tokens, for each layer."""
        found = {}
        for modality, encoding in encodings.items():
            x = encoding.tokens + self.modalities[modality]
            found[modality] = tuple(layer.cross.keys(x, encoding.mask) for layer in self.layers)
        return found

    def forward(self, keys: Mapping[Modality, Sequence[Keys]]) -> Tensor:
        """Mean of the latents ``[B, D]``, float32. A row that has nothing gets what the latents say by themselves."""
        ordered = [keys[modality] for modality in MODALITIES if modality in keys]
        z = self.latents[None]  # all rows ask the same
        for layer, parts in zip(self.layers, zip(*ordered, strict=True), strict=True):
            seen = join(parts)
            if self.use_checkpoint and torch.is_grad_enabled():
                z = checkpoint(layer, z, seen, use_reentrant=False)
            else:
                z = layer(z, seen)
        return full_precision(self.norm(z)).mean(dim=1)
