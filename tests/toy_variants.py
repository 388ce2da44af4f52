"""Variants of the toy family: batch normalisation, samples that make loss or gradient alone not finite, lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOY, TOY_TWO_STAGES, ToyData, ToyModel, ToySource, ToyTask, toy_sources
from pydantic import Field
from torch import Tensor, nn

from sensorium.engine import settings
from sensorium.engine.backend import Backend
from sensorium.engine.contract import Batch, Family, Host, Output, Sources, Stage


class FragileData(ToyData):
    nan_at: tuple[int, ...] = Field((), description="Numbers of samples whose input is not a number.")
    steep_at: tuple[int, ...] = Field((), description="Numbers of samples with a finite loss and an infinite gradient.")
    torn_at: tuple[int, ...] = Field((), description="Numbers of samples with a finite loss and a gradient of NaN.")


class FragileSource(ToySource):
    data: FragileData

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        found = dict(super().example(index, seed))
        if index in self.data.nan_at:
            found["x"] = np.full_like(found["x"], np.nan)
        return {**found, "steep": index in self.data.steep_at, "torn": index in self.data.torn_at}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        marks = {name: torch.tensor([example[name] for example in examples]) for name in ("steep", "torn")}
        return {**super().collate(examples), **marks}


class FragileTask(ToyTask):
    """Batch normalisation before the toy's body; the root of zero has an infinite slope, and 0 times it is none."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__(model)
        self.norm = nn.BatchNorm1d(4)

    def predict(self, batch: Batch) -> Tensor:
        return super().predict({**batch, "x": self.norm(batch["x"])})

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        nothing = self.head.bias.sum() - self.head.bias.sum().detach()
        loss = output.loss
        if batch["steep"].any():
            loss = loss + torch.sqrt(nothing)
        if batch["torn"].any():
            loss = loss + torch.sqrt(0.0 * nothing)
        return replace(output, loss=loss)


def fragile_sources(config: settings.RunConfig, host: Host) -> Sources:
    del host
    data = config.data
    assert isinstance(data, FragileData)
    whole = FragileData(length=data.length, noise=data.noise)
    return Sources(FragileSource(data, 0), FragileSource(whole, 1000), FragileSource(whole, 2000))


def _task(config: settings.RunConfig, facts: Mapping[str, Any]) -> nn.Module:
    del facts
    assert isinstance(config.model, ToyModel)
    return FragileTask(config.model)


FRAGILE = replace(TOY, data=FragileData, sources=fragile_sources, task=_task)
FRAGILE_TWO_STAGES = replace(
    FRAGILE,
    stages=lambda config: (
        Stage("head", share=0.5, trainable=("head.*",)),
        Stage("all", share=0.5, trainable=("norm.*", "body.*", "head.*"), lr_scale=0.5),
    ),
)


class IdleTask(ToyTask):
    """One layer that nobody asks."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__(model)
        self.idle = nn.Linear(1, 1)


IDLE = replace(TOY, task=lambda config, facts: IdleTask(config.model))


class LongSource(ToySource):
    """Each sample has a length; a few are much longer than most, and several are equal."""

    def length(self, index: int) -> int:
        return int(np.random.default_rng([7, self.offset + index]).lognormal(2.5, 0.8)) + 1


def long_sources(config: settings.RunConfig, host: Host) -> Sources:
    found = toy_sources(config, host)
    assert isinstance(config.data, ToyData)
    return replace(found, train=LongSource(config.data, 0))


LONG = replace(TOY, sources=long_sources)
FAMILIES: Mapping[str, Family] = {
    "idle": IDLE,
    "idle and forbidden": replace(IDLE, whole_gradient=True),
    "long": LONG,
    "toy": TOY,
    "toy in stages": TOY_TWO_STAGES,
    "fragile": FRAGILE,
    "fragile in stages": FRAGILE_TWO_STAGES,
}


@contextmanager
def scaled(scale: float | None) -> Iterator[None]:
    """Give every run a loss scaler that begins with ``scale``: a CPU has no fp16, but the scaler does not mind."""
    with pytest.MonkeyPatch.context() as patch:
        if scale is not None:
            begin = Backend.__init__

            def with_scaler(
                self: Backend,
                train: settings.Train,
                advice: str = "",
                deepspeed: settings.DeepSpeed | None = None,
                *,
                whole_gradient: bool = False,
            ) -> None:
                begin(self, train, advice, deepspeed, whole_gradient=whole_gradient)
                self._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)

            patch.setattr(Backend, "__init__", with_scaler)
        yield
