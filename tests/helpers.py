"""A toy family for the engine's tests: noisy linear regression with dropout, groups, a frozen part and a buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Section
from sensorium.engine import settings
from sensorium.engine.contract import Batch, Evaluation, Family, Host, Mix, Output, Source, Sources, Stage
from sensorium.errors import DataError


class ToyModel(Section):
    width: int = Field(8, ge=1, description="Hidden width.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout.")


class ToyData(Section):
    length: int = Field(20, ge=1, description="Samples.")
    noise: float = Field(0.1, ge=0, description="Augmentation noise drawn for each sample.")
    broken: tuple[int, ...] = Field((), description="Numbers of samples that cannot be read.")
    explode_at: tuple[int, ...] = Field((), description="Numbers of samples whose target is infinite.")


@dataclass
class ToySource:
    data: ToyData
    offset: int
    groups: np.ndarray | None = None
    mix: Mix | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = f"toy-{self.data.length}-{self.offset}"

    def __len__(self) -> int:
        return self.data.length

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        if index in self.data.broken:
            raise DataError(f"toy sample {index}: broken on purpose")
        x = np.random.default_rng(self.offset + index).normal(size=4)
        noise = np.random.default_rng(seed).normal(size=4) * self.data.noise
        y = np.inf if index in self.data.explode_at else x.sum()
        return {"x": (x + noise).astype(np.float32), "y": np.float32(y)}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return {key: torch.from_numpy(np.stack([e[key] for e in examples])) for key in ("x", "y")}


class ToyTask(nn.Module):
    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(4, model.width), nn.GELU(), nn.Dropout(model.dropout))
        self.head = nn.Linear(model.width, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: Batch) -> Output:
        error = (self.predict(batch) - batch["y"]) ** 2
        if self.training:
            self.seen += len(error)
        return Output(error.mean(), {"largest": error.max().detach()}, float(len(error)))

    def predict(self, batch: Batch) -> Tensor:
        return self.head(self.body(batch["x"] + self.frozen(batch["x"]))).squeeze(1)


class ToyEvaluator:
    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        del final
        assert isinstance(task, ToyTask)
        return {"error": (task.predict(batch) - batch["y"]).square()}

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        del source, task, final
        return Evaluation({"loss": float(collected["error"].mean())})


def toy_sources(config: settings.RunConfig, host: Host) -> Sources:
    del host
    assert isinstance(config.data, ToyData)
    whole = config.data.model_copy(update={"broken": (), "explode_at": ()})
    return Sources(ToySource(config.data, 0), ToySource(whole, 1000), ToySource(whole, 2000))


TOY = Family(
    name="toy",
    summary="regression for tests",
    model=ToyModel,
    data=ToyData,
    presets={"tiny": {"train": {"steps": 12, "batch_size": 8}, "optim": {"lr": 0.01}}},
    sources=toy_sources,
    facts=lambda config, sources: {"length": len(sources.train)},
    task=lambda config, facts: ToyTask(config.model),
    evaluator=lambda config: ToyEvaluator(),
)

TOY_TWO_STAGES = replace(
    TOY,
    stages=lambda config: (
        Stage("head", share=0.5, trainable=("head.*",)),
        Stage("all", share=0.5, trainable=("body.*", "head.*"), lr_scale=0.5),
    ),
)


def toy_config(overrides: Mapping[str, Any] | None = None, family: Family = TOY) -> settings.RunConfig:
    return settings.resolve(family, "tiny", overrides or {})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
