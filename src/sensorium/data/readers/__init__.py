"""Readers turn one format each into Items; a reader is a module here, found by its name.

It holds ``NAME``, ``SUMMARY``, ``LICENCE``, ``Options`` (a Section) and ``read(root, options) -> DataSet``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from sensorium.config import Section, build
from sensorium.data.items import DataSet, Item
from sensorium.errors import ConfigError, DataError


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
    dataset = reader.read(root, build(reader.Options, options or {}, f"options of the reader {name!r}"))
    for item in dataset.items:
        _require_unicode(item)
    return dataset


def _require_unicode(item: Item) -> None:
    """Reports and caches are UTF-8: what is not cannot be written down."""
    said = (item.text or "", *(moment.text for moment in item.moments))
    words = (item.id, item.group, *said, *map(str, item.files.values()), *item.labels)
    try:
        "".join((*words, *item.meta, *item.meta.values())).encode()
    except UnicodeEncodeError:
        wrong = next((word for word in words if any("\ud800" <= sign <= "\udfff" for sign in word)), item.id)
        raise DataError(f"{os.fsencode(wrong)!r}: the name of a file or folder is not UTF-8; rename it") from None
