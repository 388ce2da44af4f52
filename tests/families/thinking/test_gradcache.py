"""A step read in chunks has the gradient of the whole batch: every loss, with dropout, on one and two processes.

Everything in float64, to 1e-10: the same numbers, summed in another order.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import SMALL, build, changed, in_two_processes, make, moved, pick, without
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch
from sensorium.families.thinking import task as module
from sensorium.families.thinking.config import ModelConfig, Weights
from sensorium.families.thinking.task import ThinkingTask
from sensorium.parts import chunks, contrastive
from sensorium.parts.chunks import in_chunks

Gradients = dict[str, Tensor]
ALIGN_ONLY = Weights(align=1.0, recon=0.0, match=0.0)
DROPOUT = {"dropout": 0.4}
SENSES: tuple[tuple[Modality, ...], ...] = (MODALITIES, ("text", "image"))
KINDS = {
    "all": SMALL,
    "sigmoid": changed(loss="sigmoid"),
    "floor": changed(floor=True, read_width=24, pooled_tokens=True),
    "queue": changed(queue=5),
    "K0": changed(think_steps=0),
    "drawn K": changed(think_steps_max=3),
    "probe": changed(kind="probe"),
}


def double(batch: Batch) -> Batch:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def task_of(config: ModelConfig, parts: int = 1) -> ThinkingTask:
    task = moved(build(config)).double()
    task.chunks = parts
    return task


def rows() -> Batch:
    """Seven rows; two of one group; two of them lack a modality."""
    batch = double(without(without(make(7), 1, "audio"), 5, "text"))
    batch["group"] = torch.tensor([0, 1, 2, 3, 0, 4, 1])
    return {**batch, "step": torch.tensor(3)}


def gradients(task: nn.Module, batch: Batch, seed: int = 11) -> tuple[Tensor, Gradients]:
    task.zero_grad()
    torch.manual_seed(seed)
    loss = task(batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def same(found: tuple[Tensor, Gradients], expected: tuple[Tensor, Gradients]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-10, msg=name)


def difference(found: Gradients, expected: Gradients) -> float:
    """Norm of the difference over the norm of what was expected."""
    wrong = sum(float((found[name] - gradient).square().sum()) for name, gradient in expected.items())
    return (wrong / sum(float(gradient.square().sum()) for gradient in expected.values())) ** 0.5


def at_once(represent: Callable[..., Mapping[str, Tensor]], part: Tensor, **_: object) -> Mapping[str, Tensor]:
    """Stands in for checkpoint(): the same chunks with the same random numbers, and all activations kept."""
    return represent(part)


@pytest.mark.parametrize("name", KINDS)
def test_chunks_change_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which false pair is drawn is a matter of random numbers; here the most similar one.
    monkeypatch.setattr(module.losses, "draw_pairs", partial(_without_chance, module.losses.draw_pairs))
    whole, batch = gradients(task_of(KINDS[name]), rows()), rows()
    for parts in (2, 3, 7):
        same(gradients(task_of(KINDS[name], parts), batch), whole)


def _without_chance(draw: Callable[..., object], *given: object, sample: bool) -> object:
    del sample
    return draw(*given, sample=False)


@pytest.mark.parametrize("name", KINDS)
def test_random_numbers_are_replayed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = KINDS[name].model_copy(update=DROPOUT)
    found = gradients(task_of(config, 3), rows())
    monkeypatch.setattr(chunks, "checkpoint", at_once)
    same(found, gradients(task_of(config, 3), rows()))


def test_without_replay_the_gradient_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(**DROPOUT)
    right = gradients(task_of(config, 3), rows())[1]
    monkeypatch.setattr(module, "in_chunks", partial(in_chunks, replay=False))
    assert difference(gradients(task_of(config, 3), rows())[1], right) > 0.1


def test_plain_accumulation_is_wrong() -> None:
    """The mean over chunks of their own losses is another loss: this is why GradCache is there."""
    config, batch = changed(weights=ALIGN_ONLY), double(make(8))
    task = task_of(config)
    right = gradients(task, batch)[1]
    parts = [gradients(task, pick(batch, range(at, at + 2)))[1] for at in range(0, 8, 2)]
    mean = {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in right}
    assert difference(mean, right) > 0.3


def test_the_temperature_has_the_gradient_of_one_batch() -> None:
    """open_clip's accumulation gives it as many times over as there are chunks."""
    config = changed(weights=ALIGN_ONLY)
    name = "temperatures.text-image.log_scale"
    whole, parts = (gradients(task_of(config, n), rows())[1][name] for n in (1, 4))
    assert whole.abs() > 1e-6
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)


def test_evaluation_reads_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("chunks in evaluation")

    monkeypatch.setattr(module, "in_chunks", refuse)
    task_of(SMALL, 3).eval()(rows())
    with pytest.raises(AssertionError):
        task_of(SMALL, 3)(rows())


def test_activations_of_one_chunk_at_a_time_are_kept() -> None:
    """Bytes that autograd keeps for the backward pass, counted as they are packed."""

    def kept(parts: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        task, batch = task_of(SMALL, parts), double(make(32))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = task(batch).loss
        assert loss.requires_grad
        return sum(sizes.values())

    assert kept(8) < 0.2 * kept(1)


# --- memory queue


def test_queued_rows_are_negatives_only() -> None:
    """Against plain cross-entropy over the batch and the queue, whose rows of the query's own group are left out."""
    weights = {"weights": ALIGN_ONLY}
    task, earlier = task_of(changed(queue=4, **weights)), double(make(4))
    task(earlier)
    module.after_step(task, 0)
    now = {**double(make(4, seed=1)), "group": torch.tensor([2, 7, 8, 9])}  # the first was seen as row 2 before
    found = task(now).logs["align/text-image"]
    z, kept = task.embed(now), task.embed(earlier)
    losses = []
    for a, b in (("text", "image"), ("image", "text")):
        logits = z[a] @ torch.cat([z[b], kept[b]]).T / 0.07
        logits[0, 4 + 2] = -torch.inf
        losses.append(nn.functional.cross_entropy(logits, torch.arange(4)))
    # the queue keeps float32: 1e-7 of a similarity, times the scale of 14
    torch.testing.assert_close(found, (sum(losses) / 2).detach(), rtol=1e-5, atol=1e-5)
    without_queue = task_of(changed(**weights))(now).logs["align/text-image"]
    assert found > without_queue + 0.1
    torch.testing.assert_close(task.eval()(now).logs["align/text-image"], without_queue)


def test_the_queue_moves_on_after_a_step_only() -> None:
    task = task_of(changed(queue=6))
    queue = task.queue
    assert queue is not None
    task(double(make(4)))
    assert not queue.present.any()  # a skipped step leaves no trace
    module.after_step(task, 0)
    module.after_step(task, 0)
    assert queue.present.all(dim=1).tolist() == [True] * 4 + [False] * 2
    task({**double(make(4, seed=1)), "group": torch.arange(4) + 20})
    module.after_step(task, 1)
    assert queue.groups.tolist() == [20, 21, 22, 23, 0, 1]
    names = set(task.state_dict())
    assert {"queue.vectors", "queue.present", "queue.groups"} <= names


def test_a_pair_that_is_absent_from_the_batch_does_not_count_for_what_is_queued() -> None:
    task = task_of(changed(queue=8, weights=ALIGN_ONLY))
    task(double(make(6)))
    module.after_step(task, 0)
    assert task.queue is not None
    assert task.queue.present.all(dim=1).sum() == 6
    silent = double({**make(6, seed=3), "group": torch.arange(6) + 100})
    for row in range(6):
        silent = without(silent, row, "audio")
    logs = task(silent).logs
    assert logs["align/text-audio"] == 0
    torch.testing.assert_close(logs["align"], logs["align/text-image"])
    torch.testing.assert_close(logs["align_chance"], torch.tensor(12.0).log())


# --- two processes


def uneven(modalities: Sequence[Modality]) -> tuple[ThinkingTask, Batch]:
    """Eight rows, of which one in the first half and three in the second half have something to leave out.

    The shares, 1/4 and 3/4, are exact in float32, in which they are taken.
    """
    torch.manual_seed(0)
    weights = Weights(align=1.0, recon=0.3, match=0.2)
    task = moved(build(changed(weights=weights), modalities)).double()
    batch = double(make(8, modalities=modalities))
    for row in (0, 1, 2, 6):
        for modality in modalities[1:]:
            batch = without(batch, row, modality)
    if len(modalities) > 2:
        batch = without(batch, 7, "audio")
    return task, {**batch, "step": torch.tensor(1)}


@contextmanager
def negatives_from_the_own_half() -> Iterator[None]:
    """Pairs without chance, and of eight rows the first four and the last four know nothing of each other."""

    def restricted(similarity: Tensor, allowed: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        half = torch.arange(len(allowed)) // 4
        return contrastive.hard_negatives(similarity, allowed & (half[:, None] == half), *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.losses, "draw_pairs", partial(_without_chance, module.losses.draw_pairs))
        patch.setattr(module.losses, "hard_negatives", restricted)
        yield


def _uneven_halves(rank: int, modalities: Sequence[Modality], path: str) -> None:
    task, batch = uneven(modalities)
    with negatives_from_the_own_half():
        half = pick(batch, range(4 * rank, 4 * rank + 4))
        loss, found = gradients(task, half)
        logs = task(half).logs
    logs = {"loss": loss, **{name: logs[name] for name in ("align", "recon", "match")}}
    for tensor in (*logs.values(), *found.values()):  # what DistributedDataParallel does: the mean
        distributed.all_reduce(tensor)
        tensor /= 2
    if rank == 0:
        torch.save({"logs": logs, "gradients": found}, path)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for modalities in SENSES:
        _uneven_halves(rank, modalities, f"{folder}/{len(modalities)}.pt")
    for name in ("right", "gather without gradient"):
        if name != "right":
            contrastive._Gather.apply = staticmethod(_detached_gather)
        _half_in_chunks(rank, f"{folder}/{name}.pt")
    gc.collect()  # a DDP that outlives its process group can hang in the last moment
    distributed.destroy_process_group()


def _half_in_chunks(rank: int, path: str) -> None:
    model = DistributedDataParallel(task_of(changed(weights=ALIGN_ONLY, **DROPOUT), 2), find_unused_parameters=True)
    half = pick(rows_of_two(), range(4 * rank, 4 * rank + 4))
    loss, found = gradients(model, half, seed=rank)
    distributed.all_reduce(loss)
    if rank == 0:
        plain = {key.removeprefix("module."): value for key, value in found.items()}
        torch.save({"loss": loss / 2, "gradients": plain}, path)


def _detached_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.detach())
    parts[distributed.get_rank()] = x
    return torch.cat(parts)


def rows_of_two() -> Batch:
    batch = double(without(without(make(8), 1, "audio"), 6, "text"))
    return {**batch, "group": torch.tensor([0, 1, 2, 3, 0, 4, 5, 1])}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two gloo processes find, each with half of the batch."""
    folder = tmp_path_factory.mktemp("halves")
    in_two_processes(_rank, folder)
    return folder


@pytest.mark.parametrize("modalities", SENSES, ids=len)
def test_two_processes_with_uneven_gaps_equal_one_batch(modalities: Sequence[Modality], two_processes: Path) -> None:
    """Reconstruction and matching are means over the rows in use of all processes, and so are their gradients."""
    found = torch.load(two_processes / f"{len(modalities)}.pt", weights_only=True)
    task, batch = uneven(modalities)
    with negatives_from_the_own_half():
        loss, expected = gradients(task, batch)
        logs = {"loss": loss, **task(batch).logs}
        alone = [task(pick(batch, half)).logs for half in (range(4), range(4, 8))]
    for name, value in found["logs"].items():
        torch.testing.assert_close(value, logs[name], rtol=1e-10, atol=1e-10, msg=name)
    same((found["logs"]["loss"], found["gradients"]), (loss, expected))
    for name in ("recon", "match"):  # the mean of local means is another number
        assert (sum(part[name] for part in alone) / 2 - logs[name]).abs() > 1e-4


def test_two_processes_in_chunks_equal_one_batch(two_processes: Path) -> None:
    """Each process reads its half in two chunks with dropout of its own; by hand: the same reads in one graph."""
    task, batch = task_of(changed(weights=ALIGN_ONLY, **DROPOUT), 2), rows_of_two()
    reads = []
    for rank in range(2):
        half = pick(batch, range(4 * rank, 4 * rank + 4))
        torch.manual_seed(rank)
        reads.append(task._read_alone(half, task._present(half), torch.full((4,), -1), 2)[0])
    z = {m: torch.cat([read[m] for read in reads]) for m in MODALITIES}
    loss = task._align(z, task._present(batch), batch["group"])["align"]
    loss.backward()
    expected = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    found, wrong = (
        torch.load(two_processes / f"{name}.pt", weights_only=True) for name in ("right", "gather without gradient")
    )
    same((found["loss"], found["gradients"]), (loss.detach(), expected))
    torch.testing.assert_close(wrong["loss"], loss.detach(), rtol=1e-10, atol=1e-10)
    assert difference(wrong["gradients"], expected) > 0.1
