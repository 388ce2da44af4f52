"""The splits of a `climate_text` run: opened, named, normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sensorium.config import digest
from sensorium.data import features
from sensorium.data.fields import channels, demo, tree
from sensorium.data.fields.channels import Scalers
from sensorium.data.files import cache_folder
from sensorium.engine.contract import Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text import scoring
from sensorium.families.climate_text.controls import asked
from sensorium.families.climate_text.data import (
    DataConfig,
    EvalSource,
    Inputs,
    Part,
    TrainSource,
    open_part,
    require_usual,
)
from sensorium.families.climate_text.data import texts as texts_of
from sensorium.families.climate_text.encoders import (
    FieldFacts,
    Trained,
    open_encoder,
    own_channels,
    trained_encoder,
    trains_encoder,
)
from sensorium.families.climate_text.grid_vit import layout
from sensorium.families.climate_text.llm import open_tokenizer, precision_notes
from sensorium.families.climate_text.normals import departures_of, measured
from sensorium.families.climate_text.task import FROZEN_DTYPES, sections
from sensorium.families.climate_text.token_cache import TokenStore, cached

Opener = Callable[[Path, DataConfig, Sequence[str] | None], Part]
"""Opens a split as ``open_part`` does."""
_FORMAT = 1  # of the demonstration data; a change makes older ones unused


def sources(config: RunConfig, host: Host, opened: Opener = open_part) -> Sources:
    """Read the indices and the first field of each split, which ``opened`` opens. Raises ConfigError and DataError."""
    model, data = sections(config)
    for note in model.notes():
        host.say(note)
    texts = texts_of(open_tokenizer(model), data)  # say now what cannot be had, not after the data were read
    for note in precision_notes(model, config.train.precision):
        host.say(note)
    trained = trained_encoder(model)
    folders = _folders(data, host)
    train = opened(folders["train"], data, _names(config, trained))
    kept = tree.scalers(train.folder) if train.load is tree.load else None  # of the files, not of what is made of them
    scalers = (None if trained is None else trained.scalers) or kept or measured(train)
    others = {split: opened(folders[split], data, train.names) for split in ("val", "test") if split in folders}
    if data.departures or scalers.departure.names:
        scalers = _with_departures(trained, scalers, (train, *others.values()))
    for split, part in {"train": train, **others}.items():
        _say(host, split, part)
    _require_apart(train, others)
    if model.climate_encoder == "grid_vit" and model.encoder_path is None:
        layout(model, *train.sample(0).field.shape[-2:])  # before a run is begun
    plain = Inputs(data, texts, scalers)
    for part in (train, *others.values()):
        _require_fit(part, plain)
    if data.cache and not trains_encoder(model):
        plain = replace(plain, tokens=_tokens(config, trained, plain, [train, *others.values()], host))
    usual = scoring.majority(asked(entry) for entry in train.entries)
    looked = data.evaluation
    held = {
        split: EvalSource(part, plain, answers=looked.answers, ranked=looked.ranked, usual=usual)
        for split, part in others.items()
    }
    inputs = replace(plain, dropout=model.climate_dropout)
    kind = TrainSource if model.contrastive_weight else SortableSource
    return Sources(kind(train, inputs), held.get("val"), held.get("test"))


@dataclass(eq=False)
class SortableSource(TrainSource):
    """Entries that do not meet in the loss, so that they may be sorted by the tokens of their texts."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict, init=False)  # by text and target

    def length(self, index: int) -> int:
        """Tokens of prompt and target, as a batch holds them; counted when they are first asked for."""
        entry, texts = self.part.entries[index], self.inputs.texts
        words = (entry.text, entry.target)
        if words not in self._counts:
            self._counts[words] = min(texts.count(*words), texts.length)
        return self._counts[words]


def _names(config: RunConfig, trained: Trained | None) -> Sequence[str] | None:
    """The channels that the encoder's weights read, in their order; None: any. Raises ConfigError where others are
    wanted."""
    model, data = sections(config)
    own = own_channels(model, trained)
    if own is not None and data.variables is not None and (wanted := channels.names_of(data.variables)) != own[0]:
        odd = sorted(set(wanted) ^ set(own[0]))
        more = f"; {odd[0]} is on one side only" if odd else ", in another order"
        raise ConfigError(f"data.variables are not the {len(own[0])} channels of the encoder{more}; leave it out")
    return None if own is None else own[0]


def _with_departures(trained: Trained | None, scalers: Scalers, parts: Sequence[Part]) -> Scalers:
    """For reading departures, measured on the first part. Raises ConfigError for weights that know fields as they are,
    DataError for the first field without a climatology, before a run is begun."""
    for part in parts:
        for entry in part.entries:
            require_usual(entry.climatology_file, part.folder / entry.climate_file)
    if trained is None:
        return replace(scalers, departure=departures_of(parts[0]))
    if not scalers.departure.names:
        raise ConfigError("data.departures is true, but the encoder's weights read fields as they are; leave it out")
    return scalers


def _require_fit(part: Part, inputs: Inputs) -> None:
    """Raise DataError for the first text that is too long, before a run is begun. A token has a byte at least, so that
    most need not be counted."""
    room = inputs.texts.length - inputs.texts.count("", "")
    for number, entry in enumerate(part.entries):
        if len(entry.text.encode()) + len(entry.target.encode()) > room:
            inputs.text(part, number)


def _tokens(
    config: RunConfig, trained: Trained | None, inputs: Inputs, parts: Sequence[Part], host: Host
) -> TokenStore:
    """Of all fields, encoded on the host's device; the encoder is gone afterwards."""
    model, _ = sections(config)
    encoder = open_encoder(model, field_facts(inputs, parts[0]), FROZEN_DTYPES[config.train.precision], trained)
    return cached(encoder, inputs, parts, features.default_root(), host)


def facts(config: RunConfig, found: Sources) -> dict[str, Any]:
    """What use needs of the data: channels and what texts call them, scalers, sizes of a field."""
    del config
    assert isinstance(found.train, TrainSource)
    part, inputs = found.train.part, found.train.inputs
    shape = field_facts(inputs, part)
    if isinstance(inputs.tokens, TokenStore):
        shape = replace(shape, token_width=inputs.tokens.width)
    return {
        "fields": shape.plain(),
        "sides": list(inputs.climate(part, 0)["field"].shape[-2:]),
        "names": list(part.names),
        "static": list(part.layout.static),
        "labels": dict(part.layout.labels),
        "units": dict(part.layout.units),
        "approximate": part.layout.approximate,
        "scalers": inputs.scalers.plain(),
    }


def field_facts(inputs: Inputs, part: Part) -> FieldFacts:
    """What the model must know of the fields of a split."""
    field = inputs.climate(part, 0)["field"]
    return FieldFacts(channels=len(part.names), times=len(field), static=len(part.layout.static))


def _folders(data: DataConfig, host: Host) -> dict[str, Path]:
    if data.demo is None:
        given = {"train": data.train_path, "val": data.val_path, "test": data.test_path}
        return {split: Path(path).expanduser() for split, path in given.items() if path is not None}
    root = _made(data.demo, host)
    held = data.demo.validation
    more = {"seed": data.demo.seed + 1, "num_samples": 2 * held, "val_fraction": 0.5}
    test = _made(data.demo.model_copy(update=more), host)
    host.barrier()
    return {"train": root / "train", "val": root / "val", "test": test / "val"}


def _made(options: demo.Options, host: Host) -> Path:
    """The demonstration data, made first where they are not there yet."""
    root = cache_folder(f"climate-demo-{_FORMAT}-{digest(options)[:12]}")
    if host.rank == 0 and not (root / tree.CHANNELS).is_file():
        with host.progress("made-up weather", options.num_samples) as advance:
            try:
                demo.write(root, options, progress=advance)
            except DataError:  # another program may have made it at the same time
                if not (root / tree.CHANNELS).is_file():
                    raise
    return root


def _say(host: Host, split: str, part: Part) -> None:
    host.say(f"{split}: {len(part.entries):,} samples in {part.folder}, {len(part.names)} channels")
    if part.sample(0).assumed:
        host.say(
            f"{split}: no lat and lon; positions are assumed (a grid of 0.5 x 0.625 degrees around 0 N 0 E), which a "
            "trained encoder takes for true"
        )
    if part.layout.approximate:
        host.say(f"{split}: the channels stand for those of merra2-160 approximately")


def _require_apart(train: Part, held: Mapping[str, Part]) -> None:
    """Raise DataError when what is held out is what is trained on. Files are compared by `sensorium data verify`."""
    for split, part in held.items():
        if part.folder.resolve() == train.folder.resolve():
            raise DataError(f"{split} and train are the same folder, {part.folder}; hold some samples out")
