"""Fields with text as they lie on a disk: an index of entries, and a tensor a field.

::

    channels.json            names of the channels, of the static fields; may be missing (see ``layout``)
    stats.json               mean and standard deviation of the training split
    {train,val}/index.json   [{"climate_file": "climate_00001.pt", "text": …, "target": …}, …]
    {train,val}/*.pt         float32 [T, C, H, W]; static fields [X, H, W]; climatologies [C, H, W]

An entry may also hold ``location`` and ``weather_condition``, words of its owner; ``lat`` and ``lon``, degrees of the
centres of the first and the last row and column or of all of them; ``time``, one or T in UTC; ``input_time`` and
``lead_time``, hours; ``variables``, names of its channels or a set of them; ``static_file`` and ``climatology_file``;
``group``, of entries that hang together; ``facts``, what is true of the field. Other keys are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sensorium import reading
from sensorium.data.fields import channels
from sensorium.data.fields.channels import Scalers, read_scalers
from sensorium.data.readers.native import leaves
from sensorium.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

INDEX, CHANNELS, STATS = "index.json", "channels.json", "stats.json"
SPLITS = ("train", "val")
_SHOWN = 20
_Text = Annotated[str, Field(min_length=1)]
_Degrees = Annotated[tuple[float, ...], Field(min_length=1)]


class Entry(BaseModel):
    """One sample of an index."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    climate_file: _Text
    text: str
    target: str
    location: str | None = None
    weather_condition: str | None = None
    lat: _Degrees | None = None
    lon: _Degrees | None = None
    time: str | tuple[str, ...] | None = None
    input_time: float | None = Field(None, ge=0)
    lead_time: float | None = None
    variables: str | tuple[str, ...] | None = None
    static_file: _Text | None = None
    climatology_file: _Text | None = None
    group: str | None = None
    facts: Mapping[str, Any] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that belong to it."""
        return tuple(one for one in (self.climate_file, self.static_file, self.climatology_file) if one is not None)


@dataclass(frozen=True)
class Layout:
    """What ``channels.json`` says of a tree. ``name``: of a set. ``labels``: what texts call a channel."""

    names: tuple[str, ...] | None = None
    name: str | None = None
    static: tuple[str, ...] = tuple(channel.name for channel in channels.CONSTANT)
    approximate: bool = False
    units: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def of(self, entry: Entry, count: int) -> tuple[str, ...]:
        """Names of the ``count`` channels of an entry's field. Raises DataError: they are not so many, or unknown."""
        given = entry.variables if entry.variables is not None else self.names
        if given is None and count == len(channels.MERRA2_160):
            given = "merra2-160"
        if given is None:
            raise DataError(f"{count} channels without names; list them in {CHANNELS}, or as `variables` of the entry")
        try:
            names = channels.names_of(given)
        except ConfigError as error:
            raise DataError(f"variables: {error}") from None
        if len(names) != count:
            raise DataError(f"{count} channels in the file, {len(names)} names for them")
        return names


def read_entry(content: Any, *, anywhere: bool = False) -> Entry:
    """One entry of an index. ``anywhere``: its files are somebody else's business. Raises DataError with everything
    that is wrong with it."""
    if not isinstance(content, dict):
        raise DataError(f"expected an object (found {str(content)[:60]!r})")
    try:
        entry = Entry.model_validate_json(json.dumps(content), strict=True)  # strict JSON has lists, Python tuples
    except ValidationError as error:
        raise DataError("; ".join(_reason(dict(detail)) for detail in error.errors())) from None
    if outside := None if anywhere else next((name for name in entry.files if leaves(name)), None):
        raise DataError(f"{outside!r} leaves the folder of the split")
    return entry


def _reason(detail: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in detail["loc"] if not str(part).startswith(("constrained-", "tuple[", "str")))
    if detail["type"] == "missing":
        return f"{key} is missing"
    message = str(detail["msg"])
    return f"{key}: {message[:1].lower()}{message[1:]}"


def raw_entries(folder: Path) -> list[Any]:
    """What ``index.json`` lists, unchecked. Raises DataError."""
    path = folder / INDEX
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it should hold {INDEX} and the files that it names")
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of entries (found a {type(content).__name__})")
    return content


def read_json(path: Path) -> Any:
    """Strict JSON of plain values. Raises DataError naming file and reason."""
    try:
        return reading.parse_json(reading.read_bytes(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def read_index(folder: Path) -> list[Entry]:
    """The entries of a split. Raises DataError that lists the first 20 problems with their numbers, or: none."""
    entries: list[Entry] = []
    problems: list[str] = []
    for number, content in enumerate(raw_entries(folder)):
        try:
            entries.append(read_entry(content))
        except DataError as error:
            problems.append(f"  entry {number}: {error}")
    if problems:
        more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([f"{folder / INDEX}: {len(problems)} wrong", *problems[:_SHOWN], *more]))
    if not entries:
        raise DataError(f"{folder / INDEX}: lists no entries")
    return entries


def beside(folder: Path, name: str) -> Path | None:
    """Where a file of the whole tree lies: in the folder of the split, or above it."""
    return next((path for path in (folder / name, folder.absolute().parent / name) if path.is_file()), None)


def layout(folder: Path) -> Layout:
    """What is said of the channels; nothing where there is no ``channels.json``. Raises DataError.

    Of that file ``channels`` is a list of names or a set; the rest is optional: ``static``, ``units`` and ``labels`` by
    name, ``approximate``.
    """
    path = beside(folder, CHANNELS)
    if path is None:
        return Layout()
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("channels"), str | list):
        raise DataError(f'{path}: expected {{"channels": […] or the name of a set, "static": […]}}')
    given = content["channels"]
    static = content.get("static", [channel.name for channel in channels.CONSTANT])
    if not _texts(static) or not (isinstance(given, str) or _texts(given)):
        raise DataError(f"{path}: channels and static: expected lists of names")
    try:
        names = channels.names_of(given)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    tables = [content.get(key, {}) for key in ("units", "labels")]
    if not all(isinstance(one, dict) and _texts(list(one.values())) for one in tables):
        raise DataError(f"{path}: units and labels: expected texts by name")
    name = given if isinstance(given, str) else content.get("set")
    approximate = content.get("approximate", name in channels.APPROXIMATE)
    return Layout(names, name, tuple(static), approximate is True, *tables)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(one, str) for one in values)


def scalers(folder: Path) -> Scalers | None:
    """Those of ``stats.json``; None where there is none. Raises DataError."""
    path = beside(folder, STATS)
    if path is None:
        return None
    try:
        return read_scalers(read_json(path))
    except DataError as error:
        raise DataError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def load(path: Path, axes: int = 4) -> Tensor:
    """A float32 tensor of so many axes, mapped: its bytes are read when they are needed. Raises DataError naming file
    and reason: missing, empty, damaged, with code in it, of another type or shape."""
    import torch

    from sensorium import tensor_files

    try:
        found = tensor_files.read(path, mapped=True)
    except CheckpointError as error:
        raise DataError(str(error)) from None
    if not isinstance(found, torch.Tensor):
        raise DataError(f"{path}: holds a {type(found).__name__}; expected one tensor")
    try:
        tensor_files.require_plain(path, {"field": found})
    except CheckpointError:
        raise DataError(f"{path}: damaged, or no plain tensor") from None
    if found.dtype != torch.float32:
        raise DataError(f"{path}: numbers of type {str(found.dtype).removeprefix('torch.')}; expected float32")
    if found.ndim != axes or 0 in found.shape:
        wanted = {4: "[T, C, H, W]", 3: "[C, H, W]"}[axes]
        raise DataError(f"{path}: shape {list(found.shape)}; expected {wanted}")
    return found
