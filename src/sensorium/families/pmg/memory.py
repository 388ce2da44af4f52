"""Memory of a training step, foreseen: the real forward and backward pass on tensors that have shapes and no bytes.

Counted are tensors that are alive, as an allocator would hold them. Not counted are what a kernel uses for itself while
it runs and what the libraries take for themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sensorium.engine.contract import Batch, Demand, Source, Sources
from sensorium.engine.seeds import derive
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.pmg.config import ModelConfig
from sensorium.families.pmg.data import TrainSource
from sensorium.families.pmg.diffusion import new_unet, read_shape
from sensorium.families.pmg.folders import diffusion_folder, llm_folder
from sensorium.families.pmg.language import new_trunk
from sensorium.families.pmg.task import FROZEN_DTYPES, Average, PMGTask, sections
from sensorium.parts.live import Live

POINTLESS = 1.1  # a pad of so little is no lever


def demand(config: RunConfig, sources: Sources, rows: int, device: torch.device) -> Demand:
    """Bytes of a step of ``rows`` samples with the longest prompt of the training data; nothing of their size is made.

    Pictures and texts come from the cache, so that neither VAE nor text encoder is there. Raises ConfigError.
    """
    model, _ = sections(config)
    assert isinstance(sources.train, TrainSource)
    shapes = _longest(sources.train, config.seed)
    half = config.train.precision != "fp32" and (device.type != "cpu" or config.train.precision == "bf16")
    with FakeTensorMode(), torch.device(device):
        task = new_task(model, FROZEN_DTYPES[config.train.precision]).train()
        batch = {name: torch.empty((rows, *one.shape[1:]), dtype=one.dtype) for name, one in shapes.items()}
        for parameter in task.adapter.parameters():
            parameter.grad = torch.empty_like(parameter)
        autocast = torch.autocast(device.type, FROZEN_DTYPES[config.train.precision] if half else None, enabled=half)
        activations = step_bytes(task, batch, autocast)
    learned = sum(parameter.nbytes for parameter in task.adapter.parameters())
    moments = 0.5 if config.optim.name == "adamw8bit" else 2
    parts = {
        "language model": _bytes(task.llm),
        "UNet": _bytes(task.unet),
        "adapter, gradient and optimizer": round((2 + moments + (task.average is not None)) * learned),
        **activations,
    }
    return Demand(parts, _levers(model, sources.train))


def step_bytes(task: PMGTask, batch: Batch, autocast: torch.autocast) -> dict[str, int]:
    """Of activations, by who made them, and of what the backward pass needs besides."""
    read: list[int] = []
    with Live([*task.parameters(), *task.buffers(), *batch.values(), *_gradients(task)]) as live:
        before = task.llm.register_forward_pre_hook(lambda *_: read.append(-live.now))
        after = task.llm.register_forward_hook(lambda *_: read.append(live.now))
        with autocast:
            loss = task(batch).loss
        held = live.now
        before.remove()
        after.remove()
        loss.backward()
    return {
        "activations of the language model": sum(read),
        "activations of the UNet": held - sum(read),
        "backward pass": live.peak - held,
    }


def _gradients(task: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in task.parameters() if parameter.grad is not None]


def new_task(model: ModelConfig, dtype: torch.dtype) -> PMGTask:
    """A task with new weights of the configured sizes, for where nothing but sizes counts."""
    folder = diffusion_folder(model)
    shape = read_shape(folder, model.stable_diffusion)
    trunk = new_trunk(llm_folder(model, weights=False), model.llm, dtype)
    task = PMGTask(model, shape, trunk, new_unet(folder, dtype), torch.ones(shape.timesteps))
    if model.ema_decay:
        task.average = Average(task.adapter)
    return task


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _longest(source: TrainSource, seed: int) -> Batch:
    """A batch of one, of the longest prompt; the question about another user is as long."""
    lengths = source.split.questions
    for number in sorted(range(len(source)), key=lambda one: -len(lengths[one])):
        try:
            example = source.example(number, derive(seed, "demand"))
        except DataError:  # what to do with broken samples is said elsewhere
            continue
        batch = source.collate([example])
        return batch | {
            name: batch[like]
            for name, like in (("wrong_ids", "input_ids"), ("wrong_mask", "text_mask"))
            if name in batch
        }
    raise DataError(f"none of {len(source):,} training samples can be used")


def _levers(model: ModelConfig, source: Source) -> tuple[str, ...]:
    """Settings that need less, the cheapest first."""
    assert isinstance(source, TrainSource)
    longest = max(map(len, source.split.questions)) + model.num_image_prompt
    padded = model.pad_to == "max" and model.max_sequence_length > POINTLESS * longest
    levers = [
        f"model.pad_to=longest ({longest} tokens for {model.max_sequence_length}, the same numbers)" * padded,
        "model.gradient_checkpointing=true (the same numbers, slower)" * (not model.gradient_checkpointing),
    ]
    return tuple(filter(None, levers))
