"""What `thinking` learns from: alignment with several positives, reconstruction, matching; on one and two processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rows import SMALL, build, changed, gradients, in_two_processes, make, moved, only, pick, without
from torch import Tensor, distributed, nn

from sensorium.data.items import MODALITIES
from sensorium.engine.contract import Batch
from sensorium.errors import DataError
from sensorium.families.thinking import losses
from sensorium.families.thinking.config import Weights
from sensorium.families.thinking.task import ThinkingTask, after_step, at_chance
from sensorium.parts.contrastive import Side, Temperature, align, hard_negatives, infonce, sigmoid

ALIGN_ONLY = Weights(align=1.0, recon=0.0, match=0.0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sides(a: Tensor, b: Tensor, groups: list[int], present: list[bool] | None = None) -> tuple[Side, Side]:
    there = torch.tensor(present or [True] * len(groups))
    return Side(a, torch.tensor(groups), there), Side(b, torch.tensor(groups), there)


# --- alignment


def test_unique_groups_give_plain_cross_entropy() -> None:
    a, b, scale = unit(5, 8), unit(5, 8, seed=1), torch.tensor(14.0)
    labels = torch.arange(5)
    expected = (nn.functional.cross_entropy(scale * a @ b.T, labels) + nn.functional.cross_entropy(scale * b @ a.T, labels)) / 2  # fmt: skip  # noqa: E501
    pair = sides(a, b, [4, 0, 3, 9, 7])
    torch.testing.assert_close(align(pair, pair, Temperature(14.0)), expected)


def test_four_rows_with_two_of_one_group() -> None:
    """By hand: similarities are 1 on the diagonal, 0 elsewhere, scale ln 2, rows 0 and 1 are of one group.

    Each row's exponentials are 2, 1, 1, 1 (sum 5). Rows 0 and 1 want one half each on 2/5 and 1/5, rows 2 and 3
    want 2/5.
    """
    eye = torch.eye(4)
    a, b = sides(eye, eye, [0, 0, 1, 2])
    shared, single = (math.log(5 / 2) + math.log(5)) / 2, math.log(5 / 2)
    expected = torch.tensor([shared, shared, single, single])
    torch.testing.assert_close(infonce(a, b, torch.tensor(math.log(2))), expected)
    torch.testing.assert_close(align((a, b), (a, b), Temperature(math.log(2))), expected.mean())
    diagonal, other = sides(eye, eye, [0, 1, 2, 3])
    assert infonce(diagonal, other, torch.tensor(math.log(2)))[0] < shared


def test_two_captions_of_one_picture_are_not_each_others_negatives() -> None:
    """Pushing two rows of one group apart is no gain: the loss is smallest when they are equal."""
    first, second = torch.eye(4)[0], torch.eye(4)[1]
    together = torch.stack([first, first, second])
    apart = torch.stack([first, torch.eye(4)[2], second])
    for groups, better in (([0, 0, 1], together), ([0, 1, 2], apart)):
        found = []
        for vectors in (together, apart):
            pair = sides(vectors, vectors, groups)
            found.append(float(align(pair, pair, Temperature(10.0)).detach()))
        assert found[better is apart] == min(found)


def test_sigmoid_loss_by_hand() -> None:
    """Two rows, similarities 1 and 0, scale 2, bias -1: logits 1 for true pairs and -1 for false ones."""
    a, b = sides(torch.eye(2), torch.eye(2), [0, 1])
    one = math.log1p(math.exp(-1))
    found = sigmoid(a, b, torch.tensor(2.0), torch.tensor(-1.0))
    torch.testing.assert_close(found, torch.tensor([2 * one, 2 * one]))
    torch.testing.assert_close(align((a, b), (a, b), Temperature(2.0, -1.0)), torch.tensor(2 * one))
    a, b = sides(torch.eye(2), torch.eye(2), [0, 0])
    torch.testing.assert_close(
        sigmoid(a, b, torch.tensor(2.0), torch.tensor(-1.0)), torch.tensor([one + math.log1p(math.e)] * 2)
    )


@pytest.mark.parametrize("bias", [None, -10.0])
def test_rows_that_lack_a_modality_are_left_out_exactly(bias: float | None) -> None:
    a, b = unit(6, 8), unit(6, 8, seed=1)
    keep, groups = [0, 2, 3, 5], [0, 1, 0, 2, 1, 3]
    whole = sides(a, b, groups, [i in keep for i in range(6)])
    part = sides(a[keep], b[keep], [groups[i] for i in keep])
    temperature = Temperature(10.0, bias)
    torch.testing.assert_close(align(whole, whole, temperature), align(part, part, temperature))
    nobody = sides(a, b, groups, [False] * 6)
    assert float(align(nobody, nobody, temperature).detach()) == 0.0


def test_temperature_has_a_limit_and_comes_back_from_it() -> None:
    task = build()
    temperature = task.temperatures["text-image"]
    with torch.no_grad():
        temperature.log_scale.fill_(6.0)
    assert float(temperature.scale().detach()) == pytest.approx(100.0)
    assert torch.autograd.grad(temperature.scale(), temperature.log_scale)[0] == 0  # stuck, without the clamp
    after_step(task, 0)
    assert torch.autograd.grad(temperature.scale(), temperature.log_scale)[0] > 0
    assert float(Temperature(1 / 0.07).scale().detach()) == pytest.approx(1 / 0.07)


def test_pairs_of_modalities_are_averaged_over_those_that_occur() -> None:
    task, batch = build(changed(weights=ALIGN_ONLY)), make()
    for row in range(6):
        batch = without(batch, row, "audio")
    with_audio, never_had = task(batch), build(changed(weights=ALIGN_ONLY))(only(batch, ("text", "image")))
    torch.testing.assert_close(with_audio.loss, never_had.loss)
    assert float(with_audio.logs["align/text-audio"]) == 0.0
    assert float(with_audio.logs["align_chance"]) == pytest.approx(math.log(6))
    with pytest.raises(DataError, match="nothing to align"):
        task(only(make(), ("text",)))


def test_the_first_loss_is_not_the_constant_of_a_model_that_sees_nothing() -> None:
    task = build(SMALL.model_copy(update={"weights": Weights(align=0.6, recon=0.4)}))
    constant = 0.6 * math.log(6) + 0.4
    assert abs(float(task(make()).loss.detach()) - constant) > 1e-2


# --- reconstruction


def test_a_constant_answer_does_not_reconstruct() -> None:
    """Targets share a large common part, as pooled features do; the best constant is then their mean direction."""
    generator = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(16, generator=generator)
    pooled = common + torch.randn(4000, 16, generator=generator)

    def best_constant(targets: Tensor) -> float:
        answer = nn.functional.normalize(targets, dim=-1).mean(dim=0)
        return float((1 - nn.functional.cosine_similarity(answer[None], targets)).mean())

    assert best_constant(pooled - pooled.mean(dim=0)) >= 0.9
    assert best_constant(pooled) < 0.1  # what centring is for


def test_reconstruction_sees_everything_but_its_target() -> None:
    """With two modalities from the other one's read-out, with three from the joint read-out of the other two."""
    for modalities in (("text", "image"), MODALITIES):
        task = moved(build(changed(weights=Weights(align=1.0, recon=1.0)), modalities)).eval()
        batch = make(modalities=modalities)
        assert task.reconstruct is not None
        left_out = losses.leave_one_out(torch.ones(6, len(modalities), dtype=torch.bool), 0)
        entries = []
        for i, m in enumerate(modalities):
            z = task.embed_joint(batch, [other for other in modalities if other != m])
            target = batch[f"{m}_pooled"] - task.model.means[m]
            loss = 1 - nn.functional.cosine_similarity(task.reconstruct(z, m), target)
            entries.append(loss if len(modalities) == 2 else loss[left_out == i])
        torch.testing.assert_close(task(batch).logs["recon"], torch.cat(entries).mean().detach())


def test_no_gradient_reaches_a_target() -> None:
    task = build(changed(weights=Weights(align=1.0, recon=1.0), vector_tokens=False))
    batch = make()
    for modality in MODALITIES:
        batch[f"{modality}_pooled"].requires_grad_()
    task(batch).loss.backward()
    assert all(batch[f"{m}_pooled"].grad is None for m in MODALITIES)
    with_vector = build(changed(weights=Weights(align=1.0, recon=1.0)))
    with_vector(batch).loss.backward()
    assert batch["image_pooled"].grad is not None  # an input; so the test above can fail


def test_rows_take_turns_at_leaving_out() -> None:
    present = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    assert losses.leave_one_out(present, 0).tolist() == [0, 1, 2, 2, 0, -1]
    assert losses.leave_one_out(present, 1).tolist() == [1, 2, 0, 0, 2, -1]


# --- matching


def test_hard_negatives_are_near_and_never_of_the_same_group() -> None:
    similarity = torch.tensor([[1.0, 0.9, 0.1, 0.5], [0.9, 1.0, 0.2, 0.4]])
    allowed = torch.tensor([[False, False, True, True], [False] * 4])
    index, found = hard_negatives(similarity, allowed, 10.0, sample=False)
    assert index[0] == 3
    assert found.tolist() == [True, False]
    torch.manual_seed(0)
    drawn = torch.stack([hard_negatives(similarity, allowed, 10.0, sample=True)[0][0] for _ in range(2000)])
    share = 1 / (1 + math.exp(-4))  # softmax of 10 * (0.5, 0.1)
    assert float((drawn == 3).float().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))
    assert set(drawn.tolist()) == {2, 3}


def test_pairs_differ_in_one_modality_from_another_group() -> None:
    batch = without(make(8), 3, "audio")
    batch = without(without(batch, 5, "audio"), 5, "image")
    batch["group"] = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    z = build().embed(batch)
    left_out = losses.leave_one_out(batch["has"], 0)
    for sample in (True, False):
        torch.manual_seed(3)
        pairs = losses.draw_pairs(z, batch["has"], left_out, batch["group"], sample)
        assert pairs.read.rows is not None
        assert pairs.used.tolist() == [True] * 5 + [False] + [True] * 2
        for row in range(8):
            shown = [m for m in MODALITIES if pairs.read.keep[m][row]]
            assert shown == [m for m in MODALITIES if pairs.read.keep[m][8 + row]]
            assert all(pairs.read.rows[m][row] == row for m in MODALITIES)
            taken = {m: int(pairs.read.rows[m][8 + row]) for m in MODALITIES}
            moved_ones = [m for m in MODALITIES if taken[m] != row]
            if pairs.used[row]:
                assert len(shown) == 2
                assert len(moved_ones) == 1
                assert moved_ones[0] in shown
                other = taken[moved_ones[0]]
                assert batch["group"][other] != batch["group"][row]
                assert batch["has"][other, MODALITIES.index(moved_ones[0])]


def test_a_batch_of_one_group_has_no_pairs_to_match() -> None:
    batch = make()
    batch["group"] = torch.zeros(6, dtype=torch.int64)
    assert float(build()(batch).logs["match"]) == 0.0


def test_the_match_head_learns_which_belong_together() -> None:
    task = build(changed(weights=Weights(align=1.0, recon=0.0, match=1.0)), ("text", "image"))
    batch = make(12, modalities=("text", "image"))
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        task(batch).loss.backward()
        optimizer.step()
    task.eval()
    text = {name: tensor.roll(1, 0) if name.startswith("text") else tensor for name, tensor in batch.items()}
    with torch.no_grad():
        assert task.match_score(batch).mean() > task.match_score(text).mean() + 2


# --- the task as a whole


KINDS = (
    SMALL,
    changed(loss="sigmoid"),
    changed(floor=True, pooled_tokens=True, slot_competition=True, read_width=24),
    changed(think_steps=0, weights=ALIGN_ONLY),
    changed(kind="probe"),
    changed(kind="mlp"),
)


@pytest.mark.parametrize("config", KINDS, ids=("slots", "sigmoid", "floor", "K0", "probe", "mlp"))
@pytest.mark.parametrize("modalities", [MODALITIES, ("text", "image"), ("image", "audio")])
def test_no_parameter_is_dead_at_the_second_step(config: object, modalities: tuple) -> None:
    task, batch = build(config, modalities), make(modalities=modalities)
    optimizer = torch.optim.AdamW(task.parameters(), 1e-3)
    task(batch).loss.backward()
    optimizer.step()
    found = gradients(task, batch)
    assert [name for name, _ in task.named_parameters() if name not in found or not found[name].any()] == []


def test_the_dead_parameter_test_finds_one() -> None:
    task = build()
    task.model.read_out.out.weight.requires_grad_(False).zero_()  # a gate at zero on the only path
    found = gradients(task, make())
    assert not found["model.aggregator.slots"].any()


@pytest.mark.parametrize("config", KINDS, ids=("slots", "sigmoid", "floor", "K0", "probe", "mlp"))
def test_losses_are_float32_under_autocast(config: object) -> None:
    task, batch = build(config), make()
    with torch.autocast("cpu", torch.bfloat16):
        output = task(batch)
        vectors = task.embed(batch)
        joint = task.embed_joint(batch)
    assert {t.dtype for t in (output.loss, *output.logs.values(), *vectors.values(), joint)} == {torch.float32}
    torch.testing.assert_close(output.loss, task(batch).loss, rtol=0.1, atol=0.0)  # bf16 has 8 bits
    a, b = sides(unit(4, 8).bfloat16(), unit(4, 8, seed=1).bfloat16(), [0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        assert infonce(a, b, torch.tensor(10.0)).dtype == torch.float32


def test_the_nearest_negative_is_found_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    z = {m: nn.functional.normalize(1 + 0.01 * torch.randn(32, 16), dim=1) for m in ("text", "image")}
    given = (torch.ones(32, 2, dtype=torch.bool), torch.zeros(32), torch.arange(32), False)
    expected = losses.draw_pairs(z, *given).read.rows
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.draw_pairs(z, *given).read.rows
    coarse = losses.draw_pairs({m: e.bfloat16().float() for m, e in z.items()}, *given).read.rows
    assert expected is not None
    assert found is not None
    assert coarse is not None
    assert all(found[m].equal(rows) for m, rows in expected.items())
    assert not all(coarse[m].equal(rows) for m, rows in expected.items())


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_a_collapsed_model_is_at_chance_and_a_trained_one_is_not(loss: str) -> None:
    config = changed(loss=loss, weights=ALIGN_ONLY)
    task, batch = build(config, ("text", "image")), make(16, modalities=("text", "image"))
    with torch.no_grad():  # one answer to everything, and the best scale and bias for it
        for parameter in task.model.parameters():
            parameter.zero_()
        task.model.read_out.out.bias.fill_(1.0)
        [temperature] = task.temperatures.values()
        temperature.log_scale.zero_()
        if loss == "sigmoid":
            temperature.bias.fill_(-1 - math.log(15))
        assert at_chance({name: float(value) for name, value in task(batch).logs.items()})
    task = build(config, ("text", "image"))
    optimizer = torch.optim.AdamW(task.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = task(batch)
        output.loss.backward()
        optimizer.step()
    assert not at_chance({name: float(value) for name, value in output.logs.items()})


def test_logs_are_detached_and_say_what_was_trained_on() -> None:
    output = build()(make())
    assert output.weight == 6.0
    assert not any(value.requires_grad for value in output.logs.values())
    parts = sum(getattr(SMALL.weights, name) * output.logs[name] for name in ("align", "recon", "match"))
    torch.testing.assert_close(output.loss.detach(), parts)
    assert float(output.logs["temperature/text-image"]) == pytest.approx(0.07)


@pytest.mark.parametrize("kind", ["slots", "probe", "mlp"])
def test_training_lowers_the_loss(kind: str) -> None:
    task, batch = build(changed(kind=kind, weights=Weights(align=1.0, recon=0.2))), make(8)
    optimizer = torch.optim.AdamW(task.parameters(), 5e-3)
    values = []
    for step in range(60):
        optimizer.zero_grad()
        output = task({**batch, "step": torch.tensor(step)})
        output.loss.backward()
        optimizer.step()
        values.append(float(output.loss.detach()))
    assert values[-1] < 0.5 * values[0]


# --- two processes


def _two_groups(loss: str) -> tuple[ThinkingTask, Batch]:
    task = moved(build(changed(loss=loss, weights=ALIGN_ONLY))).double()
    batch = without(without(make(8), 1, "audio"), 6, "text")
    batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    batch["group"] = torch.tensor([0, 1, 2, 3, 0, 4, 5, 1])  # positives on both sides of the cut
    return task, batch


def _one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for loss in ("infonce", "sigmoid"):
        task, batch = _two_groups(loss)
        half = pick(batch, range(4 * rank, 4 * rank + 4))
        value = task(half).loss.detach()
        found = gradients(task, half)
        for tensor in (value, *found.values()):  # what DistributedDataParallel does: the mean
            distributed.all_reduce(tensor)
            tensor /= 2
        if rank == 0:
            torch.save({"loss": value, "gradients": found}, f"{folder}/{loss}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with loss and gradients as two gloo processes find them, each with half of the batch."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(_one_process, folder)
    return folder


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_two_processes_equal_one_with_the_joint_batch(loss: str, two_processes: Path) -> None:
    """In float64, to 1e-12: the same sums in another order."""
    found = torch.load(two_processes / f"{loss}.pt", weights_only=True)
    task, batch = _two_groups(loss)
    torch.testing.assert_close(found["loss"], task(batch).loss.detach(), rtol=1e-12, atol=1e-12)
    expected = gradients(task, batch)
    assert found["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-12, atol=1e-12, msg=name)
    halves = [gradients(task, pick(batch, rows)) for rows in (range(4), range(4, 8))]  # without gathering
    slots = "model.aggregator.slots"
    assert (torch.stack([half[slots] for half in halves]).mean(dim=0) - expected[slots]).abs().max() > 1e-4
