"""The splits of a `climate_text` run: opened, named, normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorium.config import digest
from sensorium.data.fields import demo, tree
from sensorium.data.fields.tree import Entry
from sensorium.data.files import cache_folder
from sensorium.engine.contract import Host, Sources
from sensorium.engine.settings import RunConfig
from sensorium.errors import DataError
from sensorium.families.climate_text import scoring
from sensorium.families.climate_text.data import DataConfig, EvalSource, Inputs, Part, TrainSource, measured, open_part
from sensorium.families.climate_text.data import texts as texts_of
from sensorium.families.climate_text.encoders import FieldFacts, own_scalers
from sensorium.families.climate_text.llm import open_tokenizer
from sensorium.families.climate_text.task import sections

Opener = Callable[[Path, DataConfig, Sequence[str] | None], Part]
"""Opens a split as ``open_part`` does."""
_FORMAT = 1  # of the demonstration data; a change makes older ones unused


def sources(config: RunConfig, host: Host, opened: Opener = open_part) -> Sources:
    """Read the indices and the first field of each split, which ``opened`` opens. Raises ConfigError and DataError."""
    model, data = sections(config)
    for note in model.notes():
        host.say(note)
    texts = texts_of(open_tokenizer(model), data)  # say now what cannot be had, not after the data were read
    scalers = own_scalers(model)
    folders = _folders(data, host)
    train = opened(folders["train"], data, None)
    kept = tree.scalers(train.folder) if train.load is tree.load else None  # of the files, not of what is made of them
    scalers = scalers or kept or measured(train)
    inputs = Inputs(data, texts, scalers, model.climate_dropout)
    plain = Inputs(data, texts, scalers)
    usual = scoring.majority(asked(entry) for entry in train.entries)
    held = {
        split: EvalSource(
            opened(folders[split], data, train.names), plain, answers=data.evaluation.answers, usual=usual
        )
        for split in ("val", "test")
        if split in folders
    }
    for split, part in {"train": train, **{name: source.part for name, source in held.items()}}.items():
        _say(host, split, part)
    _require_apart(train, {split: source.part for split, source in held.items()})
    return Sources(TrainSource(train, inputs), held.get("val"), held.get("test"))


def facts(config: RunConfig, found: Sources) -> dict[str, Any]:
    """What use needs of the data: channels and what texts call them, scalers, sizes of a field."""
    del config
    assert isinstance(found.train, TrainSource)
    part, inputs = found.train.part, found.train.inputs
    field = inputs.climate(part, 0)["field"]
    shape = FieldFacts(channels=len(part.names), times=len(field), static=len(part.layout.static))
    return {
        "fields": shape.plain(),
        "sides": list(field.shape[-2:]),
        "names": list(part.names),
        "static": list(part.layout.static),
        "labels": dict(part.layout.labels),
        "units": dict(part.layout.units),
        "approximate": part.layout.approximate,
        "scalers": inputs.scalers.plain(),
    }


def asked(entry: Entry) -> tuple[str, Mapping[str, Any]]:
    """Kind of an entry's question, empty for free text, and what is true of its field."""
    known = entry.facts or {}
    return str(known.get("asked", "")), known


def _folders(data: DataConfig, host: Host) -> dict[str, Path]:
    if data.demo is None:
        given = {"train": data.train_path, "val": data.val_path, "test": data.test_path}
        return {split: Path(path).expanduser() for split, path in given.items() if path is not None}
    root = cache_folder(f"climate-demo-{_FORMAT}-{digest(data.demo)[:12]}")
    if host.rank == 0 and not (root / tree.CHANNELS).is_file():
        with host.progress("made-up weather", data.demo.num_samples) as advance:
            try:
                demo.write(root, data.demo, progress=advance)
            except DataError:  # another program may have made it at the same time
                if not (root / tree.CHANNELS).is_file():
                    raise
    host.barrier()
    return {split: root / split for split in tree.SPLITS}


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
