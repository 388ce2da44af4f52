"""What a training loop costs besides the training: ours, a bare PyTorch loop, Hugging Face's Trainer, Lightning.

    pip install lightning
    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py

The same transformer, data, batches, fused AdamW and gradient clipping in all. Each logs its loss and gradient norm as
it does by default (ours: every step to metrics.jsonl and TensorBoard; the frameworks: every 10 steps to TensorBoard;
the bare loop: reads the loss every 10 steps). No evaluation and no checkpoint between the timed steps. Timed is the
way from one forward pass to the same point of a later one. Overhead is what is above the bare loop.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, median, side_by_side, spread, table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from sensorium.config import Section
from sensorium.engine import loop, settings
from sensorium.engine.contract import Batch, Evaluation, Family, Host, Mix, Output, Source, Sources

WARM, LENGTH, CLASSES = 20, 512, 10
ARMS = ("bare", "sensorium", "trainer", "lightning")
SIZES = {
    "tiny": (32, 1, 16, 1000),
    "small": (64, 2, 16, 200),
    "medium": (192, 4, 32, 80),
    "large": (384, 6, 32, 30),
}  # width, blocks, rows, steps


class Model(nn.Module):
    """A classifier of sequences: 32 tokens of width 48. Notes when each forward pass begins."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entrance = nn.Linear(48, width)
        layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)
        self.times: list[tuple[float, float]] = []

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.times.append((time.perf_counter(), time.process_time()))
        logits = self.head(self.body(self.entrance(x)).mean(dim=1))
        return {"loss": functional.cross_entropy(logits, y)}

    def result(self) -> dict[str, float]:
        """Milliseconds a step, by the clock and of processor time."""
        first, last, steps = self.times[WARM], self.times[-1], len(self.times) - 1 - WARM
        return {name: 1e3 * (last[i] - first[i]) / steps for i, name in enumerate(("wall", "cpu"))}


class Data(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(LENGTH, 32, 48, generator=generator)
        self.y = torch.randint(CLASSES, (LENGTH,), generator=generator)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)


def bare(model: Model, rows: int, steps: int, folder: Path) -> None:
    optimizer, done = adamw(model), 0
    while True:
        for batch in DataLoader(Data(), rows, shuffle=True, drop_last=True):
            if done == steps:
                return
            loss = model(**batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done % 10 == 0:
                float(loss.detach())


@dataclass
class Rows:
    """The data as a source of ours."""

    data: Data
    fingerprint: str = "benchmark"
    groups: np.ndarray | None = None
    mix: Mix | None = None

    def __len__(self) -> int:
        return LENGTH

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        return self.data[index]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return {name: torch.stack([example[name] for example in examples]) for name in ("x", "y")}


class Task(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Output:
        return Output(self.model(batch["x"], batch["y"])["loss"], {}, float(len(batch["y"])))


class Loss:
    """Required of a family; without a validation or test split nobody asks it."""

    def collect(self, task: nn.Module, batch: Batch, *, final: bool) -> Mapping[str, Tensor]:
        return {"loss": task(batch).loss.expand(len(batch["index"]))}

    def score(self, collected: Mapping[str, Tensor], source: Source, task: nn.Module, *, final: bool) -> Evaluation:
        return Evaluation({"loss": float(collected["loss"].mean())})


def sensorium(model: Model, rows: int, steps: int, folder: Path) -> None:
    def sources(config: settings.RunConfig, host: Host) -> Sources:
        return Sources(Rows(Data()))

    family = Family(
        name="benchmark",
        summary="",
        model=Section,
        data=Section,
        presets={"tiny": {"optim": {"lr": 1e-4}}},
        sources=sources,
        facts=lambda config, found: {},
        task=lambda config, facts: Task(model),
        evaluator=lambda config: Loss(),
    )
    layer = {"train": {"steps": steps, "batch_size": rows}, "checkpoint": {"every_epochs": None}}
    loop.train(family, settings.resolve(family, "tiny", layer), folder / "run")


def trainer(model: Model, rows: int, steps: int, folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=rows,
        learning_rate=1e-4,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        logging_steps=10,
        report_to=["tensorboard"],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_drop_last=True,
    )
    Trainer(model, arguments, train_dataset=Data()).train()


def lightning(model: Model, rows: int, steps: int, folder: Path) -> None:
    from lightning import LightningModule, Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self)

    Trainer(
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(str(folder)),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    ).fit(Module(), DataLoader(Data(), rows, shuffle=True, drop_last=True))


def run_arm(arm: str, size: str) -> None:
    warnings.simplefilter("ignore")
    width, blocks, rows, steps = SIZES[size]
    model = Model(width, blocks)
    with tempfile.TemporaryDirectory() as folder:
        {"bare": bare, "sensorium": sensorium, "trainer": trainer, "lightning": lightning}[arm](
            model, rows, WARM + steps, Path(folder)
        )
    print(json.dumps(model.result()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    sizes = given.size or list(SIZES)
    if given.arm:
        run_arm(given.arm, sizes[0])
        return
    print(machine(), flush=True)
    for size in sizes:
        arms = [("--arm", arm, "--size", size) for arm in ARMS]
        found = side_by_side(__file__, arms, given.repeats, {"CUDA_VISIBLE_DEVICES": ""})  # the bare loop knows no GPU
        base, rows = median(found[0], "cpu"), []
        for arm, results in zip(ARMS, found, strict=True):
            more = median(results, "cpu") - base
            cells = (spread(results, "wall"), spread(results, "cpu"), f"{more:+.2f} ms", f"{100 * more / base:+.1f} %")
            rows.append((size, arm, *cells))
        columns = ("model", "loop", "ms a step, clock", "ms a step, processor", "over bare", "overhead")
        print(table(columns, rows), flush=True)


if __name__ == "__main__":
    main()
