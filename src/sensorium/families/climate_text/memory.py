"""Memory of a training step of `climate_text`, foreseen: the model's own forward and backward pass on tensors that have
shapes and no bytes, and what stays from step to step.

Not counted is what a kernel uses for itself while it runs, and what the libraries take (on a GPU some hundred
megabytes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sensorium.engine.contract import Batch, Demand, Sources
from sensorium.engine.settings import RunConfig
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.data import TrainSource, spread
from sensorium.families.climate_text.encoders import (
    FieldFacts,
    Trained,
    shaped_encoder,
    trained_encoder,
    trains_encoder,
)
from sensorium.families.climate_text.llm import shaped_llm
from sensorium.families.climate_text.model import ClimateTextFusion, Predictions
from sensorium.families.climate_text.sources import facts
from sensorium.families.climate_text.task import FROZEN_DTYPES, sections
from sensorium.parts.live import Live

LOOKED = 512  # texts whose tokens are counted


def demand(config: RunConfig, sources: Sources, rows: int, device: torch.device) -> Demand:
    """Bytes of a step of ``rows`` samples as long as the longest of the training texts that are looked at; nothing of
    their size is made. Raises ConfigError and DataError."""
    model, _ = sections(config)
    source = sources.train
    assert isinstance(source, TrainSource)
    one = source.collate([source.example(longest(source), config.seed)])
    targets = rows * int(one["target_mask"].sum())
    reads, dtype = FieldFacts(**facts(config, sources)["fields"]), FROZEN_DTYPES[config.train.precision]
    trained = trained_encoder(model) if reads.token_width is None else None
    half = config.train.precision != "fp32" and (device.type != "cpu" or config.train.precision == "bf16")
    with FakeTensorMode(), torch.device(device):
        built = shaped(model, reads, trained, dtype).train()
        batch = {name: torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype) for name, tensor in one.items()}
        for parameter in learning(built):
            parameter.grad = torch.empty_like(parameter)
        autocast = torch.autocast(device.type, dtype if half else None, enabled=half)
        held, peak = step_bytes(built, batch, targets, autocast)
    kept = state(config, sum(parameter.numel() for parameter in learning(built)))
    divided = kept.world if kept.stage == 3 else 1
    parts = {
        "language model": _frozen(built.llm) // divided,
        "climate encoder": 0 if built.encoder is None else _frozen(built.encoder) // divided,
        "what learns, gradient and optimizer": kept.device,
        "activations": held,
        "backward pass": peak - held,
    }
    return Demand({name: size for name, size in parts.items() if size}, tuple(_levers(config, kept)))


def shaped(model: ModelConfig, reads: FieldFacts, trained: Trained | None, dtype: torch.dtype) -> ClimateTextFusion:
    """The model of a run with new weights, for where nothing but sizes counts."""
    if reads.token_width is not None:
        return ClimateTextFusion(model, reads, llm=shaped_llm(model, dtype), dtype=dtype)
    encoder = shaped_encoder(model, reads, trained, dtype)
    built = ClimateTextFusion(
        model, replace(reads, token_width=encoder.width), llm=shaped_llm(model, dtype), dtype=dtype
    )
    built.encoder = encoder  # not by attach_encoder, which moves it: tensors without content stay where they are
    return built


def step_bytes(model: ClimateTextFusion, batch: Batch, targets: int, autocast: torch.autocast) -> tuple[int, int]:
    """Bytes that live between forward and backward pass, and at most, beside weights, gradients and the batch."""
    gradients = [parameter.grad for parameter in learning(model) if parameter.grad is not None]
    with Live([*model.parameters(), *model.buffers(), *batch.values(), *gradients]) as live:
        with autocast:
            loss = _loss(model, batch, targets)
        held = live.now
        loss.backward()
    return held, live.peak


def _loss(model: ClimateTextFusion, batch: Batch, targets: int) -> Tensor:
    """As ``compute_loss`` of the task. Which positions are targets is content, that these tensors lack: so many are
    taken, whichever they are. The side of the texts in ``contrastive_weight`` has no gradient and is left out."""
    hidden = model.hidden(batch)
    if model.config.objective != "lm":
        return hidden.float().mean()
    chosen = hidden.flatten(0, 1)[torch.arange(targets)]
    logits = model.llm.get_output_embeddings()(chosen[None])[0]
    places = torch.zeros(targets, dtype=torch.long)
    return Predictions(logits, places, places).losses().mean()


def learning(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _frozen(module: nn.Module) -> int:
    tensors = [one for one in module.parameters() if not one.requires_grad]
    return sum(tensor.nbytes for tensor in (*tensors, *module.buffers()))


def longest(source: TrainSource) -> int:
    """Number of the sample with the most tokens, of ``LOOKED`` that lie evenly over the split."""
    rows = [row for row, taken in enumerate(spread(len(source), LOOKED)) if taken]
    return max(rows, key=lambda row: sum(map(len, source.inputs.text(source.part, row).values())))


@dataclass(frozen=True)
class State:
    """What of a run stays from step to step, besides frozen weights: bytes on the ``device`` and in memory of the
    ``host``. ``stage``: of ZeRO, 0 without it; ``world``: processes that share."""

    device: int
    host: int
    stage: int
    world: int


def state(config: RunConfig, count: int) -> State:
    """Of ``count`` numbers that learn: fp32 weights and gradients and the optimizer's state, as ZeRO divides them.

    DeepSpeed 0.19 keeps a copy of the weights beside the moments, also where they are fp32; with offload these lie in
    the memory of the host, and gradients with them.
    """
    own = config.deepspeed
    stage, world = (own.zero_stage, _world(config)) if own.used else (0, 1)
    moments = 2 if config.optim.name == "adamw8bit" else 8
    weights, gradient = 4 * count, 4 * count
    optimizer = (moments + 4 * (own.used and stage > 0)) * count
    if stage >= 1:
        optimizer //= world
    if stage >= 2:
        gradient //= world
    if stage == 3:
        weights //= world
    if own.used and own.cpu_offload and stage >= 1:
        return State(weights, gradient + optimizer, stage, world)
    return State(weights + gradient + optimizer, 0, stage, world)


def _world(config: RunConfig) -> int:
    """Processes of the run: those that were started, or that a command line will start."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    gpus = 0 if config.train.device == "cpu" else torch.cuda.device_count()
    return config.train.processes or max(1, gpus)


def _levers(config: RunConfig, kept: State) -> Iterator[str]:
    """Settings that need less, the cheapest first."""
    model, data = sections(config)
    if not data.cache and not trains_encoder(model):
        yield "data.cache=true (the same numbers to 16 bits, faster; the encoder is gone)"
    if not model.gradient_checkpointing or model.activation_checkpointing != "all":
        all_of_them = " model.activation_checkpointing=all" * (model.activation_checkpointing != "all")
        yield f"model.gradient_checkpointing=true{all_of_them} (the same numbers, slower)"
    if kept.stage and not kept.host:
        yield "deepspeed.cpu_offload=true (the optimizer's state in memory of the host, slower)"
    if kept.world > 1 and kept.stage < 3:
        yield "deepspeed.enabled=true deepspeed.zero_stage=3 (weights are divided, too)"
    if config.train.precision == "fp32":
        yield "train.precision=bf16 (frozen weights in half the bytes)"
