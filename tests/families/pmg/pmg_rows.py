"""Small language models, pipelines and batches of `pmg` for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from sensorium.families.pmg.language import TrunkShape, trunk_shape
from sensorium.families.pmg.model import PMGAdapter, Sizes

WORDS, TOLD = 61, 24


def trunk(heads: int = 2, attention: str = "eager", seed: int = 0) -> LlamaModel:
    """Two layers of width 32, four heads on ``heads`` key/value heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=heads,
        max_position_embeddings=128,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    return LlamaModel(config).eval().requires_grad_(False)


def adapter_of(model: LlamaModel, soft: int = 2, prefix: int = 3, seed: int = 1) -> PMGAdapter:
    """Drawn wide, so that everything it does is seen."""
    torch.manual_seed(seed)
    found = PMGAdapter(Sizes.of(trunk_shape(model.config), TOLD, soft, prefix))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found


def texts(lengths: tuple[int, ...], width: int | None = None, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (len(lengths), width or max(lengths)), generator=generator)
    return ids, torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]


def by_hand(model: LlamaModel, adapter: PMGAdapter, ids: Tensor, shift: int = 0) -> Tensor:
    """Hidden states behind one text and the soft tokens, written out: each layer's keys and values are the prefix's,
    then the text's own, rotated as from position ``n_pre + shift``."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    prefix, soft = adapter.prefix_L2KPD, adapter.image_prompt_NH
    assert prefix is not None
    assert soft is not None
    x = torch.cat([model.embed_tokens(ids), soft])[None]
    length, ahead = x.shape[1], prefix.shape[3]
    cos, sin = model.rotary_emb(x, torch.arange(length)[None] + ahead + shift)
    heads, size = model.config.num_attention_heads, 8
    reach = torch.ones(length, ahead + length).tril(ahead).bool()
    for number, layer in enumerate(model.layers):
        attention: Any = layer.self_attn
        normed = layer.input_layernorm(x)
        shape = (1, length, -1, size)
        query = attention.q_proj(normed).view(shape).transpose(1, 2)
        key = attention.k_proj(normed).view(shape).transpose(1, 2)
        value = attention.v_proj(normed).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        key = torch.cat([prefix[number, 0][None], key], 2).repeat_interleave(heads // key.shape[1], 1)
        value = torch.cat([prefix[number, 1][None], value], 2).repeat_interleave(heads // value.shape[1], 1)
        scores = (query @ key.transpose(2, 3) / size**0.5).masked_fill(~reach, -torch.inf)
        found = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, length, -1)
        x = x + attention.o_proj(found)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    hidden: Tensor = model.norm(x)[0, -len(soft) :]
    return hidden


SMOLLM2 = TrunkShape(30, 576, 3, 64)
