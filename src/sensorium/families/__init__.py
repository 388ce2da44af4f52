"""The families: one folder each, found by its name. No registry."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

from sensorium.errors import ConfigError

if TYPE_CHECKING:
    from sensorium.engine.contract import Family


def names() -> list[str]:
    """Names of all families on the search path of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def load(name: str) -> Family:
    """The family of that name. Raises ConfigError listing what there is."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names())}"
        raise ConfigError(f"unknown family {name!r}; {hint}")
    family: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
    return family
