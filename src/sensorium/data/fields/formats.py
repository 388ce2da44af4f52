"""What of gridded fields `sensorium data` knows by name: such samples are no Items, as they are no pictures or sounds,
and are written into a tree of their own (see ``tree``) instead of the native format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from sensorium.config import Section, build, parse_overrides
from sensorium.data.fields import composing, importing, validation, wxcbench
from sensorium.data.fields.composing import Done
from sensorium.data.fields.samples import TimePolicy
from sensorium.data.fields.writing import Progress
from sensorium.errors import ConfigError

TREE = "climate"
"""The format of the tree itself: the one that can be verified."""


@dataclass(frozen=True)
class Format:
    """``options`` and ``write`` of what imports it."""

    name: str
    summary: str
    licence: str
    options: type[Section]
    write: Callable[..., Done]


FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        Format(
            TREE,
            "fields of NetCDF, Zarr, GRIB or arrays with texts of a table, or computed ones; `verify`: the tree of it",
            "as the owner of the data says",
            importing.Options,
            composing.write,
        ),
        Format(
            "wxcbench-text",
            "WxC-Bench task 4: HRRR forecasts with discussions (metadata.csv: file_name,text)",
            "as its page on the hub says",
            wxcbench.Options,
            wxcbench.write,
        ),
    )
}


class VerifyOptions(Section):
    """How a tree is verified."""

    time_policy: TimePolicy = Field("exact", description="Times of a field: exact 2, repeat 1, pairs 3 or more.")
    strict: bool = Field(False, description="Positions must be given.")


def bring(name: str, target: Path, words: Sequence[str], root: Path | None, progress: Progress | None = None) -> Done:
    """Import into a new folder; ``words``: the format's own options, OPTION=VALUE. Raises ConfigError and DataError."""
    form = FORMATS[name]
    given: dict[str, Any] = parse_overrides(words)
    if root is not None:
        given = {"source": str(root), **given}
    return form.write(target, build(form.options, given, f"options of {name!r}"), progress=progress)


def verify(root: Path | None, words: Sequence[str], progress: Progress | None = None) -> validation.Report:
    """Look into every entry of a tree, and write the report into it. Raises ConfigError, DataError and DiskError."""
    if root is None:
        raise ConfigError("name the folder that holds train/ and val/: --root FOLDER")
    options = build(VerifyOptions, parse_overrides(words), f"options of {TREE!r}")
    report = validation.validate(root, validation.Rules(options.time_policy, options.strict), progress)
    validation.write_report(report)
    return report
