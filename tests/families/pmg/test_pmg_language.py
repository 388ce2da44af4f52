"""The prefix and the soft tokens in the frozen language model: equal to what others compute, and provably used."""

from __future__ import annotations

import warnings

import pytest
import torch
from pmg_rows import SMOLLM2, TOLD, WORDS, adapter_of, by_hand, texts, trunk
from transformers import AutoConfig, LlamaConfig, LlamaModel, MistralConfig

from sensorium.errors import ConfigError
from sensorium.families.pmg import language
from sensorium.families.pmg.language import checkpoint_layers, fixed_cache, own_states, read_history, trunk_shape
from sensorium.families.pmg.model import PMGAdapter, Sizes

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # sums of float32 in another order


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_prefix_is_what_a_forward_by_hand_makes_of_it(heads: int, attention: str) -> None:
    """With padding, and a row without any: kernels take another path where no mask is needed."""
    model = trunk(heads, attention)
    adapter = adapter_of(model)
    for lengths in ((9, 5, 12), (12,)):
        ids, mask = texts(lengths)
        found = read_history(model, adapter.prefix_L2KPD, adapter.image_prompt_NH, ids, mask)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[row], by_hand(model, adapter, ids[row, :length]), **CLOSE)
    with pytest.raises(AssertionError):  # negative twin: text that begins one position later
        torch.testing.assert_close(found[0], by_hand(model, adapter, ids[0], shift=1), **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_prefix_is_that_of_peft(heads: int, attention: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: the forward by hand is the only parity")
    model = trunk(heads, attention)
    adapter = adapter_of(model)
    prefix, soft = adapter.prefix_L2KPD, adapter.image_prompt_NH
    assert prefix is not None
    assert soft is not None
    ids, mask = texts((9, 5, 12))
    found = read_history(model, prefix, soft, ids, mask)
    settings = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=prefix.shape[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it uses of transformers
        tuned = peft.get_peft_model(model, settings)
    with torch.no_grad():  # peft has [P, L * 2 * K * D]
        weight = prefix.permute(3, 0, 1, 2, 4).reshape(prefix.shape[3], -1)
        tuned.prompt_encoder["default"].embedding.weight.copy_(weight)
    for row, length in enumerate((9, 5, 12)):
        embedded = torch.cat([model.embed_tokens(ids[row, :length]), soft])[None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = tuned(inputs_embeds=embedded, attention_mask=torch.ones(1, length + 2)).last_hidden_state
        torch.testing.assert_close(found[row], theirs[0, -2:], **CLOSE)


def test_padding_does_not_matter() -> None:
    model = trunk()
    adapter = adapter_of(model)
    ids, mask = texts((9, 5))
    longer, longer_mask = texts((9, 5), width=40, seed=5)
    longer[:, : ids.shape[1]] = ids
    for prefix in (adapter.prefix_L2KPD, None):
        soft = adapter.image_prompt_NH
        found = read_history(model, prefix, soft, ids, mask)
        torch.testing.assert_close(read_history(model, prefix, soft, longer, longer_mask), found, **CLOSE)
        alone = read_history(model, prefix, soft, ids[1:, :5], mask[1:, :5])
        torch.testing.assert_close(alone, found[1:], **CLOSE)
    other, _ = texts((9, 5), seed=6)
    assert not torch.allclose(read_history(model, None, soft, other, mask), found, atol=1e-3)  # negative twin


def test_without_a_prefix_it_is_the_plain_model() -> None:
    model = trunk()
    adapter = adapter_of(model, prefix=0)
    ids, mask = texts((9, 5))
    found = read_history(model, None, adapter.image_prompt_NH, ids, mask)
    for row, length in enumerate((9, 5)):
        embedded = torch.cat([model.embed_tokens(ids[row, :length]), adapter.image_prompt_NH])[None]
        plain = model(inputs_embeds=embedded).last_hidden_state[0, -2:]
        torch.testing.assert_close(found[row], plain, **CLOSE)
    found.sum().backward()
    assert adapter.image_prompt_NH is not None
    assert adapter.image_prompt_NH.grad is not None


def test_without_anything_the_trunk_is_bit_equal() -> None:
    model = trunk()
    ids, mask = texts((9, 9))
    empty = fixed_cache([(torch.zeros(2, 2, 0, 8), torch.zeros(2, 2, 0, 8))] * 2)
    found = language.run(model, model.embed_tokens(ids), mask, empty)
    assert torch.equal(found, model(input_ids=ids, attention_mask=mask.long()).last_hidden_state)


def test_own_states_as_a_prefix_are_the_text_itself() -> None:
    """Keys are rotated once, and the text behind them goes on at the next position."""
    model = trunk()
    ids, mask = texts((12,))
    prefix = own_states(model, ids[0, :4])
    soft = torch.randn(2, 32)
    found = read_history(model, prefix, soft, ids[:, 4:], mask[:, 4:])
    torch.testing.assert_close(found, read_history(model, None, soft, ids, mask), **CLOSE)


def gradients(adapter: PMGAdapter, model: LlamaModel) -> tuple[float, dict[str, torch.Tensor]]:
    adapter.zero_grad()
    loss = adapter(model, *texts((9, 5, 12))).square().mean()
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}


def test_every_number_of_the_adapter_learns_and_none_of_the_trunk() -> None:
    model = trunk()
    adapter = adapter_of(model)
    _, found = gradients(adapter, model)
    assert found.keys() == dict(adapter.named_parameters()).keys()
    prefix = found["prefix_L2KPD"]
    for part in (*prefix.flatten(0, 1), *found["image_prompt_NH"], found["mapping.weight"], found["mapping.bias"]):
        assert torch.isfinite(part).all()
        assert part.any()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_changes_nothing(training: bool) -> None:
    model, again = trunk().train(training), trunk().train(training)
    adapter = adapter_of(model)
    checkpoint_layers(again)
    calls = []
    again.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    plain, kept = gradients(adapter, model), gradients(adapter, again)
    assert len(calls) == 2  # in the forward pass, and again in the backward pass
    assert plain[0] == kept[0]
    assert all(torch.equal(plain[1][name], kept[1][name]) for name in plain[1])


def test_the_librarys_checkpointing_is_refused_because_it_loses_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    model, broken = trunk(), trunk()
    adapter = adapter_of(model)
    broken.activation_checkpointing_enable()
    with pytest.raises(ConfigError, match=r"drops the prefix; set model\.gradient_checkpointing=true"):
        gradients(adapter, broken)
    monkeypatch.setattr(language, "require_own_checkpointing", lambda _: None)
    broken.train()
    with pytest.raises((AssertionError, RuntimeError, ValueError)):  # what the refusal keeps away
        torch.testing.assert_close(gradients(adapter, broken)[1], gradients(adapter, model)[1], **CLOSE)


def test_the_cache_keeps_nothing() -> None:
    layer = language.FixedLayer(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8))
    for _ in range(2):
        keys, _ = layer.update(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8))
        assert keys.shape[2] == 8
    assert layer.get_seq_length() == 3


@pytest.mark.parametrize(("soft", "prefix", "count"), [(2, 2, 3_678_976), (4, 4, 4_211_456)])
def test_the_count_of_llama_2_7b(soft: int, prefix: int, count: int) -> None:
    with torch.device("meta"):
        config = LlamaConfig(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
        )
        adapter = PMGAdapter(Sizes.of(trunk_shape(config), 768, soft, prefix))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == count
    assert sum(adapter.sizes.counts().values()) == count


@pytest.mark.parametrize("heads", [4, 2])
def test_the_count_is_the_formula(heads: int) -> None:
    adapter = adapter_of(trunk(heads))
    sizes = adapter.sizes
    formula = 3 * 2 * 2 * heads * 8 + 2 * 32 + (32 * TOLD + TOLD)
    assert sum(p.numel() for p in adapter.parameters()) == sum(sizes.counts().values()) == formula


def test_the_count_of_smollm2() -> None:
    assert sum(Sizes.of(SMOLLM2, 768, 2, 2).counts().values()) == 467_328


def test_first_values_come_from_the_model() -> None:
    model = trunk()
    adapter = adapter_of(model)
    preface = torch.tensor([0, 5, 9])
    adapter.initialise(model, "activations", preface)
    assert adapter.prefix_L2KPD is not None
    assert adapter.image_prompt_NH is not None
    assert torch.equal(adapter.prefix_L2KPD.data, own_states(model, preface))
    small = float(adapter.image_prompt_NH.detach().std())
    adapter.initialise(model, "normal", preface)
    assert small < 0.5 < float(adapter.image_prompt_NH.detach().std())
    assert not torch.equal(adapter.prefix_L2KPD.data, own_states(model, preface))


def test_layers_that_do_not_see_everything_are_refused() -> None:
    sliding = MistralConfig(sliding_window=8)
    with pytest.raises(ConfigError, match=r"language model small \(mistral\) has sliding_attention"):
        language.require_full_attention(sliding, "small")
    mixed = AutoConfig.for_model("gemma2", num_hidden_layers=2)
    with pytest.raises(ConfigError, match="has sliding_attention; every layer must have full_attention"):
        language.require_full_attention(mixed, "small")
    language.require_full_attention(LlamaConfig(vocab_size=WORDS), "small")
