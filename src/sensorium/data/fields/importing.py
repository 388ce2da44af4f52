"""From gridded files (NetCDF, Zarr, GRIB, arrays) to the tree that training reads (see ``tree``).

A sample is a part of the map at two times. Its text is joined from a table (``text``), or computed from the field
(``targets`` templated): questions about the strongest departure from what is usual, with answers evenly spread.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from sensorium.config import Section
from sensorium.data.fields import channels, cubes, opening, splits, varmap
from sensorium.data.fields.grids import Wish
from sensorium.data.fields.places import parse_time
from sensorium.data.fields.splits import TRAIN, VAL, Crop
from sensorium.data.fields.tree import SPLITS
from sensorium.data.fields.usual import Usual, measure
from sensorium.data.grouping import draw
from sensorium.errors import DataError

Array = npt.NDArray[np.floating[Any]]

_COVERED = 0.5  # share of each channel that must be measured


def _sides(value: object) -> object:
    """Rows and columns from ``64x64``."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+)\s*[x,]\s*(\d+)", value)):
        return int(found[1]), int(found[2])
    return value


def _box(value: object) -> object:
    """Four numbers from ``-20,30,50,60``. Raises ValueError."""
    return tuple(float(one) for one in value.split(",")) if isinstance(value, str) else value


Sides = Annotated[tuple[int, int], BeforeValidator(_sides)]
Box = Annotated[tuple[float, float, float, float], BeforeValidator(_box)]


class Options(Section):
    """What is imported, and how."""

    source: str = Field(description="Files, a pattern such as data/*.nc, several with commas.")
    variables: str = Field("merra2-160", description="Preset (merra2-160, era5-wb2, hrrr) or map.yaml.")
    bbox: Box | None = Field(None, description="West, south, east, north, degrees.")
    grid: Sides | None = Field(None, description="Rows x columns onto which maps are brought.")
    times: str | None = Field(None, description="FROM/TO, both included; null: all.")
    dt_hours: float | None = Field(6.0, gt=0, description="Between the two times of a sample; null: neighbours.")
    crop: Sides | None = Field(None, description="Rows x columns of a sample; null: the whole map.")
    stride: Sides | None = Field(None, description="Between crops; null: half a crop.")
    climatology: Literal["none", "mean", "month"] = Field(
        "none", description="What is usual: of all times, or by month."
    )
    anomaly: bool = Field(False, description="Write departures from the usual, in standard deviations.")
    targets: Literal["none", "templated"] = Field("none", description="Compute texts from the field.")
    text: str | None = Field(None, description="Table of texts (.csv, .json, .jsonl), joined by time and place.")
    text_hours: float = Field(3.0, ge=0, description="A text belongs to the nearest time, at most so far away.")
    split: Literal["time", "region"] = Field("time", description="What validation has for itself.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share for validation.")
    block_days: float = Field(10.0, gt=0, description="Days of a block of time that stays together.")
    gap_hours: float = Field(48.0, ge=0, description="Between samples of training and validation.")
    max_samples: int | None = Field(None, ge=2, description="Entries at most, chosen at random.")
    filter_by_keys: dict[str, str | int] = Field({}, description="Which messages of GRIB files.")
    seed: int = Field(0, ge=0, description="Other numbers give other choices.")

    @model_validator(mode="after")
    def _possible(self) -> Options:
        if (self.targets == "templated") == (self.text is not None):
            raise ValueError("give either text (a table) or targets=templated: a sample needs words")
        if (self.anomaly or self.targets == "templated") and self.climatology == "none":
            raise ValueError("anomalies and templated targets need climatology=mean or climatology=month")
        for name, sides in (("grid", self.grid), ("crop", self.crop), ("stride", self.stride)):
            even = name != "stride"
            if sides is not None and not all(1 <= side <= 10_000 and not (even and side % 2) for side in sides):
                raise ValueError(f"{name}: expected {'even ' if even else ''}numbers of rows and columns")
        return self


@dataclass(frozen=True)
class Place:
    """A part of the map that samples are of. ``state``: of ``splits``; ``name``: what texts call it."""

    crop: Crop
    state: int
    name: str
    lat: Array
    lon: Array


@dataclass(frozen=True)
class Piece:
    """One field: two times and a place."""

    split: str
    steps: tuple[int, ...]
    place: int


@dataclass
class Import:
    """A cube made ready: which pieces of it are samples of which split, and what is usual."""

    options: Options
    cube: cubes.Cube
    places: list[Place]
    pieces: list[Piece]
    usual: Usual | None
    notes: list[str]

    def __post_init__(self) -> None:
        self.read = lru_cache(maxsize=8)(self.cube.read)
        table = varmap.load(self.options.variables).channels
        known = {name: channels.known(name) for name in self.cube.names}
        self.labels = tuple(
            table[name].label or (one.label if (one := known[name]) is not None else name) for name in self.cube.names
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The channels that are written."""
        return tuple(f"{name}_anomaly" for name in self.cube.names) if self.options.anomaly else self.cube.names

    def anomalies(self, piece: Piece) -> Array:
        """Departures ``[T, C, H, W]`` in standard deviations, NaN where they cannot be said."""
        assert self.usual is not None
        whole = [self.usual.anomaly(self.read(step), self.cube.times[step]) for step in piece.steps]
        return np.stack([self.cut(one, piece.place) for one in whole])

    def values(self, piece: Piece) -> npt.NDArray[np.float32] | None:
        """The field ``[T, C, H, W]`` that is written; None where too little of a channel was measured."""
        if self.options.anomaly:
            found = self.anomalies(piece)
        else:
            found = np.stack([self.cut(self.read(step), piece.place) for step in piece.steps])
        measured = np.isfinite(found)
        if (measured.mean((2, 3)) < _COVERED).any():
            return None
        if not measured.all():
            count = measured.sum((2, 3), keepdims=True)
            mean = np.where(measured, found, 0).sum((2, 3), keepdims=True) / count
            found = np.where(measured, found, 0.0 if self.options.anomaly else mean)
        return found.astype(np.float32)

    def climatology(self, piece: Piece) -> tuple[str, npt.NDArray[np.float32]] | None:
        """A name for it and ``[C, H, W]``; None where fields are anomalies already, or nothing is known."""
        if self.usual is None or self.options.anomaly:
            return None
        season = self.usual.season(self.cube.times[piece.steps[-1]])
        found = self.cut(self.usual.mean[season], piece.place)
        mean = np.nanmean(found, (1, 2), keepdims=True)
        return f"{piece.place:04d}_{season:02d}", np.where(np.isfinite(found), found, mean).astype(np.float32)

    def cut(self, values: Array, place: int) -> Array:
        """``[..., H, W]`` of a place."""
        crop = self.places[place].crop
        rows = values[..., crop.row : crop.row + crop.height, :]
        return rows[..., crop.columns(values.shape[-1])]


def prepare(options: Options) -> Import:
    """Open the files, cut and split. Raises ConfigError and DataError before anything is written."""
    table = varmap.load(options.variables)
    wish = Wish(options.bbox, options.grid)
    cube = cubes.gather(paths(options.source), table, wish, options.filter_by_keys)
    notes = list(cube.notes)
    if table.approximate:
        notes.append(f"the channels of {options.variables} are approximate: they stand for those of merra2-160")
    chosen = _within(cube, options.times)
    pairs = _pairs(cube, chosen, options.dt_hours)
    places = _places(cube, options)
    state = np.zeros(len(pairs), np.int64)
    if options.split == "time":
        spans = [(cube.times[first], cube.times[last]) for first, last in pairs]
        state = splits.by_time(spans, options.block_days, options.val_fraction, options.gap_hours, options.seed)
    pieces = [
        Piece(SPLITS[kind], pair, number)
        for pair, of_time in zip(pairs, state, strict=True)
        for number, place in enumerate(places)
        if (kind := int(of_time) if options.split == "time" else place.state) in (TRAIN, VAL)
    ]
    for split in SPLITS:
        if not any(piece.split == split for piece in pieces):
            raise DataError(
                f"no sample is left for {split}: {len(pairs)} pairs of times, {len(places)} places; give "
                "more times, or other block_days, gap_hours, val_fraction or split"
            )
    trained = sorted({step for piece in pieces if piece.split == "train" for step in piece.steps})
    usual = None
    if options.climatology != "none":
        usual = measure(cube.read, cube.times, trained, options.climatology)
    return Import(options, cube, places, pieces, usual, notes)


def paths(patterns: str) -> list[Path]:
    """The files of a pattern, or of several with commas. Raises DataError when one names nothing."""
    found: dict[Path, None] = {}
    for pattern in patterns.split(","):
        names = sorted(glob.glob(str(Path(pattern.strip()).expanduser()), recursive=True))  # noqa: PTH207
        if not names:
            raise DataError(f"{pattern.strip()}: no such file; kinds that can be read: {', '.join(opening.SUFFIXES)}")
        found |= dict.fromkeys(Path(name) for name in names)
    return list(found)


def _within(cube: cubes.Cube, wanted: str | None) -> list[int]:
    if wanted is None:
        return list(range(len(cube.times)))
    first, slash, last = wanted.partition("/")
    if not slash:
        raise DataError(f"times {wanted!r}: expected FROM/TO, such as 2020-01-01/2020-02-01")
    begin, end = parse_time(first), parse_time(last)
    found = np.flatnonzero((cube.times >= begin) & (cube.times <= end)).tolist()
    if not found:
        raise DataError(f"times {wanted}: the files have none between (they go on from {cube.times[0]})")
    return list(found)


def _pairs(cube: cubes.Cube, chosen: Sequence[int], hours: float | None) -> list[tuple[int, int]]:
    """Two steps for each sample, ``hours`` apart. Raises DataError when there are none."""
    if hours is None:
        pairs = list(pairwise(chosen))
    else:
        number = {cube.times[step]: step for step in chosen}
        apart = np.timedelta64(round(hours * 3600), "s")
        pairs = [(number[time - apart], step) for time, step in number.items() if time - apart in number]
    if not pairs:
        raise DataError(
            f"no two of {len(chosen)} times are {hours:g} hours apart; give another dt_hours (null: neighbours)"
            if hours is not None
            else "one time only; a sample needs two"
        )
    return pairs


def _places(cube: cubes.Cube, options: Options) -> list[Place]:
    H, W = len(cube.lat), len(cube.lon)
    step = float(np.median(np.diff(cube.lon)))
    closed = abs(W * step - 360) < step / 2
    if options.crop is not None and (options.crop[0] > H or options.crop[1] > W):
        raise DataError(f"crop {options.crop[0]}x{options.crop[1]}: the map has {H} x {W} points")
    if H % 2 or W % 2:
        raise DataError(f"the map has {H} x {W} points; both sides must be even")
    parts = splits.crops((H, W), options.crop, options.stride, closed)
    state = np.zeros(len(parts), np.int64)
    if options.split == "region":
        state = splits.by_place(parts, W, options.val_fraction, options.seed)
    places = []
    for part, kind in zip(parts, state, strict=True):
        columns = part.columns(W)
        lon = cube.lon[columns] + 360.0 * (columns < part.column)
        lat = cube.lat[part.row : part.row + part.height]
        places.append(Place(part, int(kind), _called(lat, lon), lat, lon))
    return places


def _called(lat: Array, lon: Array) -> str:
    """A place by its centre, whole degrees."""
    north, east = float(lat[[0, -1]].mean()), (float(lon[[0, -1]].mean()) + 180) % 360 - 180
    return f"the area around {abs(north):.0f}{'N' if north >= 0 else 'S'} {abs(east):.0f}{'E' if east >= 0 else 'W'}"


def thinned(rows: Sequence[Mapping[str, Any]], most: int | None, seed: int) -> list[Mapping[str, Any]]:
    """At most so many, the share of each split kept, in their order."""
    if most is None or len(rows) <= most:
        return list(rows)
    kept: set[int] = set()
    for split in SPLITS:
        numbers = [number for number, row in enumerate(rows) if row["split"] == split]
        count = max(1, round(most * len(numbers) / len(rows)))
        kept |= set(sorted(numbers, key=lambda number: draw(seed, "thin", split, str(number)))[:count])
    return [row for number, row in enumerate(rows) if number in kept]
