"""Attention blocks: equal to the formula, to torch's own, and never NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sensorium.parts import attention
from sensorium.parts.attention import (
    Block,
    ChannelDropout,
    CrossAttention,
    Keys,
    Pool,
    SelfAttention,
    attend,
    init_weights,
    join,
    look,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums in another order


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cross(competition: bool = False) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(8, 2, competition)


def test_self_attention_equals_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.to_all.weight,
            "in_proj_bias": ours.to_all.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = draw(3, 5, 8)
    normal = ours.norm(x)
    torch.testing.assert_close(ours(x), theirs(normal, normal, normal, need_weights=False)[0], **CLOSE)


def test_cross_attention_equals_the_formula() -> None:
    layer, z, x = cross(), draw(2, 3, 8), draw(2, 4, 8, seed=1)
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    q = layer.to_queries(layer.query_norm(z))
    k, v = layer.to_keys(layer.key_norm(x)).chunk(2, dim=-1)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(4)
        parts.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., head])
    torch.testing.assert_close(layer(z, [layer.keys(x, mask)]), layer.out(torch.cat(parts, dim=-1)), **CLOSE)


@pytest.mark.parametrize("competition", [False, True])
def test_masked_keys_have_no_effect(competition: bool) -> None:
    layer, z, x = cross(competition), draw(2, 3, 8), draw(2, 4, 8, seed=1)
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    changed = torch.where(mask[..., None], x, 100.0)
    before = layer(z, [layer.keys(x, mask)])
    torch.testing.assert_close(layer(z, [layer.keys(changed, mask)]), before, **CLOSE)
    unmasked = layer(z, [layer.keys(changed, torch.ones_like(mask))])
    assert (unmasked - before).abs().max() > 1e-3


@pytest.mark.parametrize("competition", [False, True])
def test_a_row_without_keys_gets_zeros_and_finite_gradients(competition: bool) -> None:
    q, k, v = (draw(2, 2, 3, 4, seed=i).requires_grad_() for i in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = attend(q, Keys(k, v, mask), competition)
    assert not found[1].any()
    assert found[0].all()
    found.sum().backward()
    for part in (q, k, v):
        assert part.grad is not None
        assert torch.isfinite(part.grad).all()
        assert not part.grad[1].any()


def test_plain_attention_over_no_key_is_what_is_avoided() -> None:
    """The negative twin: softmax over nothing is NaN."""
    logits = torch.full((1, 3), -torch.inf)
    assert logits.softmax(-1).isnan().all()


def test_slots_compete_for_keys() -> None:
    """With one query there is no rival: each key's share is 1, and the answer is the mean of the values."""
    q, k, v = draw(1, 1, 1, 4), draw(1, 1, 5, 4, seed=1), draw(1, 1, 5, 4, seed=2)
    mask = torch.tensor([[True, True, True, True, False]])
    torch.testing.assert_close(attend(q, Keys(k, v, mask), True)[0, 0], v[0, 0, :4].mean(dim=0), **CLOSE)
    assert not torch.allclose(attend(q, Keys(k, v, mask), False)[0, 0], v[0, 0, :4].mean(dim=0), atol=1e-3)


def test_groups_of_different_length_equal_one_padded_group() -> None:
    layer, z = cross(), draw(5, 3, 8)
    short, long = draw(3, 2, 8, seed=1), draw(2, 7, 8, seed=2)
    groups = [layer.keys(x, torch.ones(x.shape[:2], dtype=torch.bool)) for x in (short, long)]
    padded = torch.cat([nn.functional.pad(short, (0, 0, 0, 5)), long])
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[:3, 2:] = False
    torch.testing.assert_close(layer(z, groups), layer(z, [layer.keys(padded, mask)]), **CLOSE)


def test_keys_are_taken_and_joined_like_tokens() -> None:
    layer, z, a, b = cross(), draw(2, 3, 8), draw(4, 2, 8, seed=1), draw(4, 5, 8, seed=2)
    masks = [torch.ones(x.shape[:2], dtype=torch.bool) for x in (a, b)]
    rows, keep = torch.tensor([3, 1]), torch.tensor([True, False])
    keys_a, keys_b = layer.keys(a, masks[0]), layer.keys(b, masks[1])
    both = join([keys_a.take(rows, torch.ones(2, dtype=torch.bool)), keys_b.take(rows, keep)])
    tokens = torch.cat([a, b], dim=1)[rows]
    mask = torch.tensor([[True] * 7, [True] * 2 + [False] * 5])
    torch.testing.assert_close(layer(z, [both]), layer(z, [layer.keys(tokens, mask)]), **CLOSE)


def test_one_question_for_all_rows_is_asked_once() -> None:
    layer, slots, x = cross(), draw(1, 3, 8), draw(4, 5, 8, seed=1)
    keys = layer.keys(x, torch.ones(4, 5, dtype=torch.bool))
    torch.testing.assert_close(layer(slots, [keys]), layer(slots.expand(4, -1, -1), [keys]), **CLOSE)


def test_layer_scale_zero_makes_a_block_the_identity() -> None:
    x = draw(2, 3, 8)
    assert Block(8, 2, layer_scale=0.0)(x).equal(x)
    assert not Block(8, 2)(x).equal(x)


def test_pooling_depends_on_what_is_pooled_and_not_on_its_order() -> None:
    torch.manual_seed(0)
    pool, x = Pool(8, 2), draw(2, 5, 8)
    assert pool(x).shape == (2, 8)
    torch.testing.assert_close(pool(x[:, [3, 1, 4, 0, 2]]), pool(x), **CLOSE)
    assert (pool(x)[0] - pool(x)[1]).abs().max() > 1e-3


def test_dropout_takes_whole_channels_of_a_row() -> None:
    torch.manual_seed(0)
    dropout, x = ChannelDropout(0.25), torch.ones(50, 3, 40)
    found = dropout(x)
    assert found[:, 0].equal(found[:, 2])
    assert not found[0].equal(found[1])
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    share = float((found == 0).float().mean())
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))
    assert dropout.eval()(x) is x


def test_initial_weights_reach_every_linear() -> None:
    block = Block(8, 2)
    init_weights(block)
    linears = [part for part in block.modules() if isinstance(part, nn.Linear)]
    assert len(linears) == 4
    assert not any(part.bias.any() for part in linears)
    assert all(part.weight.any() for part in linears)


# --- masks and chunks


def test_a_block_equals_torchs_own_with_a_mask() -> None:
    torch.manual_seed(0)
    ours = Block(8, 2)
    theirs = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    names = {
        "self_attn.in_proj_": "attention.to_all.",
        "self_attn.out_proj.": "attention.out.",
        "norm1.": "attention.norm.",
        "norm2.": "mlp.0.",
        "linear1.": "mlp.1.",
        "linear2.": "mlp.3.",
    }
    weights = {name: 0.3 * draw(*p.shape, seed=i) for i, (name, p) in enumerate(ours.named_parameters())}
    ours.load_state_dict(weights)
    theirs.load_state_dict({a + kind: weights[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
    x, mask = draw(3, 5, 8), torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 4 + [True]])
    expected = theirs.train()(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask), expected, rtol=1e-6, atol=1e-6)
    assert (ours(x) - expected).abs().max() > 1e-2  # the twin: without the mask


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that any operation made, backward passes included."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(x.numel() for x in tree_leaves(found) if isinstance(x, Tensor))])
        return found


def asked(chunk: int | None, *, fused: bool = False) -> tuple[list[Tensor], int]:
    """Answer and gradients of an attention from 12 queries to 64 keys, and the largest tensor on the way."""
    q, k, v = (draw(2, 3, n, 4, seed=i).requires_grad_() for i, n in enumerate((12, 64, 64)))
    mask = torch.arange(64) < torch.tensor([[64], [5]])
    kernels = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION] if fused else [SDPBackend.MATH]
    with sdpa_kernel(kernels), Sizes() as sizes:
        found = look(q, k, v, mask, chunk)
        (found * draw(2, 3, 12, 4, seed=9)).sum().backward()
    return [found, *(x.grad for x in (q, k, v) if x.grad is not None)], sizes.largest


@pytest.mark.parametrize("chunk", [1, 2, 5, 8])
def test_attention_in_chunks_equals_plain_attention_with_fewer_scores(chunk: int) -> None:
    plain, _ = asked(None)
    found, largest = asked(chunk)
    assert len(found) == 4
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    tokens = 2 * 3 * 64 * 4  # the keys themselves
    assert largest == max(2 * 3 * chunk * 64, tokens)


def test_without_chunks_all_scores_exist_at_once() -> None:
    """The negative twin."""
    assert asked(None)[1] == 2 * 3 * 12 * 64
    assert asked(12)[1] == 2 * 3 * 12 * 64


def test_a_fused_kernel_needs_no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("asked in chunks")

    monkeypatch.setattr(attention, "_look_plainly", never)
    found, largest = asked(5, fused=True)
    assert largest == 2 * 3 * 64 * 4
    monkeypatch.undo()
    for one, other in zip(found, asked(5)[0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_chunks_keep_no_scores_for_the_backward_pass() -> None:
    """Kept, the scores of all chunks would fill as much memory as those of none."""

    def kept(chunk: int | None) -> int:
        storages: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
            return x

        q = draw(1, 1, 64, 4).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            found = look(q, q, q, None, chunk)
        assert found.requires_grad
        return sum(storages.values())

    assert kept(None) >= 64 * 64
    assert kept(8) == 64 * 4  # the queries, keys and values themselves
