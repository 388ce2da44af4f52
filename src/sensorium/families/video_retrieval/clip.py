"""CLIP's two towers, thin enough to look into between attention and MLP (Radford et al. 2021, arXiv 2103.00020).

Legend: R sequences, N tokens, D width, H heads, d = D / H, P patches, B texts, L tokens of a text, E shared space.

Weights are those of ``transformers.CLIPModel``, with q, k and v side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium.errors import ConfigError, DataError
from sensorium.families.video_retrieval.config import ModelConfig
from sensorium.families.video_retrieval.shape import RANDOM, ClipShape, clip_folder, clip_shape, read_shape
from sensorium.parts.attention import split_heads
from sensorium.parts.contrastive import LARGEST_SCALE, Temperature
from sensorium.parts.lora import FusedLora

__all__ = [
    "Block",
    "Clip",
    "ClipShape",
    "TextTower",
    "VisionTower",
    "clip_shape",
    "from_hf",
    "open_clip",
    "random_clip",
    "to_hf",
]

PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Projected: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""q, k, v, each ``[R, H, N, d]``."""


class Block(nn.Module):
    """A pre-norm transformer block in three steps, so that a caller can work on the tokens in between."""

    def __init__(self, width: int, heads: int, inner: int, activation: str, eps: float) -> None:
        super().__init__()
        self.heads, self.quick = heads, activation == "quick_gelu"
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def project(self, x_RND: Tensor, lora: FusedLora | None) -> Projected:
        """Queries, keys and values of the tokens."""
        x = self.norm1(x_RND)
        found = self.qkv(x) if lora is None else self.qkv(x) + lora(x)
        q, k, v = (split_heads(part, self.heads) for part in found.chunk(3, dim=-1))
        return q, k, v

    def attend(self, found: Projected, bias: Tensor | None) -> Tensor:
        """The update ``[R, N, D]``. ``bias`` is added to the scores, any shape that fits ``[R, H, N, N]``."""
        q, k, v = found
        mask = None if bias is None else bias.to(q.dtype)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        update: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return update

    def mlp(self, x_RND: Tensor) -> Tensor:
        """The update ``[R, N, D]``."""
        x = self.fc1(self.norm2(x_RND))
        # x * sigmoid(1.702 x), written so that one tensor is kept for the backward pass and not three.
        x = functional.silu(1.702 * x) * (1 / 1.702) if self.quick else functional.gelu(x)
        update: Tensor = self.fc2(x)
        return update


class VisionTower(nn.Module):
    """Everything of the image tower but the order of its steps."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.class_token = nn.Parameter(torch.empty(width))
        self.patchify = nn.Conv2d(3, width, shape.patch, stride=shape.patch, bias=False)
        self.positions = nn.Parameter(torch.empty(1 + shape.patches, width))
        self.norm_pre = nn.LayerNorm(width, eps=shape.eps)
        blocks = (Block(width, shape.heads, shape.inner, shape.activation, shape.eps) for _ in range(shape.layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm_post = nn.LayerNorm(width, eps=shape.eps)
        self.to_shared = nn.Linear(width, shape.embed, bias=False)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def embed(self, pixels_R3HW: Tensor) -> Tensor:
        """CLS and patches ``[R, P + 1, D]``; pixels are uint8, or floats that are normalised already."""
        x = pixels_R3HW
        if not x.is_floating_point():
            x = (x.to(self.positions.dtype) / 255 - self.pixel_mean) / self.pixel_std
        x = self.patchify(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        tokens: Tensor = self.norm_pre(x + self.positions)
        return tokens

    def shared(self, tokens: Tensor) -> Tensor:
        """Tokens ``[..., D]`` in the space that texts share, ``[..., E]``; not normalised."""
        found: Tensor = self.to_shared(self.norm_post(tokens))
        return found


class TextTower(nn.Module):
    """Causal; a text is what its *first* end token says (CLIP fills up with the same token)."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.shape, width = shape, shape.text_width
        self.words = nn.Embedding(shape.vocab, width)
        self.positions = nn.Parameter(torch.empty(shape.context, width))
        self.blocks = nn.ModuleList(
            Block(width, shape.text_heads, shape.text_inner, shape.text_activation, shape.text_eps)
            for _ in range(shape.text_layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=shape.text_eps)
        self.to_shared = nn.Linear(width, shape.embed, bias=False)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, loras: Sequence[FusedLora] | None) -> Tensor:
        """``[B, E]``, not normalised. ``ids`` int64, each row with an end token; ``mask`` nonzero where a token is no
        padding. Raises DataError for longer texts than there are positions."""
        length, most = ids_BL.shape[-1], len(self.positions)
        if ids_BL.ndim != 2 or not 1 <= length <= most or mask_BL.shape != ids_BL.shape:
            raise DataError(
                f"input_ids have shape {list(ids_BL.shape)} and their mask {list(mask_BL.shape)}; this CLIP reads two "
                f"of [B, L] with L from 1 to {most}"
            )
        x = self.words(ids_BL) + self.positions[:length]
        places = torch.arange(length, device=ids_BL.device)
        causal = places[:, None] >= places
        # Padding sees itself, so that no row of the softmax is over nothing.
        seen = causal & ((mask_BL != 0)[:, None, :] | (places[:, None] == places))
        bias = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -torch.inf)[:, None]
        for number, block in enumerate(_blocks(self)):
            x = x + block.attend(block.project(x, None if loras is None else loras[number]), bias)
            x = x + block.mlp(x)
        end = (ids_BL == self.shape.eot_id).int().argmax(dim=-1)
        found: Tensor = self.to_shared(self.norm_post(x[torch.arange(len(x), device=x.device), end]))
        return found


def _blocks(tower: VisionTower | TextTower) -> list[Block]:
    return [cast("Block", block) for block in tower.blocks]


class Clip(nn.Module):
    """Both towers and the factor of the cosines. Weights are whatever memory holds: see ``open_clip``."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.shape = shape
        self.vision = VisionTower(shape)
        self.text = TextTower(shape)
        self.temperature = Temperature(LARGEST_SCALE)


def open_clip(config: ModelConfig) -> Clip:
    """The towers of ``model.clip`` with their weights, on the CPU, and the factor of the cosines that they were trained
    with (100 in OpenAI's).

    Raises ConfigError where weights are missing, incomplete or of another shape.
    """
    if config.clip in RANDOM:
        return random_clip(RANDOM[config.clip])
    from transformers import CLIPModel

    from sensorium.parts.encoders_base import load_pretrained

    expected, folder = clip_shape(config), clip_folder(config)
    found = read_shape(folder, config.clip)
    if found != expected:
        raise ConfigError(f"CLIP {config.clip}: {folder}/config.json describes {found}; expected is {expected}")
    clip = _empty(found)
    load: Any = CLIPModel.from_pretrained
    clip.load_state_dict(from_hf(clip, load_pretrained(load, folder, config.clip).state_dict()))
    return clip


def random_clip(shape: ClipShape) -> Clip:
    """Towers with weights from a fixed seed, the same ones always; no other draw is changed by it."""
    return _draw(_empty(shape))


def _empty(shape: ClipShape) -> Clip:
    """Without drawing numbers that would be thrown away."""
    with torch.device("meta"):
        clip = Clip(shape)
    clip.to_empty(device="cpu")
    clip.vision.pixel_mean.copy_(torch.tensor(PIXEL_MEAN).view(3, 1, 1))
    clip.vision.pixel_std.copy_(torch.tensor(PIXEL_STD).view(3, 1, 1))
    return clip


@torch.no_grad()
def _draw(clip: Clip) -> Clip:
    """Weights from a fixed seed, scaled as CLIP's were when its training began."""
    generator = torch.Generator().manual_seed(0)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.normal_(std=std, generator=generator)

    for tower in (clip.vision, clip.text):
        width, depth = tower.positions.shape[1], len(tower.blocks)
        normal(tower.positions, width**-0.5 if tower is clip.vision else 0.01)
        normal(tower.to_shared.weight, width**-0.5)
        for block in _blocks(tower):
            normal(block.qkv.weight, width**-0.5)
            normal(block.out.weight, width**-0.5 * (2 * depth) ** -0.5)
            normal(block.fc1.weight, (2 * width) ** -0.5)
            normal(block.fc2.weight, width**-0.5 * (2 * depth) ** -0.5)
    normal(clip.vision.class_token, clip.shape.width**-0.5)
    normal(clip.vision.patchify.weight, (3 * clip.shape.patch**2) ** -0.5)
    normal(clip.text.words.weight, 0.02)
    for module in clip.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    clip.temperature.log_scale.fill_(math.log(LARGEST_SCALE))
    return clip


_OUTER = {
    "vision.class_token": "vision_model.embeddings.class_embedding",
    "vision.patchify.weight": "vision_model.embeddings.patch_embedding.weight",
    "vision.positions": "vision_model.embeddings.position_embedding.weight",
    "vision.norm_pre": "vision_model.pre_layrnorm",
    "vision.norm_post": "vision_model.post_layernorm",
    "vision.to_shared.weight": "visual_projection.weight",
    "text.words.weight": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm_post": "text_model.final_layer_norm",
    "text.to_shared.weight": "text_projection.weight",
    "temperature.log_scale": "logit_scale",
}
_INNER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")


def _theirs(name: str) -> tuple[str, ...]:
    """What ``transformers.CLIPModel`` calls a parameter of ours; three names for q, k and v."""
    if name in _OUTER:
        return (_OUTER[name],)
    owner, _, kind = name.rpartition(".")
    if owner in _OUTER:
        return (f"{_OUTER[owner]}.{kind}",)
    tower, _, number, part, kind = name.split(".")
    names = _QKV if part == "qkv" else (_INNER[part],)
    return tuple(f"{tower}_model.encoder.layers.{number}.{inner}.{kind}" for inner in names)


def from_hf(clip: Clip, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of ``clip`` from that of a ``transformers.CLIPModel`` of its shape. Raises KeyError for another's."""
    found: dict[str, Tensor] = {}
    for name in clip.state_dict():
        parts = [weights[theirs] for theirs in _theirs(name)]
        found[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found


def to_hf(clip: Clip) -> dict[str, Tensor]:
    """The state of ``transformers.CLIPModel`` from ours."""
    found: dict[str, Tensor] = {}
    for name, tensor in clip.state_dict().items():
        theirs = _theirs(name)
        parts = (tensor,) if len(theirs) == 1 else tensor.chunk(len(theirs))
        found |= {other: part.contiguous() for other, part in zip(theirs, parts, strict=True)}
    return found
