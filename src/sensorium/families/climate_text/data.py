"""From fields and texts to batches: the data of the family `climate_text`.

Legend: B rows, T times, C channels, X static fields, H rows of the map from the south, W columns, S tokens.

A batch holds ``field`` ``[B, T, C, H, W]``, ``static`` ``[B, X, H, W]`` and ``climatology`` ``[B, C, H, W]``, all
normalised here in fp32 (neutral zeros where a file has none, said by ``static_given`` and ``climatology_given`` ``[B]``
bool); ``lat`` ``[B, H]`` and ``lon`` ``[B, W]`` degrees; ``day_hour`` ``[B, 4]``, cos and sin of day and hour, zeros
where the time is not known; ``input_time`` and ``lead_time`` ``[B]`` hours; ``field_given`` ``[B]`` bool, false where
the text has to do alone. ``input_ids`` ``[B, S]`` int64 is the prompt, the target and its end, padded on the right;
``attention_mask`` and ``target_mask`` ``[B, S]`` bool: what is no padding, and what is to be predicted. ``groups``
``[B]`` int64: entries that hang together.

Where a frozen encoder's tokens are kept, ``climate_tokens`` ``[B, N, D]`` with ``token_lat`` and ``token_lon``
``[B, N]`` stand in place of field, static fields, climatology, positions and times.

A batch of an evaluation also holds ``row`` and ``control`` ``[B]`` int64 and ``answered`` ``[B]`` bool, see
``EvalSource``, and ``candidates``, see ``ranking.pack``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sensorium.config import Section
from sensorium.data.fields import channels, places, samples, tree
from sensorium.data.fields.channels import Normal, Scalers
from sensorium.data.fields.demo import Options as Demo
from sensorium.data.fields.samples import Loader, TimePolicy
from sensorium.data.fields.tree import Entry, Layout
from sensorium.engine.contract import Batch, Mix
from sensorium.engine.seeds import derive, generator
from sensorium.errors import DataError
from sensorium.families.climate_text import ranking
from sensorium.families.climate_text.controls import CONTROLS, Control, others
from sensorium.families.climate_text.prompts import Texts

_STACKED = (
    *("field", "static", "climatology", "lat", "lon", "day_hour"),
    *("climate_tokens", "token_lat", "token_lon"),  # of fields that were encoded before
)


class Tokens(Protocol):
    """Gives what a frozen encoder made of a field; token_cache.py."""

    def climate(self, part: Part, number: int) -> dict[str, Any]: ...


class EvaluationConfig(Section):
    """What is looked at after training, besides the loss."""

    answers: int | None = Field(
        300, ge=1, description="So many samples, spread evenly, are answered, under each control; null: all."
    )
    ranked: int = Field(
        100, ge=0, description="Of these, so many are also asked which closed answer is likeliest; 0: none."
    )
    max_new_tokens: int = Field(64, ge=1, le=4096, description="Tokens of an answer at most.")
    maps: int = Field(16, ge=0, le=100, description="Samples that the report shows.")


class DataConfig(Section):
    """Where fields and texts come from, and how they are read."""

    train_path: str = Field("data/training/train", description="Folder of index.json and the files of training.")
    val_path: str | None = Field("data/training/val", description="Likewise for validation; null: none.")
    test_path: str | None = Field(None, description="Likewise for a test after training; null: none.")
    time_policy: TimePolicy = Field(
        "exact", description="exact: two times; repeat: one, taken twice; pairs: three or more, two by two."
    )
    variables: list[str] | str | None = Field(
        None, description="Channels for the model, a list or the name of a set; null: those of the training data."
    )
    fill_missing: Literal["error", "mean"] = Field(
        "error", description="A channel that a file lacks: refused, or taken as its mean everywhere."
    )
    departures: bool = Field(
        False,
        description="Read how far a field departs from its climatology, by the spread of such departures, in place of "
        "the field: for an encoder that begins from nothing. Every field needs its climatology then.",
    )
    strict_inputs: bool = Field(False, description="Refuse files without positions instead of assuming some.")
    max_length: int = Field(512, ge=8, le=1_000_000, description="Tokens of prompt and target together, at most.")
    too_long: Literal["raise", "truncate"] = Field("raise", description="What becomes of longer ones.")
    prompt_style: Literal["plain", "chat"] = Field(
        "plain", description="The text as it is, or in the language model's own form of a conversation."
    )
    cache: bool = Field(True, description="Keep the tokens of a frozen climate encoder instead of encoding again.")
    demo: Demo | None = Field(
        None, description="In place of the three paths: made-up weather, made into the cache folder (the keys below)."
    )
    evaluation: EvaluationConfig = EvaluationConfig()


@dataclass(frozen=True)
class Part:
    """One split on the disk. ``load`` opens a field, ``names`` are the channels that the model takes, in its order."""

    folder: Path
    entries: tuple[Entry, ...]
    layout: Layout
    names: tuple[str, ...]
    load: Loader = tree.load

    def sample(self, number: int) -> samples.Sample:
        return samples.read(self.folder, self.entries[number], self.layout, self.load)

    @property
    def groups(self) -> np.ndarray:
        """``[N]`` numbers of the groups; an entry without one is alone."""
        numbers: dict[tuple[str, object], int] = {}
        keys = [("group", one.group) if one.group else ("entry", n) for n, one in enumerate(self.entries)]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

    @property
    def fingerprint(self) -> str:
        """Of the entries, their channels, and the sizes of their files. Not of the bytes: a test part stays unread."""
        digest = hashlib.sha256(json.dumps([self.names, self.layout.names, self.layout.static]).encode())
        for entry in self.entries:
            digest.update(entry.model_dump_json().encode())
        for name in sorted({name for entry in self.entries for name in entry.files}):
            path = self.folder / name
            digest.update(json.dumps([name, path.stat().st_size if path.is_file() else None]).encode())
        return digest.hexdigest()


def open_part(folder: Path, data: DataConfig, names: Sequence[str] | None = None) -> Part:
    """Read the index of a split. ``names``: the channels that the model takes; None: as ``data.variables`` says, else
    those of the first field. Raises DataError and ConfigError."""
    entries = tuple(tree.read_index(folder))
    layout = tree.layout(folder)
    if names is None and data.variables is not None:
        names = channels.names_of(data.variables)
    if names is None:
        names = layout.of(entries[0], tree.load(folder / entries[0].climate_file).shape[1])
    return Part(folder, entries, layout, tuple(names))


@dataclass(frozen=True)
class Inputs:
    """How entries become arrays. ``dropout``: share of training samples whose field is withheld; ``tokens``: of fields
    that were encoded before."""

    data: DataConfig
    texts: Texts
    scalers: Scalers
    dropout: float = 0.0
    tokens: Tokens | None = None

    def seen(self, part: Part, number: int) -> dict[str, Any]:
        """The part of an example that is a field: its tokens, where they are kept, or itself. Raises DataError."""
        return self.climate(part, number) if self.tokens is None else self.tokens.climate(part, number)

    def climate(self, part: Part, number: int) -> dict[str, Any]:
        """A field with everything that an encoder gets. Raises DataError naming the file."""
        path = part.folder / part.entries[number].climate_file
        return self.of_sample(part.sample(number), part.names, part.layout.static, path)

    def of_sample(
        self, found: samples.Sample, names: Sequence[str], static_names: Sequence[str], path: Path
    ) -> dict[str, Any]:
        """The same of an opened field: the channels ``names``; ``static_names`` are those of its static fields. Raises
        DataError, which begins with ``path``."""
        try:
            if found.assumed and self.data.strict_inputs:
                raise DataError("has no lat and lon; give both, or set data.strict_inputs to false")
            samples.require_times(found.field.shape[0], self.data.time_policy)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        rows = rows_of(found.names, names, path, fill=self.data.fill_missing == "mean")
        departure = self.scalers.departure
        field_TCHW = (
            _taken(departing(found, path), rows, names, departure)
            if departure.names
            else _taken(found.field, rows, names, self.scalers.field)
        )
        if self.data.time_policy == "repeat":
            field_TCHW = field_TCHW.expand(2, -1, -1, -1)
        static, climatology, time = found.static, found.climatology, found.times[-1] if len(found.times) else None
        H, W, X, C = *field_TCHW.shape[-2:], len(static_names), len(names)
        return {
            "field": field_TCHW.contiguous(),
            "static": torch.zeros(X, H, W)
            if static is None
            else _taken(static, range(X), static_names, self.scalers.static),
            "static_given": static is not None,
            "climatology": torch.zeros(C, H, W)
            if climatology is None
            else _taken(climatology, rows, names, self.scalers.climatology),
            "climatology_given": climatology is not None,
            "lat": torch.from_numpy(found.lat.copy()),
            "lon": torch.from_numpy(found.lon.copy()),
            "day_hour": torch.from_numpy(places.time_code(time)),
            "input_time": found.input_time,
            "lead_time": found.lead_time,
            "field_given": True,
        }

    def text(self, part: Part, number: int) -> dict[str, Any]:
        """The part of an example that is text. Raises DataError for one that is too long."""
        entry = part.entries[number]
        try:
            prompt, target = self.texts.encode(entry.text, entry.target)
        except DataError as error:
            raise DataError(f"{part.folder / tree.INDEX}: entry {number}: {error}") from None
        return {"prompt_ids": prompt, "target_ids": target}


def departing(found: samples.Sample, path: Path) -> Tensor:
    """A field minus its climatology, ``[T, C, H, W]`` in the channels' units. Raises DataError where it has none."""
    require_usual(found.climatology, path)
    assert found.climatology is not None
    return found.field - found.climatology


def require_usual(climatology: object, path: Path) -> None:
    """Raise DataError unless there is what a field departs from: a climatology, or its name."""
    if climatology is None:
        raise DataError(
            f"{path}: has no climatology, which data.departures is about; name its climatology_file in the index, or "
            "train with data.departures=false"
        )


def rows_of(found: Sequence[str], wanted: Sequence[str], path: Path, *, fill: bool) -> list[int]:
    """For each wanted channel where it stands in the file, -1 for one to be filled. Raises DataError."""
    place = {name: number for number, name in enumerate(found)}
    if not fill and (lacking := [name for name in wanted if name not in place]):
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise DataError(
            f"{path}: lacks the channels {', '.join(lacking[:5])}{more}; set data.fill_missing to mean, or take others"
        )
    return [place.get(name, -1) for name in wanted]


def _taken(values: Tensor, rows: Sequence[int], names: Sequence[str], normal: Normal) -> Tensor:
    """``[..., C, H, W]`` of the channels ``names``, normalised in fp32; what a file lacks is zero, its mean."""
    there = [number for number, row in enumerate(rows) if row >= 0]
    mean, std = (torch.from_numpy(one)[:, None, None] for one in normal.of([names[number] for number in there]))
    taken = values.new_zeros(*values.shape[:-3], len(rows), *values.shape[-2:])
    taken[..., there, :, :] = (values[..., [rows[number] for number in there], :, :] - mean) / std
    return taken


@dataclass(eq=False)
class TrainSource:
    """The entries of a split, their fields withheld now and then (``Inputs.dropout``)."""

    part: Part
    inputs: Inputs
    groups: np.ndarray | None = None
    mix: Mix | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = self.part.fingerprint
        self._groups = self.part.groups

    def __len__(self) -> int:
        return len(self.part.entries)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        given = generator(seed, "climate_dropout").random() >= self.inputs.dropout
        climate = self.inputs.seen(self.part, index)
        return {
            **climate,
            **self.inputs.text(self.part, index),
            "field_given": bool(given),
            "groups": int(self._groups[index]),
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(examples, self.inputs.texts.pad)


@dataclass(eq=False)
class EvalSource:
    """The entries of a split, once for each control: with their own field, with that of another entry, with none.

    Sample ``index`` is entry ``row = index % N`` under control number ``index // N`` of ``controls``. Whose field the
    control ``shuffled`` takes follows from ``seed`` alone. ``answers``: so many entries, spread evenly, are to be
    answered; None: all. ``ranked``: so many of those, of which each closed answer is judged, too. ``usual``: the
    commonest value of each fact in training, by kind of question and fact.
    """

    part: Part
    inputs: Inputs
    controls: tuple[Control, ...] = CONTROLS
    seed: int = 0
    answers: int | None = None
    ranked: int = 0
    usual: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    groups: np.ndarray | None = None
    mix: Mix | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = self.part.fingerprint
        self._groups = self.part.groups
        wanted = "shuffled" in self.controls
        seed = derive(self.seed, "shuffled")
        self.partner = others(self.part.entries, seed) if wanted else np.arange(len(self.part.entries))
        self.answered = spread(self.rows, self.answers)
        labels = list(self.part.layout.labels.values())
        closed = {row: ranking.closed(self.part.entries[row], labels) for row in np.flatnonzero(self.answered).tolist()}
        rows = [row for row, answers in closed.items() if answers]
        chosen = spread(len(rows), self.ranked) if rows and self.ranked else [False] * len(rows)
        self.closed = {row: closed[row] for row, taken in zip(rows, chosen, strict=True) if taken}

    @property
    def rows(self) -> int:
        """Entries, N."""
        return len(self.part.entries)

    def __len__(self) -> int:
        return self.rows * len(self.controls)

    def example(self, index: int, seed: int) -> Mapping[str, Any]:
        del seed
        control, row = divmod(index, self.rows)
        kind = self.controls[control]
        climate = self.inputs.seen(self.part, int(self.partner[row]) if kind == "shuffled" else row)
        return {
            **climate,
            **self.inputs.text(self.part, row),
            "field_given": kind != "absent",
            "groups": int(self._groups[row]),
            "row": row,
            "control": CONTROLS.index(kind),
            "answered": bool(self.answered[row]),
            "candidates": [self.inputs.texts.target(text) for text in self.closed.get(row, {}).values()],
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = collate(examples, self.inputs.texts.pad)
        for name in ("row", "control", "answered"):
            batch[name] = torch.tensor([one[name] for one in examples])
        batch["candidates"] = ranking.pack([one["candidates"] for one in examples])
        return batch


def spread(count: int, wanted: int | None) -> np.ndarray:
    """``[count]`` bool: so many of them, evenly spread; None: all."""
    chosen = np.zeros(count, np.bool_)
    chosen[np.linspace(0, count - 1, min(count, wanted or count)).round().astype(int)] = True
    return chosen


def collate(examples: Sequence[Mapping[str, Any]], pad: int) -> Batch:
    """Examples side by side, texts padded on the right. Raises DataError for fields of different shapes."""
    stacked = [name for name in _STACKED if name in examples[0]]
    shapes = {tuple(one[stacked[0]].shape) for one in examples}
    if len(shapes) > 1:
        some = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise DataError(f"fields of different shapes in one batch: {some}; a data set must have one shape")
    batch: Batch = {name: torch.stack([one[name] for one in examples]) for name in stacked}
    for name in ("static_given", "climatology_given", "field_given"):
        if name in examples[0]:
            batch[name] = torch.tensor([bool(one[name]) for one in examples])
    for name in ("input_time", "lead_time"):
        if name in examples[0]:
            batch[name] = torch.tensor([float(one[name]) for one in examples], dtype=torch.float32)
    batch["groups"] = torch.tensor([int(one["groups"]) for one in examples])
    length = max(len(one["prompt_ids"]) + len(one["target_ids"]) for one in examples)
    batch["input_ids"] = torch.full((len(examples), length), pad)
    batch["attention_mask"] = torch.zeros(len(examples), length, dtype=torch.bool)
    batch["target_mask"] = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, one in enumerate(examples):
        prompt, target = one["prompt_ids"], one["target_ids"]
        end = len(prompt) + len(target)
        batch["input_ids"][row, :end] = torch.tensor([*prompt, *target])
        batch["attention_mask"][row, :end] = True
        batch["target_mask"][row, len(prompt) : end] = True
    return batch


def texts(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Texts:
    """How the texts of a data set become tokens. Raises ConfigError."""
    return Texts(tokenizer, data.prompt_style, data.max_length, cut=data.too_long == "truncate")
