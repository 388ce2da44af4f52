"""Data and losses of one's own: a class for the fields and samples of a split, and a method for the loss."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.data.fields import channels, tree
from sensorium.data.fields.tree import Entry
from sensorium.engine.contract import Batch, Family, Host, Output, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import CheckpointError, DataError, RunError
from sensorium.families.climate_text.data import DataConfig, Part
from sensorium.families.climate_text.sources import facts, sources
from sensorium.families.climate_text.task import ClimateTextTask, build

LOSS = "compute_loss"  # in the facts of a run that trains with a loss of its own: what it is known by


class ClimateTextDataset:
    """The samples of one split in ``folder``. What is overridden is used in training, validation and test alike.

    An entry of ``_load_samples`` is one of ``index.json`` (``data/fields/tree.py``); of its own format it may name any
    ``climate_file``, which ``_load_climate_data`` is given.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _load_climate_data(self, climate_file: str) -> torch.Tensor:
        """A field ``[T, C, H, W]`` in the units of its channels."""
        return tree.load(self.folder / climate_file)

    def _load_samples(self) -> list[dict[str, Any]]:
        """The entries of the split."""
        return tree.raw_entries(self.folder)


@dataclass(frozen=True)
class _Load:
    """``tree.Loader`` of a dataset. Raises DataError for what is no field."""

    dataset: ClimateTextDataset
    names: Mapping[Path, str]

    def __call__(self, path: Path) -> Tensor:
        found = self.dataset._load_climate_data(self.names[path])
        if not isinstance(found, Tensor) or found.ndim != 4 or not found.is_floating_point():
            kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"_load_climate_data({self.names[path]!r}): {kind}; expected a float tensor [T, C, H, W]")
        return found.float()


@dataclass(frozen=True)
class OwnPart(Part):
    """``own``: what the hooks are known by."""

    own: str = ""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint} {self.own}".encode()).hexdigest()


def own_family(family: Family, dataset: type[ClimateTextDataset], task: type[ClimateTextTask]) -> Family:
    """The family with these hooks in place of its own, where they differ. A run that has others than those it was begun
    with is refused."""
    loss = told_apart(task, ClimateTextTask, ("compute_loss",))

    def own_sources(config: RunConfig, host: Host) -> Sources:
        return sources(config, host, opener(dataset))

    def own_facts(config: RunConfig, found: Sources) -> dict[str, Any]:
        return facts(config, found) | ({LOSS: loss} if loss else {})

    def own_task(config: RunConfig, told: Mapping[str, Any]) -> ClimateTextTask:
        if told.get(LOSS, "") != loss:
            raise CheckpointError(
                "compute_loss is not the one that this run was begun with; put that one back, or begin a new run with "
                "these weights (train.warm_start)"
            )
        return task(build(config, told).model)

    return replace(family, sources=own_sources, facts=own_facts, task=own_task)


def opener(dataset: type[ClimateTextDataset]) -> Callable[[Path, DataConfig, Sequence[str] | None], Part]:
    """Opens splits with the hooks of a class."""
    own = told_apart(dataset, ClimateTextDataset, ("_load_climate_data", "_load_samples"))

    def opened(folder: Path, data: DataConfig, names: Sequence[str] | None) -> Part:
        found = dataset(folder)
        entries = tuple(_entries(found, bool(own)))
        layout = tree.layout(folder)
        load = _Load(found, {folder / one.climate_file: one.climate_file for one in entries}) if own else tree.load
        first = load(folder / entries[0].climate_file) if own or (names is None and data.variables is None) else None
        if names is None and data.variables is not None:
            names = channels.names_of(data.variables)
        if names is None:
            assert first is not None
            names = layout.of(entries[0], first.shape[1])
        if not own:
            return Part(folder, entries, layout, tuple(names), load)
        assert first is not None
        known = hashlib.sha256(first.contiguous().numpy().tobytes()).hexdigest()
        return OwnPart(folder, entries, layout, tuple(names), load, f"{own} {known}")

    return opened


def _entries(dataset: ClimateTextDataset, own: bool) -> list[Entry]:
    """Raises DataError. Of an own format, files need not lie in the folder."""
    if not own:
        return tree.read_index(dataset.folder)
    given = dataset._load_samples()
    if not isinstance(given, list) or not given:
        raise DataError(f"{dataset.folder}: _load_samples() gave no list of entries")
    found = []
    for number, content in enumerate(given):
        try:
            found.append(tree.read_entry(json.loads(json.dumps(content)), anywhere=True))
        except (DataError, TypeError) as error:
            raise DataError(f"{dataset.folder}: _load_samples(), entry {number}: {error}") from None
    return found


def told_apart(own: type, base: type, names: Sequence[str]) -> str:
    """What the methods are known by, where one of them differs from the base's in more than words; else empty."""
    texts = [(_text(getattr(own, name)), _text(getattr(base, name))) for name in names]
    if all(mine == theirs for mine, theirs in texts):
        return ""
    return hashlib.sha256(json.dumps([mine for mine, _ in texts]).encode()).hexdigest()


def _text(function: Callable[..., object]) -> str:
    """A method's code without comments and docstring."""
    try:
        tree_ = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # typed, not in a file
        return function.__qualname__
    body = tree_.body[0]
    assert isinstance(body, ast.FunctionDef)
    if ast.get_docstring(body) is not None:
        body.body = body.body[1:]
    body.returns, body.decorator_list = None, []
    for argument in body.args.args:
        argument.annotation = None
    return ast.unparse(body)


class OtherLoss(ClimateTextTask):
    """A model that was trained with a loss of its own, and is not to be trained with ours by mistake."""

    def forward(self, batch: Batch) -> Output:
        raise RunError(
            "this run trains with a compute_loss of its own: it goes on with the script that began it (--resume)"
        )


def build_known(config: RunConfig, told: Mapping[str, Any]) -> ClimateTextTask:
    """The task of the family itself; of a run with a loss of its own one that is for use alone."""
    task = build(config, told)
    return OtherLoss(task.model) if LOSS in told else task
