"""Who is killed in ``kill_soak.py``: a run of ours, and loops around accelerate."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.utils.tensorboard  # otherwise each life would import it anew, as it would the formats of pictures
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from kill_soak_lives import Meter, State
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from sensorium import config as configuration
from sensorium import families
from sensorium.engine import checkpoint, loop, session, settings
from sensorium.errors import CheckpointError

PIL.Image.init()
FAMILY = families.load("thinking")
STEPS = 30
ROWS, WIDTH, INNER, CLASSES, BATCH = 100, 32, 256, 8, 16  # of accelerate's run: seven steps an epoch, the last smaller


def mark(folder: Path) -> str:
    """A name that changes when something in the folder does."""
    return f"{folder.name} of {max(path.stat().st_mtime_ns for path in (folder, *folder.iterdir()))}"


def differing(names: Iterator[Path], run: Path, whole: Path) -> list[str]:
    """Those of the files of ``whole`` that ``run`` lacks or has otherwise."""
    files = [(name, run / name.relative_to(whole)) for name in names]
    return [str(ours.relative_to(run)) for name, ours in files if not _equal(name, ours)]


def _equal(left: Path, right: Path) -> bool:
    return right.is_file() and left.read_bytes() == right.read_bytes()


@dataclass(frozen=True)
class Sensorium:
    """`thinking`, preset tiny without sound, with what draws numbers and what is carried from step to step: dropout, a
    random number of thinking steps, a queue of negatives."""

    name: str = "sensorium"
    steps: int = STEPS

    def live(self, run: Path, seed: int, workers: int, meter: Meter) -> None:
        """`sensorium train`, then `sensorium resume RUN loader.workers=…`."""
        loader = {"loader": {"workers": workers}}
        again = (run / "config.yaml").exists()
        if again:
            stored = session.read_config(FAMILY, run)
            config = settings.resolve(FAMILY, stored.preset, configuration.dump(stored), loader)
        else:
            layer = {
                "seed": seed,
                "data": {"options": {"variants": 1}, "audio_encoder": None},
                "model": {"dropout": 0.1, "think_steps_max": 3, "queue": 32},
                "train": {"steps": self.steps},
                "checkpoint": {"every_steps": 1, "keep": 2},
                "evaluate": {"every_steps": 7},
            }
            config = settings.resolve(FAMILY, "tiny", layer, loader)
        _tell(meter)
        loop.train(FAMILY, config, run, resume=again, quiet=True)

    def look(self, run: Path, whole: Path) -> State:
        torn, step = [], 0
        for folder in sorted((run / "checkpoints").glob("step_*")):
            try:
                step = checkpoint.load(folder, FAMILY.name).state["step"]
            except CheckpointError as error:
                torn.append(f"{error} ({mark(folder)})")
        leftovers = frozenset(mark(folder) for folder in (run / "checkpoints").glob(".step_*"))
        return State(step, frozenset(torn), leftovers, frozenset(_half_written(run, whole, step)))

    def differences(self, run: Path, whole: Path) -> list[str]:
        """Byte for byte: every file of the checkpoints, the metrics, the test. And nothing of a save may be left."""
        names = ("checkpoints/*/*", "metrics.jsonl", "facts.json", "evaluation/*")
        different = differing((path for name in names for path in whole.glob(name)), run, whole)
        return different + [str(path) for path in run.rglob(".*") if path.name != ".lock"]


def _tell(meter: Meter) -> None:
    """In this process, a save begins with ``checkpoint.save`` and ends with ``checkpoint.prune``."""
    save, prune = checkpoint.save, checkpoint.prune

    def told_save(run: Path, family: str, step: int, content: checkpoint.Content) -> Path:
        meter.begin()
        return save(run, family, step, content)

    def told_prune(run: Path, keep: int, besides: Collection[int], newest: int) -> None:
        prune(run, keep, besides, newest)
        meter.end()

    checkpoint.save, checkpoint.prune = told_save, told_prune


def _half_written(run: Path, whole: Path, step: int) -> Iterator[str]:
    """Files beside the checkpoints that are neither absent nor whole, and metrics that do not reach to ``step``."""
    for name in ("environment.json", "facts.json", "summary.json", "report.json", "evaluation/test.json"):
        if (run / name).exists():
            try:
                json.loads((run / name).read_bytes())
            except ValueError as error:
                yield f"{name}: {error}"
    if (run / "report.html").exists() and not (run / "report.html").read_bytes().rstrip().endswith(b"</html>"):
        yield "report.html: ends early"
    if (run / "config.yaml").exists() and _fixed(run / "config.yaml") != _fixed(whole / "config.yaml"):
        yield "config.yaml: another one"
    log = (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").exists() else b""
    lines = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    needed = b"".join(line for line in lines if step and json.loads(line)["step"] <= step)
    if not (log.startswith(needed) and b"".join(lines).startswith(log)):
        yield f"metrics.jsonl: not those of the uninterrupted run, at least up to step {step}"


def _fixed(config: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(config.read_text())
    return {**content, "loader": {**content["loader"], "workers": 0}}


class Position:
    """Steps done; registered with accelerate, so that it is saved with the rest."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


@dataclass
class Parts:
    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    loader: Any
    position: Position


FILES = {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"}
TORN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Accelerate:
    """A small network with dropout over shuffled rows; ``save_state`` each step, ``load_state`` of the newest that
    loads, ``skip_first_batches`` to the middle of the epoch.

    ``exact``: besides, ``use_seedable_sampler``, ``set_epoch`` in each epoch and a generator of its own for the loader.
    Without all three of them a run resumed in the middle of an epoch gets other batches or other dropout (1.15.0).
    ``numbered``: ``automatic_checkpoint_naming`` with ``total_limit=2``; otherwise all saves go to one folder.
    """

    name: str
    exact: bool
    numbered: bool

    def live(self, run: Path, seed: int, workers: int, meter: Meter) -> None:
        logging.getLogger("accelerate").setLevel(logging.ERROR)  # it tells of each folder that makes room
        newest, _, torn = self._newest(run, seed)
        for folder in torn:  # save_state refuses a number that is there already
            shutil.rmtree(folder)
        parts = self._build(run, seed, workers)
        if newest is not None:
            parts.accelerator.load_state(str(newest))
            parts.accelerator.project_configuration.iteration = parts.position.step
        while parts.position.step < STEPS:
            epoch, done = divmod(parts.position.step, len(parts.loader))
            if self.exact:
                parts.loader.set_epoch(epoch)
            loader = parts.accelerator.skip_first_batches(parts.loader, done) if done else parts.loader
            for x, y in loader:
                parts.accelerator.backward(functional.cross_entropy(parts.model(x), y))
                parts.optimizer.step()
                parts.optimizer.zero_grad()
                parts.position.step += 1
                meter.begin()
                parts.accelerator.save_state(None if self.numbered else str(run / "state"))
                meter.end()
                if parts.position.step == STEPS:
                    break

    def look(self, run: Path, whole: Path) -> State:
        _, step, torn = self._newest(run, 0)
        leftovers = frozenset(str(path.relative_to(run)) for path in run.rglob(".tmp*"))
        return State(step, frozenset(mark(folder) for folder in torn), leftovers)

    def differences(self, run: Path, whole: Path) -> list[str]:
        """The last weights."""
        return differing(iter([self._states(whole)[0] / "model.safetensors"]), run, whole)

    def _states(self, run: Path) -> list[Path]:
        """Newest first."""
        found = run.glob("checkpoints/checkpoint_*") if self.numbered else run.glob("state")
        return sorted(found, key=lambda path: int(path.name.partition("_")[2] or 0), reverse=True)

    def _newest(self, run: Path, seed: int) -> tuple[Path | None, int, list[Path]]:
        """The newest state that loads with all its files, its step, and those newer ones that do not."""
        parts, torn = self._build(run, seed, 0), []
        for folder in self._states(run):
            try:
                parts.accelerator.load_state(str(folder))
            except TORN:
                torn.append(folder)
                continue
            if {path.name for path in folder.iterdir()} >= FILES:
                return folder, parts.position.step, torn
            torn.append(folder)
        return None, 0, torn

    def _build(self, run: Path, seed: int, workers: int) -> Parts:
        set_seed(seed)
        limit = {"automatic_checkpoint_naming": True, "total_limit": 2} if self.numbered else {}
        accelerator = Accelerator(
            cpu=True,
            project_config=ProjectConfiguration(project_dir=str(run), **limit),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=self.exact),
        )
        fixed = torch.Generator().manual_seed(seed)
        data = TensorDataset(
            torch.randn(ROWS, WIDTH, generator=fixed), torch.randint(CLASSES, (ROWS,), generator=fixed)
        )
        inner = (nn.Linear(WIDTH, INNER), nn.GELU(), nn.Dropout(0.1), nn.Linear(INNER, INNER), nn.GELU())
        model = nn.Sequential(*inner, nn.Linear(INNER, CLASSES))
        own = torch.Generator() if self.exact else None
        loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, generator=own)
        position = Position()
        accelerator.register_for_checkpointing(position)
        model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), loader)
        return Parts(accelerator, model, optimizer, loader, position)
