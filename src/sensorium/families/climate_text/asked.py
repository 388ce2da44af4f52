"""A field that somebody asks about: from a tensor, a file of a tree, or gridded files, to what training would have made
of it.

Legend: T times, C channels, X static fields, H rows from the south, W columns from the west.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sensorium import tensor_files
from sensorium.data.fields import channels, cubes, importing, opening, places, samples, tree, units, varmap
from sensorium.data.fields.grids import Box, Wish
from sensorium.data.fields.places import Times
from sensorium.data.fields.samples import HOURS, Sample, TimePolicy
from sensorium.data.fields.tree import Layout
from sensorium.data.fields.varmap import VariableMap
from sensorium.errors import CheckpointError, DataError

_GIVEN = Path("field")  # what a tensor is called in messages
_COVERED = 0.5  # share of each channel that must be measured
_SHOWN = 8
_MESSAGES = (".grib", ".grib2", ".grb", ".grb2")  # in which static fields are a cube of their own


@dataclass(frozen=True)
class Field:
    """``sample`` in the channels' units, its static fields those that the model knows, in its order; ``where`` it is
    from, ``notes`` about what was assumed."""

    sample: Sample
    where: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where and when a field lies, said beside it. ``lat`` and ``lon``: degrees of the first and the last row and
    column, or of all; ``time``: one or T."""

    lat: Sequence[float] | None = None
    lon: Sequence[float] | None = None
    time: str | Sequence[str] | None = None

    def given(self) -> dict[str, Any]:
        """What is given, as an entry of an index has it."""
        found: dict[str, Any] = {}
        for name, values in (("lat", self.lat), ("lon", self.lon)):
            if values is not None:
                found[name] = [float(one) for one in values]
        if self.time is not None:
            found["time"] = self.time if isinstance(self.time, str) else list(self.time)
        return found


@dataclass(frozen=True)
class Known:
    """What the model takes: its channels, its static fields, and how many times of a field."""

    names: tuple[str, ...]
    static: tuple[str, ...]
    policy: TimePolicy


def of_tensor(values: Tensor | np.ndarray[Any, Any], known: Known, place: Place) -> Field:
    """A field ``[T, C, H, W]`` in the units of the model's channels, in their order. Raises DataError."""
    tensor = torch.as_tensor(values).to(torch.float32)
    if tensor.ndim != 4:
        raise DataError(f"{_GIVEN}: shape {list(tensor.shape)}; expected [T, C, H, W]")
    content = {"climate_file": str(_GIVEN), "text": "", "target": "", **place.given()}
    entry = tree.read_entry(content)
    if tensor.shape[1] != len(known.names):
        raise DataError(f"{_GIVEN}: {tensor.shape[1]} channels; the model knows {len(known.names)}: {_some(known)}")
    layout = Layout(known.names, static=known.static)
    return _checked(samples.read(Path(), entry, layout, lambda path: tensor), _GIVEN, known)


def of_tree(path: Path, known: Known, place: Place) -> Field:
    """A ``.pt`` of a tree: its entry in the index beside it says where and when. A tensor without one is taken to have
    the model's channels. Raises DataError."""
    folder, content = path.parent, {"climate_file": path.name, "text": "", "target": ""}
    layout = tree.layout(folder)
    if (folder / tree.INDEX).is_file():
        mine = [one for one in tree.read_index(folder) if one.climate_file == path.name]
        content = mine[0].model_dump(mode="json", exclude_none=True) if mine else content
    entry = tree.read_entry({**content, **place.given()})
    count = tree.load(path).shape[1]
    if layout.names is None and entry.variables is None and count == len(known.names):
        layout = replace(layout, names=known.names)
    sample = _ordered(samples.read(folder, entry, layout), layout.static, known, path)
    return _checked(sample, path, known)


def of_grids(path: Path, known: Known, time: str | None, box: Box | None, variables: str | None) -> Field:
    """NetCDF, Zarr, GRIB or arrays by name, brought to the model's channels as an import does.

    ``time``: that of the field, or FROM/TO its two; None: the last one. ``variables``: as ``varmap.load`` takes it.
    Raises ConfigError and DataError: above all for a channel that the model knows and the files lack.
    """
    wanted = _restricted(varmap.load(variables or "merra2-160"), known, variables or "merra2-160")
    files = importing.paths(str(path))
    wanted, lacks = _with_static(wanted, known, files)
    cube = cubes.gather(files, wanted, Wish(box), {})
    steps = _steps(cube.times, time, known.policy, path)
    field = np.stack([_whole(cube.read(step), cube.names, path) for step in steps])
    entry = {
        "climate_file": str(_GIVEN),
        "text": "",
        "target": "",
        "lat": [float(one) for one in cube.lat],
        "lon": [float(one) for one in cube.lon],
        **({} if _timeless(cube.times) else {"time": [places.time_text(cube.times[step]) for step in steps]}),
    }
    layout = Layout(cube.names, static=known.static)
    sample = samples.read(Path(), tree.read_entry(entry), layout, lambda _: torch.from_numpy(field))
    if cube.static is not None:
        names, values = cube.static
        sample = _ordered(replace(sample, static=torch.from_numpy(values)), names, known, path)
    notes = (*cube.notes, *lacks)
    if wanted.approximate:
        notes = (*notes, "the channels stand for those of merra2-160 approximately")
    return _checked(sample, path, known, notes)


def open_field(path: Path, known: Known, place: Place, box: Box | None = None, variables: str | None = None) -> Field:
    """Whatever ``path`` is. Raises ConfigError and DataError, also for what cannot be said of such a file."""
    if path.suffix.lower() == ".pt" and _is_tensor(path):
        if box is not None or variables is not None:
            raise DataError(f"{path}: one tensor, without names and axes; bbox and variables are for gridded files")
        return of_tree(path, known, place)
    if place.lat is not None or place.lon is not None:
        raise DataError(f"{path}: says its positions itself; leave lat and lon out")
    if place.time is not None and not isinstance(place.time, str):
        raise DataError(f"{path}: give one time, or FROM/TO")
    return of_grids(path, known, place.time, box, variables)


def _is_tensor(path: Path) -> bool:
    try:
        return isinstance(tensor_files.read(path, mapped=True), Tensor)
    except CheckpointError as error:
        raise DataError(str(error)) from None


def _some(known: Known) -> str:
    more = f" and {len(known.names) - _SHOWN} more" if len(known.names) > _SHOWN else ""
    return ", ".join(known.names[:_SHOWN]) + more


def _checked(sample: Sample, where: Path, known: Known, notes: tuple[str, ...] = ()) -> Field:
    """Raises DataError for what is no number, and for values that a channel cannot have."""
    if not bool(torch.isfinite(sample.field).all()):
        raise DataError(f"{where}: holds what is no number")
    for number, name in enumerate(sample.names):
        channel, values = channels.known(name), sample.field[:, number]
        low, high = float(values.min()), float(values.max())
        if channel is not None and name in known.names and not channel.holds(low, high):
            raise DataError(f"{where}: {name} {low:g}..{high:g}: {units.guess(channel, low, high)}")
    if sample.assumed:
        notes = (*notes, f"{where}: no lat and lon; a grid of 0.5 x 0.625 degrees around 0 N 0 E is assumed")
    if not len(sample.times):
        notes = (*notes, f"{where}: no time; season and hour are left out")
    return Field(sample, where, notes)


def _ordered(sample: Sample, names: Sequence[str], known: Known, where: Path) -> Sample:
    """With the static fields that the model knows. Raises DataError where some are there, and one of these is not."""
    if sample.static is None or tuple(names) == known.static:
        return sample
    if lacking := [name for name in known.static if name not in names]:
        raise DataError(f"{where}: lacks the static fields {', '.join(lacking)}, which the model knows")
    return replace(sample, static=sample.static[[list(names).index(name) for name in known.static]])


def _restricted(found: VariableMap, known: Known, what: str) -> VariableMap:
    """The table of the model's channels alone. Raises DataError for those that it lacks."""
    if lacking := [name for name in known.names if name not in found.channels]:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise DataError(
            f"the model knows {', '.join(lacking[:_SHOWN])}{more}, and the variables of {what} do not; name them in a "
            "table of your own"
        )
    chosen = {name: found.channels[name] for name in known.names}
    return VariableMap(channels=chosen, static=found.static, approximate=found.approximate)


def _with_static(wanted: VariableMap, known: Known, files: Sequence[Path]) -> tuple[VariableMap, list[str]]:
    """With the static fields that the model knows, if the files have all of them; training knows fields without."""
    there: set[str] = set()
    for path in files:
        if path.suffix.lower() not in _MESSAGES:
            there |= {str(name) for name in opening.open_dataset(path, {}).data_vars}
    static = {name: one for name, one in wanted.static.items() if name in known.static and one.source in there}
    lacking = [name for name in known.static if name not in static]
    notes = [f"{files[0]}: no static fields ({', '.join(lacking)} missing)"] if lacking else []
    return wanted.model_copy(update={"static": {} if lacking else static}), notes


def _timeless(times: Times) -> bool:
    return len(times) == 1 and str(times[0]).startswith("0000")


def _steps(times: Times, wanted: str | None, policy: TimePolicy, path: Path) -> list[int]:
    """Numbers of the times of the field. Raises DataError that says which there are."""
    if policy == "pairs":
        return list(range(len(times)))
    texts = [] if wanted is None else wanted.split("/")
    ends = [places.parse_time(text) for text in texts] or [times[-1]]
    if policy == "exact" and len(ends) == 1:
        ends = [ends[0] - np.timedelta64(round(HOURS * 3600), "s"), ends[0]]
    if len(ends) != (2 if policy == "exact" else 1):
        raise DataError(
            f"time {wanted!r}: the model reads {'two times' if policy == 'exact' else 'one time'} of a field"
        )
    number = {time: step for step, time in enumerate(times)}
    if lacking := [time for time in ends if time not in number]:
        raise DataError(
            f"{path}: has no {places.time_text(lacking[0])} ({len(times)} times, {places.time_text(times[0])} to "
            f"{places.time_text(times[-1])}); give two that it has: FROM/TO"
        )
    return [number[time] for time in ends]


def _whole(values_CHW: np.ndarray[Any, Any], names: Sequence[str], path: Path) -> np.ndarray[Any, Any]:
    """With the mean of a map where nothing was measured. Raises DataError where that is more than half."""
    measured = np.isfinite(values_CHW)
    if measured.all():
        return values_CHW
    share = measured.mean((1, 2))
    if (share < _COVERED).any():
        raise DataError(f"{path}: less than half of {names[int(share.argmin())]} was measured there")
    mean = np.where(measured, values_CHW, 0).sum((1, 2), keepdims=True) / measured.sum((1, 2), keepdims=True)
    return cast("np.ndarray[Any, Any]", np.where(measured, values_CHW, mean).astype(np.float32))
