"""Small random batches and tasks for the tests of `thinking`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing import start_processes

from sensorium.data.items import MODALITIES, Modality
from sensorium.engine.contract import Batch
from sensorium.families.thinking.config import ModelConfig, Weights
from sensorium.families.thinking.model import EncoderFacts
from sensorium.families.thinking.task import ThinkingTask

TOKENS: dict[Modality, int] = {"text": 5, "image": 9, "audio": 7}
FACTS: dict[Modality, EncoderFacts] = {
    "text": EncoderFacts(12, 12, False, [0.1] * 12),
    "image": EncoderFacts(20, 10, True, [0.2] * 10),
    "audio": EncoderFacts(14, 14, False, [-0.1] * 14),
}
SMALL = ModelConfig(width=16, slots=4, heads=2, walker_blocks=1, weights=Weights(align=1.0, recon=0.3, match=0.2))


def changed(**values: object) -> ModelConfig:
    """The small configuration with other values."""
    return SMALL.model_copy(update=values)


def build(config: ModelConfig = SMALL, modalities: Sequence[Modality] = MODALITIES, seed: int = 0) -> ThinkingTask:
    torch.manual_seed(seed)
    return ThinkingTask(config, {m: FACTS[m] for m in modalities}, seed=seed)


def moved(task: ThinkingTask, seed: int = 7) -> ThinkingTask:
    """The task as if trained: no parameter is at a special value (zero, one) any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "temperatures" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return task


def make(size: int = 6, seed: int = 0, modalities: Sequence[Modality] = MODALITIES) -> Batch:
    """Rows with texts and sounds of different lengths; groups are unique; every row has every modality."""
    generator = torch.Generator().manual_seed(seed)
    batch: Batch = {
        "has": torch.tensor([[m in modalities for m in MODALITIES]] * size),
        "group": torch.arange(size),
        "index": torch.arange(size),
    }
    for modality in modalities:
        fact, length = FACTS[modality], TOKENS[modality]
        lengths = torch.randint(2, length + 1, (size, 1), generator=generator)
        lengths[0] = length
        mask = torch.arange(length) < lengths
        batch[f"{modality}_tokens"] = torch.randn(size, length, fact.width, generator=generator) * mask[..., None]
        batch[f"{modality}_mask"] = mask
        batch[f"{modality}_pooled"] = torch.randn(size, fact.pooled_width, generator=generator)
    return batch


def without(batch: Batch, row: int, modality: Modality) -> Batch:
    """The batch in which one row lacks a modality, in equal shapes."""
    result = {name: tensor.clone() for name, tensor in batch.items()}
    result["has"][row, MODALITIES.index(modality)] = False
    for part in ("tokens", "mask", "pooled"):
        result[f"{modality}_{part}"][row] = 0
    return result


def pick(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, in the given order."""
    return {name: tensor[list(rows)] if tensor.ndim else tensor for name, tensor in batch.items()}


def only(batch: Batch, modalities: Sequence[Modality]) -> Batch:
    """The batch as a run without the other modalities would see it."""
    gone = [m for m in MODALITIES if m not in modalities]
    result = {name: tensor for name, tensor in batch.items() if name.partition("_")[0] not in gone}
    return {**result, "has": batch["has"] & torch.tensor([m in modalities for m in MODALITIES])}


def gradients(task: ThinkingTask, batch: Batch) -> dict[str, Tensor]:
    task.zero_grad()
    task(batch).loss.backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> None:
    """``work(rank, folder)``, both forked from one process that has imported the family, once for all files."""
    multiprocessing.set_forkserver_preload(["torch._dynamo", "sensorium.families.thinking.task", "pytest"])
    start_processes(work, (str(folder),), nprocs=2, start_method="forkserver")
