"""The fourth task of WxC-Bench (Shinde 2024, arXiv:2412.02780): gridded forecasts of HRRR with the discussions that the
Storm Prediction Center wrote about them.

::

    metadata.csv            file_name,text
    hrrr.t00z.….grib2 …     the files it names, one time each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from sensorium.config import Section
from sensorium.data.fields import channels, cubes, splits, varmap
from sensorium.data.fields.composing import Done
from sensorium.data.fields.grids import Wish
from sensorium.data.fields.importing import Box, Sides
from sensorium.data.fields.joining import table
from sensorium.data.fields.places import time_text
from sensorium.data.fields.tree import SPLITS
from sensorium.data.fields.writing import Progress, Writer, new_tree, require_place
from sensorium.data.readers.native import leaves
from sensorium.errors import DataError

METADATA = "metadata.csv"


class Options(Section):
    """What is imported, and how."""

    source: str = Field(description="Folder of metadata.csv and the files that it names.")
    variables: str = Field("hrrr", description="Preset or map.yaml.")
    grid: Sides = Field((64, 64), description="Rows x columns onto which maps are brought.")
    bbox: Box | None = Field(None, description="West, south, east, north, degrees.")
    question: str = Field("Discuss the severe weather that this forecast holds.", description="The text of all.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share for validation.")
    block_days: float = Field(10.0, gt=0, description="Days of a block of time that stays together.")
    gap_hours: float = Field(48.0, ge=0, description="Between samples of training and validation.")
    seed: int = Field(0, ge=0, description="Other numbers give other blocks.")


@dataclass(frozen=True)
class _Row:
    """A file, opened, and its text."""

    cube: cubes.Cube
    text: str


def write(target: Path, options: Options, *, overwrite: bool = False, progress: Progress | None = None) -> Done:
    """Import into a new tree of one time a field (``data.time_policy: repeat``). Raises ConfigError and DataError
    before the folder appears, and DiskError."""
    require_place(target, overwrite=overwrite)
    folder = Path(options.source).expanduser()
    wanted = varmap.load(options.variables)
    rows = _rows(folder, options, wanted)
    times = [row.cube.times[0] for row in rows]
    spans = [(time, time) for time in times]
    state = splits.by_time(spans, options.block_days, options.val_fraction, options.gap_hours, options.seed)
    notes = [note for row in rows for note in row.cube.notes]
    if wanted.approximate:
        notes.append(f"the channels of {options.variables} are approximate: they stand for those of merra2-160")
    if dropped := int((state == splits.DROPPED).sum()):
        notes.append(f"{dropped:,} are left out: less than {options.gap_hours:g} hours from one of validation")
    names = tuple(wanted.channels)
    size = len(rows) * (len(names) * int(np.prod(options.grid)) * 4 + 2048)
    with new_tree(target, size, overwrite=overwrite) as tree:
        writer = Writer(tree, names, channels.STATIC_8[4:])
        for number, (row, kind) in enumerate(zip(rows, state, strict=True), start=1):
            if kind in (splits.TRAIN, splits.VAL):
                _add(writer, SPLITS[int(kind)], row, options.question)
            if progress is not None:
                progress(number, len(rows))
        writer.finish({"set": options.variables, "approximate": wanted.approximate, "source": "WxC-Bench task 4"})
    counts: Mapping[str, int] = {split: len(some) for split, some in writer.entries.items()}
    return Done(counts, dict(writer.numbers), tuple(dict.fromkeys(notes)))


def _rows(folder: Path, options: Options, wanted: varmap.VariableMap) -> Sequence[_Row]:
    """Every row of the table with its file, whose channels were found. Raises DataError naming the row."""
    path = folder / METADATA
    found = []
    for number, row in enumerate(table(path)):
        name, text = row.get("file_name"), row.get("text")
        if not name or not text or not text.strip():
            raise DataError(f"{path}: row {number}: expected file_name and text")
        if leaves(name):
            raise DataError(f"{path}: row {number}: {name!r} leaves the folder")
        if not (folder / name).exists():
            raise DataError(f"{path}: row {number}: {folder / name} is missing")
        cube = cubes.gather([folder / name], wanted, Wish(options.bbox, options.grid), {})
        if len(cube.times) != 1:
            raise DataError(f"{folder / name}: {len(cube.times)} times; expected one")
        found.append(_Row(cube, text))
    if not found:
        raise DataError(f"{path}: holds no rows")
    return found


def _add(writer: Writer, split: str, row: _Row, question: str) -> None:
    cube = row.cube
    values = cube.read(0)
    if np.isnan(values).any():
        raise DataError(f"{time_text(cube.times[0])}: parts of the map are not measured; name a smaller bbox")
    time = time_text(cube.times[0])
    writer.entry(
        split,
        {
            "climate_file": writer.field(split, values[None]),
            "text": question,
            "target": row.text.strip(),
            "lat": [round(float(one), 5) for one in cube.lat[[0, -1]]],
            "lon": [round(float(one), 5) for one in cube.lon[[0, -1]]],
            "time": [time],
            "group": time[:10],
        },
    )
