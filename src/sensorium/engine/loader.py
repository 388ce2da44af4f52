"""Workers, prefetch and the bad-sample policy. Holds no position: what to load comes from order.py."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader, Dataset

from sensorium.engine.contract import Batch, Example, Source
from sensorium.engine.order import AnyOrder, Share, rows_at, stand_in
from sensorium.engine.settings import Loader
from sensorium.errors import DataError


@dataclass(frozen=True)
class Fetched:
    """A sample, or why there is none. Errors travel as values: a worker would bury them in its own traceback."""

    index: int
    example: Example | None
    problems: tuple[str, ...]


class _Samples(Dataset[Fetched]):
    def __init__(self, source: Source, skip: bool, attempts: int) -> None:
        self.source, self.skip, self.attempts = source, skip, attempts

    def __getitem__(self, item: tuple[int, int]) -> Fetched:
        index, seed = item
        problems: list[str] = []
        for attempt in range(self.attempts):
            try:
                return Fetched(index, self.source.example(index, seed), tuple(problems))
            except DataError as error:
                problems.append(str(error))
                if not self.skip:
                    break
                index = stand_in(self.source, index, seed, attempt)
        return Fetched(index, None, tuple(problems))


class _Collate:
    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, fetched: Sequence[Fetched]) -> tuple[Batch | None, list[str]]:
        problems = [problem for one in fetched for problem in one.problems]
        examples = [one.example for one in fetched if one.example is not None]
        if len(examples) < len(fetched):
            return None, problems
        batch = self.source.collate(examples)
        batch["index"] = torch.tensor([one.index for one in fetched])
        return batch, problems


def _start_worker(_: int) -> None:
    """Signals are the trainer's business, also those that a scheduler sends to all processes of a job: it needs its
    workers for the step that it finishes. A worker ends when the trainer says so, and at once when that was killed: its
    copies of the trainer's connections would keep the other processes of the run waiting."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    _prctl_pr_set_pdeathsig(signal.SIGKILL)


def _obey(trainer: int) -> None:
    """End on a SIGTERM of the trainer, which sends it to workers that did not end by themselves."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


class Batches:
    """Iterates over the batches of the given rows; counts the samples that had to be replaced."""

    def __init__(self, source: Source, rows: Any, settings: Loader, *, replaced: int = 0) -> None:
        self.settings, self.replaced = settings, replaced
        self.news: list[str] = []
        skip = settings.bad_samples == "skip"
        self._loader = DataLoader(
            _Samples(source, skip, settings.max_bad + 1),
            batch_sampler=rows,
            num_workers=settings.workers,
            collate_fn=_Collate(source),
            worker_init_fn=_start_worker,
            prefetch_factor=settings.prefetch if settings.workers else None,
            pin_memory=torch.cuda.is_available() and settings.pin_memory is not False,
            # An own generator: the loader's base seed must not be drawn from the global one.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch, problems in self._loader:
            self.replaced += len(problems)
            self.news += problems
            if batch is None or (problems and self.replaced > self.settings.max_bad):
                skips = self.settings.bad_samples == "skip"
                many = f" ({self.replaced} bad samples; loader.max_bad is {self.settings.max_bad})" * skips
                advice = "" if skips else "; mend or remove it, or set loader.bad_samples=skip"
                raise DataError(f"{problems[-1]}{many}{advice}")
            yield batch


class TrainingRows:
    """The rows of every micro-batch of one process, from step ``first`` up to step ``end``."""

    def __init__(self, order: AnyOrder, share: Share, rank: int, first: int, end: int) -> None:
        self.order, self.share, self.rank, self.first, self.end = order, share, rank, first, end

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.end):
            for micro in range(self.share.micro_batches):
                yield rows_at(self.order, self.share.positions(step, micro, self.rank))

    def __len__(self) -> int:
        return (self.end - self.first) * self.share.micro_batches
