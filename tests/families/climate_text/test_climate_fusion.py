"""Climate in a language model: identity at the start, no leak, padding, generation, what trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from climate_rows import DEPTH, END, PAD, SHAPES, WIDTH, make_batch, make_llm, make_model, open_gates, rows_of
from torch import Tensor, nn

from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.fusion import (
    FusionBlock,
    Projector,
    block_parameters,
    places,
    projector_parameters,
)
from sensorium.families.climate_text.llm import LAYERS
from sensorium.families.climate_text.model import ClimateTextFusion, Decoding
from sensorium.families.climate_text.padding import left_padded, prompt_mask, right_padded

MODES = ("cross_attention", "concatenate", "add")
CLOSE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order, over four layers


def plain(llm: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = llm(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"].long(), use_cache=False
        ).logits
    return found


# --- identity


@pytest.mark.parametrize("architecture", sorted(SHAPES))
@pytest.mark.parametrize("mode", ["cross_attention", "add"])
def test_a_new_model_says_what_its_language_model_says(architecture: str, mode: str) -> None:
    llm, batch = make_llm(architecture), make_batch()
    expected = plain(llm, batch)
    model = make_model(llm, opened=False, fusion_mode=mode)
    with torch.no_grad():
        assert torch.equal(model.logits(batch), expected)
        chosen = model(batch)
    wanted = expected[:, :-1][batch["target_mask"][:, 1:]]  # of the head on targets alone: scaled and capped as well
    torch.testing.assert_close(chosen.logits, wanted, **CLOSE)
    open_gates(model)
    with torch.no_grad():
        assert not torch.allclose(model.logits(batch), expected, atol=1e-3)  # now climate matters


def test_the_table_and_the_tests_know_the_same_architectures() -> None:
    assert set(LAYERS) == set(SHAPES)


@pytest.mark.parametrize("architecture", sorted(SHAPES))
def test_without_its_prefix_a_row_is_plain(architecture: str) -> None:
    llm, batch = make_llm(architecture), make_batch()
    expected, mask = plain(llm, batch), batch["attention_mask"]
    model = make_model(llm, fusion_mode="concatenate")
    with torch.no_grad():
        assert not torch.allclose(model.logits(batch)[mask], expected[mask], atol=1e-2)
        batch["field_given"][:] = False
        torch.testing.assert_close(model.logits(batch)[mask], expected[mask], **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_climate_knows_nothing_of_its_field(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode), make_batch()
    other = {**batch, "climate_tokens": batch["climate_tokens"].flip(-1)}
    with torch.no_grad():
        given = model.logits(batch)
        batch["field_given"][1] = other["field_given"][1] = False
        found, moved = model.logits(batch), model.logits(other)
    torch.testing.assert_close(found[1], moved[1], **CLOSE)
    for one in (given[1], plain(model.llm, batch)[1] if mode != "concatenate" else given[1]):
        assert not torch.allclose(found[1], one, atol=1e-3)
    assert not torch.allclose(found[0], moved[0], atol=1e-3)


@pytest.mark.parametrize("mode", ["cross_attention", "add"])
def test_what_stands_for_a_missing_field_is_learned(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode).train(), make_batch()
    assert model.absent is not None
    model(batch).losses().sum().backward()
    grad = model.absent.token.grad
    assert grad is not None  # ranks need one everywhere
    assert not grad.any()
    batch["field_given"][1] = False
    model(batch).losses().sum().backward()
    assert grad.any()


# --- leaks


def leak(model: ClimateTextFusion, batch: dict[str, Tensor]) -> float:
    """How far logits up to a target token move when that token changes."""
    place = int(batch["target_mask"][0].nonzero()[2])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, place] = (changed["input_ids"][0, place] + 7) % 50
    with torch.no_grad():
        before, after = model.logits(batch), model.logits(changed)
    assert not torch.allclose(before[0, place], after[0, place])
    return float((before[0, :place] - after[0, :place]).abs().max())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resampler", ["none", "perceiver"])
def test_no_target_token_reaches_what_is_before_it(mode: str, resampler: str) -> None:
    model = make_model(fusion_mode=mode, resampler=resampler, resampler_queries=3)
    assert leak(model, make_batch()) == 0


def test_a_climate_that_reads_the_target_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = lambda batch: batch["attention_mask"].bool()  # noqa: E731
    monkeypatch.setattr("sensorium.families.climate_text.model.prompt_mask", everything)
    assert leak(make_model(), make_batch()) > 1e-3


def test_what_stands_behind_a_target_is_no_prompt() -> None:
    batch = make_batch()
    batch["target_mask"][0, 9:] = False  # two more words of a template
    assert prompt_mask(batch)[0].tolist() == [True] * 7 + [False] * 4


# --- padding and company


@pytest.mark.parametrize("mode", MODES)
def test_padding_and_company_change_nothing(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode), make_batch()
    garbage = {**batch, "input_ids": batch["input_ids"].masked_fill(~batch["attention_mask"], 3)}
    mask = batch["attention_mask"]
    with torch.no_grad():
        together = model.logits(batch)
        torch.testing.assert_close(model.logits(garbage)[mask], together[mask], rtol=0, atol=0)
        for row in range(3):
            alone = rows_of(batch, [row])
            torch.testing.assert_close(model.logits(alone)[0], together[row, : alone["input_ids"].shape[1]], **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_climate_tokens_that_do_not_count_change_nothing(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode), make_batch()
    text = batch["attention_mask"]
    more = {
        name: torch.cat([batch[name], torch.full_like(batch[name][:, :2], 9)], 1) for name in batch if "token" in name
    }
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 6:] = False
    padded = {**batch, **more, "token_mask": mask}
    with torch.no_grad():
        expected = model.logits(batch)[text]
        torch.testing.assert_close(model.logits(padded)[text], expected, **CLOSE)
        mask[:, 6:] = True
        assert not torch.allclose(model.logits(padded)[text], expected, atol=1e-2)


# --- losses


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_that_of_all_logits(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode), make_batch()
    with torch.no_grad():
        found, logits = model(batch), model.logits(batch)
    labels = batch["input_ids"].masked_fill(~batch["target_mask"], -100)
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(found.losses().mean(), expected, **CLOSE)
    assert found.labels.tolist().count(END) == 3  # the end is learned, although padding may look like it
    sums = found.per_row(3)
    assert found.rows.bincount().tolist() == [4, 6, 2]
    torch.testing.assert_close(sums.sum() / 12, expected, **CLOSE)


def test_a_row_without_a_target_is_told() -> None:
    batch = make_batch()
    batch["target_mask"][1] = False
    with pytest.raises(DataError, match="no target token"):
        make_model()(batch)


@pytest.mark.parametrize("mode", MODES)
def test_features_are_the_states_before_the_head(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode), make_batch()
    with torch.no_grad():
        hidden, mean = model.features(batch)
        torch.testing.assert_close(model.llm.lm_head(hidden), model.logits(batch), **CLOSE)
    assert mean.shape == (3, WIDTH)
    torch.testing.assert_close(mean[1], hidden[1, :10].mean(dim=0))


# --- the state of a pass


def test_two_models_do_not_mix_and_an_error_leaves_nothing_behind() -> None:
    llm, batch = make_llm(), make_batch()
    first = make_model(llm)
    second = make_model(copy.deepcopy(make_llm()), num_fusion_layers=3)
    with torch.no_grad():
        expected, other = first.logits(batch), second.logits(batch)
        inside: list[Tensor] = []
        handle = llm.model.layers[3].register_forward_hook(lambda *_: inside.append(second.logits(batch)))
        assert torch.equal(first.logits(batch), expected)
        handle.remove()
        assert torch.equal(inside[0], other)
        assert first._holder.running is None
        handle = llm.model.layers[3].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            first.logits(batch)
        handle.remove()
        assert first._holder.running is None
        fresh = make_llm()
        assert torch.equal(plain(llm, batch), plain(fresh, batch))  # outside of a pass it is itself


def test_a_copy_has_its_own_hooks() -> None:
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        expected = model.logits(batch)
        twin = copy.deepcopy(model)
        assert torch.equal(twin.logits(batch), expected)
        for parameter in model.blocks.parameters():
            parameter.zero_()
        assert torch.equal(twin.logits(batch), expected)


# --- generation


def alone_and_plainly(model: ClimateTextFusion, batch: dict[str, Tensor], steps: int) -> list[list[int]]:
    """Greedy text, a row at a time, a whole pass for every word."""
    found = []
    for row in range(len(batch["input_ids"])):
        one = rows_of(batch, [row])
        ids = one["input_ids"][:, prompt_mask(one)[0]]
        words: list[int] = []
        for _ in range(steps):
            length = ids.shape[1]
            target = torch.zeros(1, length, dtype=torch.bool)
            target[:, length - len(words) :] = bool(words)
            given = {**one, "input_ids": ids, "attention_mask": torch.ones_like(target), "target_mask": target}
            word = int(model.logits(given)[0, -1].argmax())
            words.append(word)
            ids = torch.cat([ids, torch.tensor([[word]])], dim=1)
            if word == END:
                break
        found.append(words)
    return found


def trimmed(ids: Tensor) -> list[list[int]]:
    rows = []
    for row in ids.tolist():
        end = row.index(END) + 1 if END in row else len(row)
        assert all(word == PAD for word in row[end:])
        rows.append(row[:end])
    return rows


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM", "GPTNeoXForCausalLM"]
)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_text_is_the_same_however_it_is_made(architecture: str, mode: str) -> None:
    model, batch = make_model(make_llm(architecture), fusion_mode=mode), make_batch()
    model.llm.generation_config.do_sample = True  # as published models have it; nothing is drawn here
    expected = alone_and_plainly(model, batch, 8)
    for cache in (True, False):
        found = model.generate(batch, Decoding(END, PAD, 8, cache=cache))
        assert trimmed(found) == expected
    for row in range(3):
        assert trimmed(model.generate(rows_of(batch, [row]), Decoding(END, PAD, 8))) == [expected[row]]
    dropped = {**batch, "field_given": torch.zeros(3, dtype=torch.bool)}
    assert trimmed(model.generate(dropped, Decoding(END, PAD, 8))) != expected  # climate did matter


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_beams_are_the_same_with_and_without_cache_and_alone(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode), make_batch()
    found = trimmed(model.generate(batch, Decoding(END, PAD, 8, beams=3)))
    assert found == trimmed(model.generate(batch, Decoding(END, PAD, 8, beams=3, cache=False)))
    for row in range(3):
        alone = model.generate(rows_of(batch, [row]), Decoding(END, PAD, 8, beams=3))
        assert trimmed(alone) == [found[row]]


@torch.no_grad()
def test_a_generated_text_is_that_of_its_own_climate() -> None:
    model, batch = make_model(), make_batch()
    found = trimmed(model.generate(batch, Decoding(END, PAD, 8, beams=2)))
    other = {**batch, "climate_tokens": batch["climate_tokens"].roll(1, 0)}
    assert trimmed(model.generate(other, Decoding(END, PAD, 8, beams=2))) != found


def test_prompts_are_moved_to_the_right_end() -> None:
    ids, keep = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    moved, mask = left_padded(ids, keep, 0)
    assert moved.tolist() == [[1, 2, 3], [0, 0, 5]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    moved, mask = right_padded(ids, ~keep, 0)
    assert moved.tolist() == [[4, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[True, False, False], [True] * 3]


# --- what trains


@pytest.mark.parametrize("mode", MODES)
def test_frozen_parts_stay_and_everything_else_learns(mode: str) -> None:
    model, batch = make_model(fusion_mode=mode, resampler="perceiver").train(), make_batch()
    batch["field_given"][2] = False
    assert not model.llm.training
    assert model.projector.training
    before = copy.deepcopy(model.llm.state_dict())
    model(batch).losses().mean().backward()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {name for name, p in model.named_parameters() if not name.startswith("llm.")}
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert all(p.grad is None for p in model.llm.parameters())
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.llm.state_dict().items())
    own = {name for name in model.state_dict() if name not in dict(model.named_parameters())}
    assert own == set()  # nothing but parameters would go into a checkpoint


def test_layers_below_the_first_block_of_a_frozen_model_build_no_graph() -> None:
    model, batch = make_model(num_fusion_layers=1).train(), make_batch()
    seen: list[bool] = []
    for layer in model.llm.model.layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    model(batch)
    assert seen == [False] * 2 + [True] * 2


def test_a_language_model_that_trains_is_in_train_mode() -> None:
    model, batch = make_model(freeze_llm=False).train(), make_batch()
    assert model.llm.training
    model(batch).losses().mean().backward()
    assert all(p.grad is not None for p in model.llm.parameters())


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("LlamaForCausalLM", ("q_proj", "v_proj")), ("GPT2LMHeadModel", ("c_attn",)), ("GPTNeoXForCausalLM", ("dense",))],
)
def test_lora_begins_as_nothing_and_learns(architecture: str, targets: tuple[str, ...]) -> None:
    llm, batch = make_llm(architecture), make_batch()
    expected = plain(llm, batch)
    lora = {"rank": 2, "alpha": 8, "targets": targets}
    model = make_model(llm, opened=False, lora=lora).train()
    assert torch.equal(model.logits(batch), expected)
    assert model.lora is not None
    assert len(model.lora) == DEPTH * len(targets)
    model(batch).losses().mean().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.lora.named_parameters() if n.endswith("up"))
    layer = next(iter(model.lora))
    with torch.no_grad():
        model.lora[layer].up.normal_()
        x = torch.randn(2, model.lora[layer].down.shape[1])
        module = llm.get_submodule(layer.replace("/", "."))
        update = model.lora[layer].weight() @ x[0] * (8 / 2)
        alone = module.forward(x)
        torch.testing.assert_close(module(x)[0], alone[0] + update, **CLOSE)


def test_lora_names_the_layers_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"q_proj is no linear layer of this model; it has c_attn, c_fc, c_proj"):
        make_model(make_llm("GPT2LMHeadModel"), lora={"rank": 2})


# --- checkpointing of activations


def count_calls(modules: list[nn.Module]) -> list[int]:
    """How often each is begun, from now on: the second pass ends as soon as it has what it needs."""
    calls = [0] * len(modules)
    for number, module in enumerate(modules):
        module.register_forward_pre_hook(lambda *_, n=number: calls.__setitem__(n, calls[n] + 1))
    return calls


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_changes_no_gradient(mode: str, frozen: bool) -> None:
    batch, found = make_batch(), {}
    for chosen in ("none", "all", "every_2"):
        model = make_model(
            make_llm(),
            fusion_mode=mode,
            freeze_llm=frozen,
            gradient_checkpointing=True,
            activation_checkpointing=chosen,
            lora={"rank": 2} if frozen else {},
        ).train()
        calls = count_calls([layer.mlp for layer in model.llm.model.layers])
        blocks = count_calls([block.text_mlp for block in model.blocks])
        model(batch).losses().mean().backward()
        again = {"none": [1] * 4, "all": [2] * 4, "every_2": [2, 1, 2, 1]}[chosen]
        assert calls == again
        assert blocks == again[: len(blocks)]
        found[chosen] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    for chosen in ("all", "every_2"):
        for name, gradient in found["none"].items():
            torch.testing.assert_close(found[chosen][name], gradient, rtol=0, atol=1e-6)


# --- other objectives


def test_a_target_is_read_without_prompt_and_climate() -> None:
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        found = model.target_vectors(batch)
        for row, (first, end) in enumerate(((7, 11), (4, 10), (9, 11))):
            hidden = model.llm.base_model(batch["input_ids"][row : row + 1, first:end]).last_hidden_state
            torch.testing.assert_close(found[row], hidden[0].mean(dim=0), **CLOSE)


def test_the_contrastive_loss_knows_groups_and_rows_without_a_field() -> None:
    model, batch = make_model(contrastive_weight=0.5).train(), make_batch()
    found = model(batch).contrast
    assert found is not None
    climate = nn.functional.normalize(model.climate(batch)[0].mean(dim=1), dim=-1)
    assert model.contrast is not None
    text = nn.functional.normalize(model.contrast.to_text(model.target_vectors(batch)), dim=-1)
    logits = climate @ text.T / 0.07
    labels = torch.arange(3)
    both = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(found, both, **CLOSE)
    same = model({**batch, "groups": torch.tensor([4, 4, 9])}).contrast
    assert same is not None
    assert not torch.isclose(same, found)
    batch = {**batch, "field_given": torch.tensor([True, True, False])}
    fewer = model(batch).contrast
    two = {name: value[:2] for name, value in batch.items()}
    torch.testing.assert_close(fewer, model(two).contrast, **CLOSE)
    found.backward()
    assert model.projector.inner.weight.grad is not None
    assert make_model()(make_batch()).contrast is None


def test_the_published_regression_is_that_of_two_means() -> None:
    model, batch = make_model().train(), make_batch()
    losses = model.regression(batch)
    assert losses.shape == (3,)
    hidden, _ = model.features(batch)
    expected = (hidden[1, :4].mean(dim=0) - model.target_vectors(batch)[1]).square().mean()
    torch.testing.assert_close(losses[1], expected, **CLOSE)
    losses.mean().backward()
    assert model.blocks[0].text_gate.gain.grad is not None


def test_attention_says_where_the_answer_looked() -> None:
    model, batch = make_model(), make_batch()
    batch["token_mask"] = torch.ones(3, 6, dtype=torch.bool)
    batch["token_mask"][0, 4:] = False
    found = model.attention(batch)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    assert found[0, 4:].tolist() == [0.0, 0.0]
    block, seen = model.blocks[1].text_reads, []
    handle = block.register_forward_hook(lambda module, given, output: seen.append(given))
    with torch.no_grad():
        model.logits(batch)
        x, keys = seen[0]
        shares = block.shares(x, keys)
        one_head = copy.deepcopy(block)  # with equal heads the mean of the shares gives the update itself
        one_head.heads = 1
        keys = one_head.keys(model.climate(batch)[0], batch["token_mask"])
        exact = one_head.out(one_head.shares(x, keys) @ keys.v[:, 0])
        torch.testing.assert_close(one_head(x, keys), exact, **CLOSE)
    handle.remove()
    assert shares.shape == (3, 11, 6)
    with pytest.raises(ConfigError, match="fusion_mode add has no attention"):
        make_model(fusion_mode="add").attention(batch)


# --- sizes


def test_blocks_stand_evenly_and_never_before_the_first_layer() -> None:
    assert places(32, 4) == (6, 13, 19, 26)
    assert places(4, 3) == (1, 2, 3)
    assert places(30, 4) == (6, 12, 18, 24)
    for depth in range(2, 60):
        for count in range(1, min(depth, 65)):
            found = places(depth, count)
            assert len(set(found)) == count
            assert 1 <= min(found) <= max(found) < depth
    with pytest.raises(ConfigError, match="4 layers, with room for 3 blocks"):
        places(4, 4)


def test_parameters_are_as_many_as_the_formula_says() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert count(FusionBlock(48, 16, 4, 0.0)) == block_parameters(48, 16)
        assert count(Projector(20, 16)) == projector_parameters(20, 16)
    assert block_parameters(4096, 1024) == pytest.approx(42.0e6, rel=1e-3)
    whole = 4 * block_parameters(4096, 1024) + projector_parameters(2560, 1024)
    assert whole == pytest.approx(171e6, rel=5e-3)
