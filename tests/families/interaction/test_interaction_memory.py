"""What saves memory changes nothing: chunked attention, gradient checkpointing. And parity with a known ViT."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from interaction_rows import SHAPE, SMALL, Rows, build, changed, gradients, make, total
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTModel

from sensorium.families.interaction import towers
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.model import InteractionModel
from sensorium.parts.chunks import in_chunks, take

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order
SUMMED = {"rtol": 1e-4, "atol": 1e-4}  # of gradients, sums over many tokens
EXACT = {"rtol": 0.0, "atol": 0.0}
CHUNK = 3


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, **tolerance, msg=name)


# --- a ViT


def as_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' ViT under the names of the vision tower."""
    ours = {
        "class_token": state["embeddings.cls_token"].flatten(),
        "positions": state["embeddings.position_embeddings"][0],
        "project.weight": state["embeddings.patch_embeddings.projection.weight"].flatten(1),
        "project.bias": state["embeddings.patch_embeddings.projection.bias"],
    }
    names = {
        "layernorm_before": "attention.norm",
        "attention.o_proj": "attention.out",
        "layernorm_after": "mlp.0",
        "mlp.fc1": "mlp.1",
        "mlp.fc2": "mlp.3",
    }
    for kind in ("weight", "bias"):
        ours[f"trunk.norm.{kind}"] = state[f"layernorm.{kind}"]
        for i in range(SHAPE.vision_blocks):
            here, there = f"trunk.blocks.{i}.", f"layers.{i}."
            joint = [state[f"{there}attention.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"{here}attention.to_all.{kind}"] = torch.cat(joint)
            ours |= {f"{here}{new}.{kind}": state[f"{there}{old}.{kind}"] for old, new in names.items()}
    return ours


@torch.no_grad()
def test_the_vision_tower_equals_a_known_vit() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=SHAPE.width,
        num_hidden_layers=SHAPE.vision_blocks,
        num_attention_heads=SHAPE.heads,
        intermediate_size=4 * SHAPE.width,
        image_size=SMALL.image_size,
        patch_size=SMALL.patch,
        layer_norm_eps=1e-5,
    )
    theirs, tower = ViTModel(config, add_pooling_layer=False).eval(), build().vision
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    tower.load_state_dict(as_ours(theirs.state_dict()))
    images = make()["images"]
    expected = theirs(pixel_values=images).last_hidden_state
    encoding = tower(images)
    torch.testing.assert_close(encoding.tokens, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(encoding.pooled, expected[:, 0], rtol=1e-6, atol=1e-6)
    tower.positions[3, ::2] += 1.0  # the twin
    assert (tower(images).tokens - expected).abs().max() > 1e-2


# --- attention in chunks


class Scores(TorchDispatchMode):
    """The largest matrix of attention scores that any operation made: what is as long as the keys, for each query."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: dict[int, int] = {}  # by number of keys

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._softmax.default or func is torch.ops.aten._softmax_backward_data.default:
            *_, queries, keys = found.shape
            self.queries[keys] = max(self.queries.get(keys, 0), queries)
        return found


def watched(config: ModelConfig) -> tuple[dict[str, Tensor], dict[int, int]]:
    """Gradients where no fused kernel takes the mask; and how many queries at once met how many keys."""
    with sdpa_kernel(SDPBackend.MATH), Scores() as scores:
        return gradients(build(config), make()), scores.queries


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_chunked_attention_changes_nothing_but_the_scores(use_checkpoint: bool) -> None:
    plain, queries = watched(changed(dropout=0.2))
    # 17 image tokens, 10 words, 7 sound tokens, 4 latents among themselves and before all tokens
    assert queries == {17: 17, 10: 10, 7: 7, 4: 4, 34: 4}
    found, queries = watched(changed(dropout=0.2, attention_chunk=CHUNK, use_checkpoint=use_checkpoint))
    assert queries == dict.fromkeys((17, 10, 7, 4, 34), CHUNK)
    compare(found, plain, SUMMED)


def test_chunks_stay_unused_where_a_fused_kernel_takes_the_mask() -> None:
    plain, chunked = (gradients(build(changed(attention_chunk=n)), make()) for n in (None, CHUNK))
    compare(chunked, plain, EXACT)


# --- gradient checkpointing


def test_checkpointing_replays_dropout_exactly() -> None:
    plain = gradients(build(changed(dropout=0.3)), make())
    compare(gradients(build(changed(dropout=0.3, use_checkpoint=True)), make()), plain, EXACT)


def test_checkpointing_without_replay_gives_other_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative twin: the loss is the same, its gradient is not."""
    plain = gradients(build(changed(dropout=0.3)), make())
    monkeypatch.setattr(towers, "checkpoint", partial(checkpoint, preserve_rng_state=False))
    found = gradients(build(changed(dropout=0.3, use_checkpoint=True)), make())
    assert found["loss"].equal(plain["loss"])
    assert not torch.allclose(found["text.words.weight"], plain["text.words.weight"], **SUMMED)


def test_checkpointing_keeps_the_inputs_of_blocks_alone() -> None:
    def kept(config: ModelConfig) -> int:
        total_size = 0

        def count(x: Tensor) -> Tensor:
            nonlocal total_size
            total_size += x.numel()
            return x

        model = build(config)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            model.encode_image(make()["images"])
        return total_size

    assert kept(changed(use_checkpoint=True)) < 0.35 * kept(SMALL)


def test_checkpointing_is_for_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, use_reentrant: bool) -> Any:
        calls.append(args)
        return checkpoint(*args, use_reentrant=use_reentrant)

    monkeypatch.setattr(towers, "checkpoint", counted)
    model = build(changed(use_checkpoint=True))
    with torch.no_grad():
        model(**make())
    assert calls == []
    model(**make())
    assert len(calls) == SHAPE.vision_blocks + SHAPE.text_blocks + SHAPE.audio_blocks + SHAPE.fusion_layers


# --- all of it inside chunks of rows


def cached(model: InteractionModel, rows: Rows, chunks: int) -> dict[str, Tensor]:
    """Gradients where the embeddings are made chunk by chunk of rows, and the loss sees all."""
    model.zero_grad()
    numbers = torch.arange(6)
    names = ("vision_embeds", "text_embeds", "audio_embeds", "fused_features")

    def represent(part: Tensor) -> dict[str, Tensor]:
        outputs = model(**take(rows, part))
        return {name: outputs[name] for name in names}

    torch.manual_seed(3)
    found = in_chunks(represent, numbers, chunks) if chunks > 1 else represent(numbers)
    total(found).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_chunks_of_rows_of_chunks_of_queries_of_checkpoints() -> None:
    """GradCache around checkpointing around chunked attention; and with dropout, which is drawn chunk by chunk."""
    rows = make()
    all_of_it = changed(use_checkpoint=True, attention_chunk=CHUNK)
    with sdpa_kernel(SDPBackend.MATH):
        compare(cached(build(all_of_it), rows, 3), cached(build(), rows, 1), SUMMED)
        noisy = {"dropout": 0.3}
        expected = cached(build(changed(**noisy)), rows, 3)
        compare(cached(build(all_of_it.model_copy(update=noisy)), rows, 3), expected, SUMMED)
