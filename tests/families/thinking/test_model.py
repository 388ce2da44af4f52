"""The memory of `thinking`: its size to the unit, what a read-out may depend on, and what it must depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from rows import FACTS, SMALL, build, changed, make, moved, only, pick, without
from torch import Tensor, nn

from sensorium import config as configuration
from sensorium.data.items import MODALITIES
from sensorium.engine.contract import Batch
from sensorium.errors import ConfigError, DataError
from sensorium.families.thinking.config import ModelConfig, Weights
from sensorium.families.thinking.model import EncoderFacts, Pass, SlotModel
from sensorium.families.thinking.task import ThinkingTask

DEFAULT_ENCODERS = {
    "text": EncoderFacts(384, 384, False, [0.0] * 384),
    "image": EncoderFacts(768, 512, True, [0.0] * 512),
    "audio": EncoderFacts(384, 384, False, [0.0] * 384),
}
EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def size(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_default_model_has_its_size_to_the_unit() -> None:
    with torch.device("meta"):
        task = ThinkingTask(ModelConfig(weights=Weights(match=0.2)), DEFAULT_ENCODERS, 0)
        guide = ThinkingTask(ModelConfig(), DEFAULT_ENCODERS, 0)
    model = task.model
    assert isinstance(model, SlotModel)
    vector = size(model.adapters["image"].vector)
    found = {
        "text adapter": size(model.adapters["text"]),
        "image adapter": size(model.adapters["image"]) - vector,
        "audio adapter": size(model.adapters["audio"]),
        "image vector token": vector,
        "aggregator": size(model.aggregator),
        "walker": size(model.walker),
        "read-out": size(model.read_out),
        "core": size(model),
        "reconstruct": size(task.reconstruct),
        "match": size(task.match),
        "temperatures": size(task.temperatures),
        "total": size(task),
        "guide": size(guide),
    }
    assert found == {
        "text adapter": 740_736,
        "image adapter": 888_960,
        "audio adapter": 740_736,
        "image vector token": 198_016,
        "aggregator": 3_574_272,
        "walker": 4_143_744,
        "read-out": 444_672,
        "core": 10_731_136,
        "reconstruct": 936_320,
        "match": 148_225,
        "temperatures": 3,
        "total": 11_815_684,
        "guide": 11_667_459,
    }


def test_what_is_not_trained_is_not_built() -> None:
    task = build(changed(weights=Weights(align=1.0, recon=0.0, match=0.0), think_steps=0), ("text", "image"))
    assert isinstance(task.model, SlotModel)
    assert (task.reconstruct, task.match, task.model.walker) == (None, None, None)
    assert set(task.model.adapters) == {"text", "image"}
    assert set(task.temperatures) == {"text-image"}
    with pytest.raises(ConfigError, match=r"model\.weights\.match above 0"):
        task.match_score(make(2))
    with pytest.raises(ConfigError, match="think_steps must be 0"):
        task.embed(make(2), think_steps=1)


def test_configuration_is_checked_across_fields() -> None:
    with pytest.raises(ConfigError, match=r"model\.heads must divide model\.width"):
        configuration.build(ModelConfig, {"width": 100})
    with pytest.raises(ConfigError, match="has no walker to train"):
        configuration.build(ModelConfig, {"think_steps": 0, "think_steps_max": 4})
    with pytest.raises(ConfigError, match="at least two"):
        build(SMALL, ("text",))


# --- what a unimodal read-out must not depend on


def leaks(task: ThinkingTask, row: int = 1) -> Iterator[str]:
    """Read-outs of a row that change, by a single bit, when another modality of that row changes or goes."""
    batch = make()
    before = task.embed(batch)
    for other in MODALITIES:
        replaced = {name: tensor.clone() for name, tensor in batch.items()}
        for part in ("tokens", "pooled"):
            replaced[f"{other}_{part}"][row] = replaced[f"{other}_{part}"][0]
        replaced[f"{other}_mask"][row] = replaced[f"{other}_mask"][0]
        for change, altered in (("changed", replaced), ("removed", without(batch, row, other))):
            after = task.embed(altered)
            yield from (f"{m}: {other} {change}" for m in MODALITIES if m != other and not after[m].equal(before[m]))


VARIANTS: Sequence[ModelConfig] = (
    SMALL,
    changed(slot_competition=True),
    changed(pooled_tokens=True, floor=True, read_width=24),
    changed(kind="probe"),
    changed(kind="mlp"),
)


@pytest.mark.parametrize("config", VARIANTS, ids=("slots", "competition", "floor", "probe", "mlp"))
@torch.no_grad()
def test_no_modality_leaks_into_another(config: ModelConfig) -> None:
    assert list(leaks(moved(build(config)))) == []


@torch.no_grad()
def test_the_leak_test_finds_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose text pass also sees the picture: the joint memory against its own inputs."""
    honest = SlotModel.read

    def leaky(model: SlotModel, features: Mapping, passes: Sequence[Pass], steps: int) -> list[Tensor]:
        image = next(one.keep["image"] for one in passes if set(one.keep) == {"image"})
        seen = [Pass({**one.keep, "image": image}) if set(one.keep) == {"text"} else one for one in passes]
        return honest(model, features, seen, steps)

    monkeypatch.setattr(SlotModel, "read", leaky)
    assert list(leaks(moved(build()))) == ["text: image changed", "text: image removed"]


@torch.no_grad()
def test_a_subset_equals_a_batch_that_holds_nothing_else() -> None:
    task, batch = moved(build()), make()
    images = only(batch, ("image",))
    torch.testing.assert_close(task.embed(batch)["image"], task.embed(images)["image"], **CLOSE)
    torch.testing.assert_close(task.embed_joint(batch, ("image",)), task.embed(batch)["image"], **CLOSE)
    pair = task.embed_joint(batch, ("text", "audio"))
    torch.testing.assert_close(pair, task.embed_joint(only(batch, ("text", "audio"))), **CLOSE)
    assert (pair - task.embed_joint(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("config", VARIANTS, ids=("slots", "competition", "floor", "probe", "mlp"))
@torch.no_grad()
def test_a_row_depends_on_itself_alone(config: ModelConfig) -> None:
    task, batch = moved(build(config)), make(8)
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    whole, shuffled, few = task.embed(batch), task.embed(pick(batch, order)), task.embed(pick(batch, [5, 2]))
    for modality, vectors in whole.items():
        torch.testing.assert_close(shuffled[modality], vectors[order], **CLOSE)
        torch.testing.assert_close(few[modality], vectors[[5, 2]], **CLOSE)
        assert (vectors[5] - vectors[2]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    task, batch = moved(build()), make()
    longer = dict(batch)
    for modality in MODALITIES:
        tokens, mask = batch[f"{modality}_tokens"], batch[f"{modality}_mask"]
        pads = torch.full((len(tokens), 4, tokens.shape[-1]), 3.0)  # padding need not be zero
        longer[f"{modality}_tokens"] = torch.cat([torch.where(mask[..., None], tokens, -2.0), pads], dim=1)
        longer[f"{modality}_mask"] = torch.cat([mask, torch.zeros(len(mask), 4, dtype=torch.bool)], dim=1)
    for modality, vectors in task.embed(batch).items():
        torch.testing.assert_close(task.embed(longer)[modality], vectors, **CLOSE)
    longer["text_mask"] = torch.ones_like(longer["text_mask"])
    assert (task.embed(longer)["text"] - task.embed(batch)["text"]).abs().max() > 1e-3


# --- thinking steps


@torch.no_grad()
def test_no_thinking_reads_the_aggregator() -> None:
    task, batch = moved(build()), make(modalities=("text",))
    model = task.model
    assert isinstance(model, SlotModel)
    x, mask = model.adapters["text"](batch["text_tokens"], batch["text_mask"], batch["text_pooled"])
    read = model.read_out(model.aggregator([model.aggregator.cross.keys(x, mask)]))
    expected = nn.functional.normalize(read, dim=-1)
    torch.testing.assert_close(task.embed(batch, think_steps=0)["text"], expected, **EXACT)
    assert (task.embed(batch, think_steps=1)["text"] - expected).abs().max() > 1e-3


@torch.no_grad()
def test_without_layer_scale_thinking_changes_nothing() -> None:
    batch = make()
    still, thinking = build(changed(layer_scale=0.0)), build(SMALL)
    for modality in MODALITIES:
        assert still.embed(batch, think_steps=3)[modality].equal(still.embed(batch, think_steps=0)[modality])
        assert not thinking.embed(batch, think_steps=3)[modality].equal(thinking.embed(batch, 0)[modality])


def test_the_number_of_steps_comes_from_seed_and_step() -> None:
    task = build(changed(think_steps_max=4))

    def drawn(task: ThinkingTask) -> list[float]:
        return [float(task({**make(2), "step": torch.tensor(step)}).logs["think_steps"]) for step in range(16)]

    first = drawn(task)
    assert set(first) == {1, 2, 3, 4}
    torch.manual_seed(99)
    assert drawn(task) == first
    assert drawn(build(changed(think_steps_max=4), seed=1)) != first
    assert set(drawn(build())) == {SMALL.think_steps}
    assert set(drawn(task.eval())) == {SMALL.think_steps}


# --- what must have an effect


@torch.no_grad()
def test_samples_differ_from_the_first_step() -> None:
    """No gate that starts at zero stands between tokens and read-out."""
    for modality, vectors in build().embed(make()).items():
        similar = vectors @ vectors.T - 2 * torch.eye(len(vectors))
        assert similar.max() < 0.999, modality


@torch.no_grad()
def test_every_norm_has_an_effect() -> None:
    task, batch = moved(build(changed(pooled_tokens=True))), make()
    before = task.embed(batch)
    norms = [(name, module) for name, module in task.named_modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 19
    for name, norm in norms:
        norm.weight[::2] += 0.5
        after = task.embed(batch)
        assert any((after[m] - before[m]).abs().max() > 1e-4 for m in before), name
        norm.weight[::2] -= 0.5


@torch.no_grad()
def test_folding_the_first_norm_into_the_linear_changes_nothing() -> None:
    entrance = moved(build()).model.adapters["image"].tokens
    x = make()["image_tokens"]
    torch.testing.assert_close(entrance(x), entrance.linear(entrance.norm(x)), **CLOSE)


@torch.no_grad()
def test_the_read_out_may_have_a_width_of_its_own() -> None:
    for kind in ("slots", "probe", "mlp"):
        task = build(changed(kind=kind, read_width=24))
        assert {vectors.shape for vectors in task.embed(make()).values()} == {(6, 24)}
        assert task.embed_joint(make()).shape == (6, 24)
        assert torch.isfinite(task(make()).loss)


@torch.no_grad()
def test_dropout_is_for_training_only() -> None:
    task, batch = build(changed(dropout=0.5)), make()
    assert not task.embed(batch)["text"].equal(task.embed(batch)["text"])
    task.eval()
    assert task.embed(batch)["text"].equal(task.embed(batch)["text"])


@torch.no_grad()
def test_with_a_floor_the_read_out_contains_a_linear_head() -> None:
    task, batch = moved(build(changed(floor=True))), make()
    task.model.read_out.out.weight.zero_()
    task.model.read_out.out.bias.zero_()
    for modality, vectors in task.embed(batch).items():
        head = task.model.floors[modality](batch[f"{modality}_pooled"], task.model.means[modality])
        torch.testing.assert_close(vectors, nn.functional.normalize(head, dim=-1), **CLOSE)


# --- rows that lack something


@pytest.mark.parametrize("config", VARIANTS, ids=("slots", "competition", "floor", "probe", "mlp"))
def test_a_missing_modality_is_zeros_and_never_nan(config: ModelConfig) -> None:
    task = moved(build(config))
    batch = without(without(without(make(), 1, "audio"), 2, "audio"), 2, "image")
    vectors = task.embed(batch)
    assert not vectors["audio"][[1, 2]].any()
    assert not vectors["image"][2].any()
    for modality in MODALITIES:
        lengths = vectors[modality].norm(dim=-1)[batch["has"][:, MODALITIES.index(modality)]]
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
    output = task(batch)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


def bad_batches() -> Iterator[tuple[Batch, str]]:
    batch = make()
    nothing = without(without(without(batch, 3, "text"), 3, "image"), 3, "audio")
    nothing["index"] += 40
    yield nothing, r"sample 43 \(1 in this batch\) holds none of: text, image, audio"
    empty = {name: tensor.clone() for name, tensor in batch.items()}
    empty["text_mask"][2] = False
    yield empty, r"sample 2 \(1 in this batch\)"
    yield {**batch, "text_tokens": torch.zeros(6, 5, 13)}, "text tokens have width 13; this model was built for 12"
    yield {**batch, "image_pooled": torch.zeros(6, 11)}, "image pooled have width 11; this model was built for 10"
    yield {name: tensor for name, tensor in batch.items() if "_" not in name}, "the batch holds none of"


@pytest.mark.parametrize(("batch", "message"), list(bad_batches()))
def test_what_cannot_be_encoded_is_said(batch: Batch, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build()(batch)


def test_a_query_must_hold_what_is_asked_for() -> None:
    batch = without(make(), 4, "text")
    with pytest.raises(DataError, match=r"sample 4 .* holds none of: text"):
        build().embed_joint(batch, ("text",))
    assert build().embed_joint(batch, ("text", "image")).shape == (6, SMALL.width)


def test_means_move_with_the_model_and_are_not_weights() -> None:
    task = build()
    assert not any("means" in name for name in task.state_dict())
    assert task.model.means["text"].tolist() == pytest.approx(FACTS["text"].mean)
    assert task.to(torch.float64).model.means["text"].dtype == torch.float64
