"""Looking into every entry of both splits of a tree, and saying everything that is wrong.

A problem has a reason out of ``REASONS``, by which it is counted, and a line for people. ``write_report`` keeps all of
them; the console shows the first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensorium.data.fields import channels, samples, tree, units
from sensorium.data.fields.overlaps import Placed, between_splits
from sensorium.data.fields.samples import TimePolicy
from sensorium.data.fields.tree import Entry, Layout
from sensorium.data.fields.writing import REPORT, Progress
from sensorium.errors import DataError
from sensorium.files import write_json

REASONS = (
    "entry",
    "missing file",
    "unreadable file",
    "other shape",
    "number of times",
    "sides",
    "channels",
    "not finite",
    "outside of its range",
    "position",
    "time",
    "empty text",
    "empty target",
    "too long",
    "field in both splits",
    "text in both splits",
    "time in both splits",
    "positions assumed",
)
_SHOWN = 10


@dataclass(frozen=True)
class Rules:
    """``tokens``: how long a text with its target is, where that can be said. ``strict``: positions must be given."""

    time_policy: TimePolicy = "exact"
    strict: bool = False
    tokens: Callable[[str, str], int] | None = None
    max_length: int = 512


@dataclass(frozen=True)
class Problem:
    """``entry``: its number in the index of the split, from 0."""

    split: str
    entry: int
    file: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.split}[{self.entry}] {self.file}: {self.message}"


@dataclass(frozen=True)
class Report:
    """``entries``: how many there are of each split, ``valid``: how many of them have no problem."""

    root: Path
    entries: Mapping[str, int]
    valid: Mapping[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    unknown_keys: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Problems by reason."""
        found = Counter(problem.reason for problem in self.problems)
        return {reason: found[reason] for reason in REASONS if found[reason]}

    def plain(self) -> dict[str, Any]:
        return {
            "format": 1,
            "root": str(self.root),
            "is_valid": not self.problems,
            "entries": dict(self.entries),
            "valid": dict(self.valid),
            "reasons": self.counts,
            "notes": list(self.notes),
            "unknown_keys": dict(self.unknown_keys),
            "problems": [
                {"split": p.split, "entry": p.entry, "file": p.file, "reason": p.reason, "message": p.message}
                for p in self.problems
            ],
        }

    def lines(self) -> Iterator[str]:
        """What the console says."""
        for split, count in self.entries.items():
            yield f"{split:6} {self.valid[split]:,} of {count:,} entries are valid"
        yield from (f"note: {note}" for note in self.notes)
        for reason, count in self.counts.items():
            yield f"problem: {reason}: {count:,} times"
        for problem in self.problems[:_SHOWN]:
            yield f"  {problem}"
        if len(self.problems) > _SHOWN:
            yield f"  and {len(self.problems) - _SHOWN:,} more in {REPORT}"
        if self.problems and not any(self.valid.values()):
            yield "no valid sample at all: " + ", ".join(f"{reason} ({n:,})" for reason, n in self.counts.items())


@dataclass
class _Checked:
    """What was found in one entry; ``shape`` None where its field cannot be opened."""

    problems: list[tuple[str, str]]
    shape: tuple[int, ...] | None = None
    digest: str = ""
    placed: Placed | None = None
    assumed: bool = False


_Found = tuple[int, Entry, _Checked]


@dataclass(frozen=True)
class _Seen:
    """What is in a file; ``low`` and ``high``, ``[C]``: extremes of each channel, NaN where one number is."""

    shape: tuple[int, ...]
    digest: str
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        return np.isfinite(self.low) & np.isfinite(self.high)


@dataclass(frozen=True)
class _Part:
    """A split that is checked. Files are looked into once, however many entries name them."""

    folder: Path
    layout: Layout
    rules: Rules
    seen: dict[tuple[str, int], _Seen | str] = field(default_factory=dict)

    def look(self, name: str, axes: int) -> _Seen | str:
        if (name, axes) not in self.seen:  # two threads may both look: the same comes out
            self.seen[name, axes] = _look(self.folder / name, axes)
        return self.seen[name, axes]


def validate(root: Path, rules: Rules, progress: Progress | None = None) -> Report:
    """Check a tree. Raises DataError when there is none: no folder of a split, no index that can be read."""
    raw = {split: tree.raw_entries(root / split) for split in tree.SPLITS}
    layout = tree.layout(root / tree.SPLITS[0])
    tree.scalers(root / tree.SPLITS[0])
    problems: list[Problem] = []
    found: dict[str, list[_Found]] = {}
    total, done = sum(map(len, raw.values())), 0
    for split, contents in raw.items():
        found[split] = []
        if not contents:
            problems.append(Problem(split, 0, tree.INDEX, "entry", "lists no entries"))
        entries = []
        for number, content in enumerate(contents):
            try:
                entries.append((number, tree.read_entry(content)))
            except DataError as error:
                problems.append(Problem(split, number, tree.INDEX, "entry", str(error)))
        done += len(contents) - len(entries)
        for one in _checked(_Part(root / split, layout, rules), entries):
            found[split].append(one)
            done += 1
            if progress is not None:
                progress(done, total)
        problems += [Problem(split, n, entry.climate_file, *one) for n, entry, c in found[split] for one in c.problems]
    problems += _other_shapes(found)
    apart = {split: [(n, entry, c.digest, c.placed) for n, entry, c in some] for split, some in found.items()}
    problems += [Problem(split, n, e.climate_file, reason, text) for split, n, e, reason, text in between_splits(apart)]
    return _report(root, {split: len(contents) for split, contents in raw.items()}, found, problems, layout)


def _checked(part: _Part, entries: Sequence[tuple[int, Entry]]) -> Iterator[_Found]:
    """Look into the files of entries, several at a time."""
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda one: _check(part, one[1]), entries)
        for (number, entry), checked in zip(entries, checks, strict=True):
            yield number, entry, checked


def _report(
    root: Path,
    counts: Mapping[str, int],
    found: Mapping[str, Sequence[_Found]],
    problems: Sequence[Problem],
    layout: Layout,
) -> Report:
    order = {split: number for number, split in enumerate(tree.SPLITS)}
    bad = {(problem.split, problem.entry) for problem in problems}
    valid = {split: sum((split, number) not in bad for number in range(count)) for split, count in counts.items()}
    every = [(entry, checked) for some in found.values() for _, entry, checked in some]
    assumed = sum(checked.assumed for _, checked in every)
    notes = []
    if assumed:
        notes.append(
            f"positions assumed: {assumed:,} entries have no lat and lon, and are taken to lie around 0 N 0 E; their "
            "static fields, climatology and time count as unknown where they are not given"
        )
    if layout.approximate:
        notes.append(f"the channels ({layout.name or 'a list'}) are approximate: they stand for others")
    unknown = Counter(key for entry, _ in every for key in entry.model_extra or {})
    if unknown:
        notes.append(f"keys of their owner, kept: {', '.join(sorted(unknown))}")
    ordered = sorted(problems, key=lambda one: (order[one.split], one.entry))
    return Report(root, counts, valid, tuple(ordered), tuple(notes), dict(unknown))


def _check(part: _Part, entry: Entry) -> _Checked:
    found, rules = _Checked([]), part.rules
    for reason, text in (("empty text", entry.text), ("empty target", entry.target)):
        if not text.strip():
            found.problems.append((reason, f"{reason.removeprefix('empty ')} is empty"))
    if rules.tokens is not None and (length := rules.tokens(entry.text, entry.target)) > rules.max_length:
        found.problems.append(("too long", f"{length} tokens; at most {rules.max_length}"))
    missing = [name for name in entry.files if not (part.folder / name).is_file()]
    found.problems += [("missing file", f"{part.folder / name} is missing") for name in missing]
    if entry.climate_file in missing:
        return found
    seen = part.look(entry.climate_file, 4)
    if isinstance(seen, str):
        found.problems.append(("unreadable file", seen))
        return found
    found.shape, found.digest = seen.shape, seen.digest
    found.problems += _field_problems(seen, entry, part.layout, rules)
    _place(found, entry, rules)
    C, H, W = seen.shape[1:]
    for name, size in ((entry.static_file, len(part.layout.static)), (entry.climatology_file, C)):
        if name is not None and name not in missing:
            found.problems += _beside_problems(name, part.look(name, 3), (size, H, W))
    return found


def _look(path: Path, axes: int) -> _Seen | str:
    """What is in a file, or what is wrong with it."""
    try:
        field = tree.load(path, axes)
    except DataError as error:
        return str(error)
    digest = hashlib.sha256(field.contiguous().numpy().tobytes()).hexdigest()
    others = tuple(axis for axis in range(axes) if axis != axes - 3)
    return _Seen(tuple(field.shape), digest, field.amin(others).numpy(), field.amax(others).numpy())


def _field_problems(seen: _Seen, entry: Entry, layout: Layout, rules: Rules) -> Iterator[tuple[str, str]]:
    T, C, H, W = seen.shape
    try:
        samples.require_times(T, rules.time_policy)
    except DataError as error:
        yield "number of times", str(error)
    try:
        samples.require_sides(H, W)
    except DataError as error:
        yield "sides", str(error)
    try:
        names = layout.of(entry, C)
    except DataError as error:
        yield "channels", str(error)
        names = tuple(f"channel {number}" for number in range(C))
    bad = [name for name, good in zip(names, seen.finite, strict=True) if not good]
    if bad:
        yield "not finite", f"NaN or infinite numbers in {_some(bad)}"
    for name, low, high in zip(names, seen.low.tolist(), seen.high.tolist(), strict=True):
        channel = channels.known(name)
        if channel is not None and name not in bad and not channel.holds(low, high):
            yield "outside of its range", f"{name} {low:g}..{high:g}: {units.guess(channel, low, high)}"


def _place(found: _Checked, entry: Entry, rules: Rules) -> None:
    """Positions and times."""
    assert found.shape is not None
    T, _, H, W = found.shape
    lat = lon = None
    try:
        lat, lon, _, found.assumed = samples.positions(entry, H, W)
    except DataError as error:
        found.problems.append(("position", str(error)))
    if found.assumed and rules.strict:
        found.problems.append(("positions assumed", "no lat and lon; give both"))
    try:
        times = samples.times_of(entry, T)
    except DataError as error:
        found.problems.append(("time", str(error)))
        return
    if lat is not None and lon is not None and len(times):
        box = None if found.assumed else (float(lat[0]), float(lat[-1]), float(lon[0]), float(lon[-1]))
        found.placed = Placed(times[0], times[-1], box)


def _beside_problems(name: str, seen: _Seen | str, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(seen, str):
        yield "unreadable file", seen
    elif seen.shape != shape:
        yield "other shape", f"{name}: shape {list(seen.shape)}; expected {list(shape)}"
    elif not seen.finite.all():
        yield "not finite", f"{name}: NaN or infinite numbers"


def _other_shapes(found: Mapping[str, Sequence[_Found]]) -> Iterator[Problem]:
    """Fields of another shape than most have."""
    shapes = Counter(one.shape for some in found.values() for _, _, one in some if one.shape is not None)
    if len(shapes) > 1:
        usual, count = shapes.most_common(1)[0]
        for split, some in found.items():
            for number, entry, one in some:
                if one.shape is not None and one.shape != usual:
                    message = f"shape {list(one.shape)}; {count:,} others have {list(usual or ())}"
                    yield Problem(split, number, entry.climate_file, "other shape", message)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_report(report: Report) -> Path:
    """Write ``validation_report.json`` into the tree. Raises DiskError."""
    path = report.root / REPORT
    write_json(path, report.plain())
    return path
