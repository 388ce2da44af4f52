"""Readers turn one format each into Items; a reader is a module here, found by its name.

It holds ``NAME``, ``SUMMARY``, ``LICENCE``, ``Options`` (a Section) and ``read(root, options) -> DataSet``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from sensorium.config import Section, build
from sensorium.data.items import DataSet
from sensorium.errors import ConfigError


class Reader(Protocol):
    """What the module of a reader offers."""

    NAME: str
    SUMMARY: str
    LICENCE: str
    Options: type[Section]

    def read(self, root: Path | None, options: Any) -> DataSet:
        """``options`` is the module's own ``Options``. Raises DataError in one line."""


def names() -> list[str]:
    """The formats that can be read."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Reader:
    """The module of one reader. Raises ConfigError if there is none of this name."""
    if name not in names():
        raise ConfigError(f"no reader {name!r}; there are {', '.join(names())}")
    return cast(Reader, importlib.import_module(f"{__name__}.{name}"))


def read(name: str, root: Path | None = None, options: Mapping[str, Any] | None = None) -> DataSet:
    """Read a data set. ``root`` None: the place the reader knows. Raises ConfigError (options) and DataError."""
    reader = load(name)
    return reader.read(root, build(reader.Options, options or {}, f"options of the reader {name!r}"))
