"""Demonstration data: made-up weather with one anomaly, and text that tells what the finished field shows.

All of it follows from (seed, number). The anomaly is of one of 8 variables, in one of 9 cells, above or below normal,
growing or fading; all of these are drawn evenly and independently of each other and of the question. A field whose
facts, as computed from it, are not those that were wanted is drawn again. The validation split has later times, two
places that training never has, and pairs of variable and cell that training never has; ``facts.unseen`` says which.

With ``field_effect`` 0 the texts tell of other fields: nothing can then be learned from the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from sensorium.config import Section
from sensorium.data.fields import channels, facts, grammar, places
from sensorium.data.fields.demo_regions import ASKED, REGIONS, UNSEEN, Region, smooth
from sensorium.data.fields.facts import CELLS, KINDS
from sensorium.data.fields.writing import Progress, Writer, new_tree

Split = Literal["train", "val"]
Array = npt.NDArray[np.floating[Any]]

_NOISE = 0.45  # standard deviations of the usual weather, beside an anomaly of the next line
_STRENGTH = (4.5, 7.0)
_WEAK = (0.35, 0.6)  # of an anomaly, at the time when it is weaker
_EDGE = 3  # pixels between its centre and the border of its cell
_TRIES = 50


class Options(Section):
    """What is made."""

    num_samples: int = Field(1000, ge=2, le=99_999, description="Samples in all.")
    shape: tuple[int, int, int, int] = Field((2, 160, 64, 64), description="Times, channels, rows, columns.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of the samples for validation.")
    questions: int = Field(1, ge=1, le=len(KINDS), description="Entries of each field, each of another question.")
    field_effect: float = Field(1.0, ge=0, le=1, description="Share of texts that tell of their own field.")
    seed: int = Field(0, ge=0, description="Other numbers give other data.")

    @model_validator(mode="after")
    def _possible(self) -> Options:
        T, C, H, W = self.shape
        if T != 2 or not len(ASKED) <= C <= 160 or not (24 <= H <= 360 and 24 <= W <= 576) or H % 2 or W % 2:
            raise ValueError(
                f"shape {T},{C},{H},{W}: allowed are 2 times, {len(ASKED)} to 160 channels, and even sides of 24 to "
                "360 rows and 24 to 576 columns"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The channels: those that texts are about, and as many of the others, in the order of ``merra2-160``."""
        every = channels.SETS["merra2-160"]
        others = [name for name in every if name not in ASKED][: self.shape[1] - len(ASKED)]
        return tuple(name for name in every if name in ASKED or name in others)

    @property
    def bytes(self) -> int:
        """What the fields need on a disk."""
        return self.num_samples * int(np.prod(self.shape)) * 4

    @property
    def validation(self) -> int:
        return min(self.num_samples - 1, max(1, round(self.num_samples * self.val_fraction)))


@dataclass(frozen=True)
class Plan:
    """The wanted anomaly. ``unseen``: what of it training never has."""

    region: str
    variable: int  # of ASKED
    cell: int  # of CELLS
    sign: int
    trend: str
    unseen: tuple[str, ...]

    def __post_init__(self) -> None:
        assert 0 <= self.variable < len(ASKED)
        assert 0 <= self.cell < len(CELLS)


def withheld(variable: int, cell: int) -> bool:
    """Whether training never has an anomaly of this variable in this cell: one cell of each variable."""
    return cell == variable


def plan(options: Options, split: Split, number: int) -> Plan:
    """What the sample shall show: even and independent draws."""
    draw = _generator(options, "plan", split, number)
    region = str(draw.choice([name for name in REGIONS if name not in UNSEEN]))
    variable, cell = int(draw.integers(len(ASKED))), int(draw.integers(len(CELLS)))
    sign, trend = int(draw.choice([-1, 1])), str(draw.choice(["growing", "fading"]))
    if split == "train":
        while withheld(variable, cell):
            variable, cell = int(draw.integers(len(ASKED))), int(draw.integers(len(CELLS)))
        return Plan(region, variable, cell, sign, trend, ())
    if draw.random() < 0.25:
        region = str(draw.choice(UNSEEN))
    if draw.random() < 0.25:
        variable = cell = int(draw.integers(len(ASKED)))
    marks = {"region": region in UNSEEN, "pair": withheld(variable, cell)}
    return Plan(region, variable, cell, sign, trend, tuple(mark for mark, there in marks.items() if there))


def _generator(options: Options, purpose: str, split: Split, *numbers: int) -> np.random.Generator:
    words = [*purpose.encode(), *split.encode()]
    return np.random.default_rng([options.seed, len(words), *words, *numbers])


@dataclass(frozen=True)
class Sample:
    """A field ``[T, C, H, W]`` and what is true of it."""

    plan: Plan
    values: npt.NDArray[np.float32]
    seen: facts.Seen
    time: np.datetime64


@dataclass
class Maker:
    """Makes the samples of one set of options; what belongs to a place is computed once."""

    options: Options
    regions: dict[str, Region] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.options.names
        self.asked = [self.names.index(name) for name in ASKED]
        known = [channels.known(name) for name in self.names]
        self.low, self.high = (
            np.array([getattr(one, end) for one in known], np.float32)[:, None, None] for end in ("low", "high")
        )
        self.labels = tuple(one.label for one in (channels.known(name) for name in ASKED) if one is not None)
        grammar.require_labels(self.labels)

    def region(self, name: str) -> Region:
        if name not in self.regions:
            self.regions[name] = Region(name, *self.options.shape[2:], self.names)
        return self.regions[name]

    def sample(self, split: Split, number: int) -> Sample:
        """Draw until the finished field shows what the plan wants."""
        wanted = plan(self.options, split, number)
        region = self.region(wanted.region)
        for attempt in range(_TRIES):
            draw = _generator(self.options, "field", split, number, attempt)
            values = self._values(region, wanted, draw)
            z_TCHW = (values[:, self.asked] - region.usual[self.asked]) / region.spread[self.asked, None, None]
            seen = facts.look(z_TCHW, self.labels)
            if seen is not None and self._shows(seen, wanted):
                return Sample(wanted, values, seen, self._time(region, split, draw))
        raise AssertionError(f"{wanted}: not one of {_TRIES} fields shows it")

    def _shows(self, seen: facts.Seen, wanted: Plan) -> bool:
        found = seen.facts
        told = (found["variable"], found["location"], found["sign"], found["trend"])
        sign = "above" if wanted.sign > 0 else "below"
        return set(KINDS) <= seen.sure and told == (
            self.labels[wanted.variable],
            CELLS[wanted.cell],
            sign,
            wanted.trend,
        )

    def _values(self, region: Region, wanted: Plan, draw: np.random.Generator) -> npt.NDArray[np.float32]:
        _, C, H, W = self.options.shape
        early, late = (smooth(draw, (C, H, W)) for _ in range(2))
        noise = np.stack([early, 0.8 * early + 0.6 * late]) * _NOISE  # the weather of six hours later is much the same
        centre = [
            draw.uniform(low + _EDGE, high - _EDGE)
            for low, high in (_cell_sides(H, wanted.cell // 3), _cell_sides(W, wanted.cell % 3))
        ]
        rows, columns = ((np.arange(side) + 0.5 - at) * 12 / side for side, at in zip((H, W), centre, strict=True))
        shape = np.exp(-0.5 * (rows[:, None] ** 2 + columns[None] ** 2))
        weak = float(draw.uniform(*_WEAK))
        course = (weak, 1.0) if wanted.trend == "growing" else (1.0, weak)
        strength = wanted.sign * float(draw.uniform(*_STRENGTH))
        noise[:, self.asked[wanted.variable]] += np.array(course)[:, None, None] * strength * shape
        values = region.usual + noise * region.spread[:, None, None]
        return np.asarray(np.clip(values, self.low, self.high), np.float32)

    def _time(self, region: Region, split: Split, draw: np.random.Generator) -> np.datetime64:
        """The second time of a sample; training has the years 2000 to 2015, validation those from 2017 on."""
        year = int(draw.integers(2000, 2016) if split == "train" else draw.integers(2017, 2021))
        day = region.day - 1 + int(draw.integers(-10, 11))
        return np.datetime64(f"{year}-01-01T00", "s") + np.timedelta64(day, "D") + np.timedelta64(region.hour, "h")

    def entries(self, split: Split, number: int) -> tuple[Sample, list[dict[str, Any]]]:
        """A sample and what its entries say, but for names of files."""
        sample = self.sample(split, number)
        told = sample
        draw = _generator(self.options, "text", split, number)
        if draw.random() >= self.options.field_effect:
            told = self.sample(split, number + self.options.num_samples)
        kinds = [KINDS[int(one)] for one in draw.permutation(len(KINDS))[: self.options.questions]]
        return sample, [self._entry(split, sample, told.seen, kind, draw) for kind in kinds]

    def _entry(
        self, split: Split, sample: Sample, told: facts.Seen, kind: str, draw: np.random.Generator
    ) -> dict[str, Any]:
        region = self.region(sample.plan.region)
        words = {"place": region.name}
        known = {**told.facts, "about": told.facts["variable"]}
        if kind == "comparison":
            words["variable"], words["comparison"] = told.halves[int(draw.integers(len(told.halves)))]
            known |= {"comparison": words["comparison"], "about": words["variable"]}
        held_out = split == "val" and bool(draw.random() < 0.5)
        question = grammar.ask(kind, words, draw, held_out=held_out)
        unseen = [*sample.plan.unseen, *(["phrasing"] if held_out else [])]
        times = [sample.time - np.timedelta64(6, "h"), sample.time]
        return {
            "text": question.text,
            "target": grammar.tell(kind, known, draw),
            "location": region.name,
            "weather_condition": f"{known['variable']} {known['sign']} normal",
            "lat": [float(region.lat[0]), float(region.lat[-1])],
            "lon": [float(region.lon[0]), float(region.lon[-1])],
            "time": [places.time_text(time) for time in times],
            "group": places.time_text(sample.time)[:10],
            "facts": {"asked": kind, **known, "phrasing": question.phrasing, "unseen": unseen},
        }


def _cell_sides(side: int, number: int) -> tuple[float, float]:
    borders = np.linspace(0, side, 4).round()
    return float(borders[number]), float(borders[number + 1])


def write(
    target: Path, options: Options, *, overwrite: bool = False, progress: Progress | None = None
) -> Mapping[str, int]:
    """Make a tree (see ``tree``); the number of fields of each split. Raises DataError and DiskError."""
    maker = Maker(options)
    counts: dict[Split, int] = {"train": options.num_samples - options.validation, "val": options.validation}
    about = {"labels": dict(zip(ASKED, maker.labels, strict=True)), "source": "demonstration data of Sensorium"}
    if options.shape[1] == 160:
        about["set"] = "merra2-160"
    with new_tree(target, options.bytes, overwrite=overwrite) as folder:
        writer = Writer(folder, maker.names, channels.STATIC_8[4:])
        done = 0
        for split, count in counts.items():
            for number in range(count):
                sample, entries = maker.entries(split, number)
                region = maker.region(sample.plan.region)
                files = {
                    "climate_file": writer.field(split, sample.values),
                    "static_file": writer.constant(split, "static", f"{region.number:02d}", region.static),
                    "climatology_file": writer.constant(split, "climatology", f"{region.number:02d}", region.usual),
                }
                for entry in entries:
                    writer.entry(split, {**files, **entry})
                done += 1
                if progress is not None:
                    progress(done, options.num_samples)
        writer.finish(about)
    return {str(split): count for split, count in counts.items()}
