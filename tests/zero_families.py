"""A toy family that is hard to divide: frozen weights in bf16, weights of the task itself, one without dimension,
weights that are changed after each step, a buffer that each process fills with its own samples, micro-batches of
different weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from helpers import TOY, ToyModel, ToyTask
from torch import Tensor, nn

from sensorium.engine import settings
from sensorium.engine.contract import Batch, Output, Stage


class DividedTask(ToyTask):
    def __init__(self, model: ToyModel) -> None:
        super().__init__(model)
        self.frozen.to(torch.bfloat16)
        self.scale = nn.Parameter(torch.ones(24))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, batch: Batch) -> Output:
        counted_B = (batch["x"][:, 0] > 0).float() + 0.5
        error_B = (self.predict(batch) - batch["y"]) ** 2
        loss = (error_B * counted_B).sum() / counted_B.sum()
        return Output(loss, {"largest": error_B.max().detach()}, float(counted_B.sum()))

    def predict(self, batch: Batch) -> Tensor:
        x_BD = batch["x"]
        if self.training:
            self.mean.lerp_(x_BD.mean(0), 0.1)
        shown = self.frozen(x_BD.bfloat16()).float() + 0.01 * self.mean
        return self.head(self.body(x_BD + shown)).squeeze(1) * self.scale.mean() + self.bias


def _task(config: settings.RunConfig, facts: Mapping[str, Any]) -> nn.Module:
    del facts
    assert isinstance(config.model, ToyModel)
    return DividedTask(config.model)


@torch.no_grad()
def _clamp(task: nn.Module, step: int) -> None:
    del step
    assert isinstance(task, DividedTask)
    task.head.weight.clamp_(-0.2, 0.2)
    task.scale.clamp_(0.9, 1.0)
    task.bias.clamp_(-0.01, 0.01)


DIVIDED = replace(
    TOY,
    task=_task,
    after_step=_clamp,
    stages=lambda config: (
        Stage("head", share=0.5, trainable=("head.*",)),
        Stage("all", share=0.5, trainable=("body.*", "head.*", "scale", "bias"), lr_scale=0.5),
    ),
)
