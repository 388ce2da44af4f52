"""``docs/config.md``, written from the configuration models: ``python -m sensorium.docs_config docs/config.md``."""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo

from sensorium import config as configuration
from sensorium import families
from sensorium.config import Section
from sensorium.data import readers
from sensorium.engine.contract import Family
from sensorium.engine.settings import config_class, resolve

INTRODUCTION = """\
# Configuration reference

Written from the models by `make docs`; a test holds it equal to them.

A value is taken from the preset, then from the file of `--config` (YAML, JSON with comments, or TOML), then from
`section.key=value` on the command line; the later one wins. Unknown keys, wrong types and values out of bounds are all
listed at once. The resolved configuration is written to `RUN/config.yaml`, and `sensorium resume RUN` takes it from
there: only keys marked *yes* under "resume" may then differ.
"""
_TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}
_BOUNDS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", "\\>"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}
_OF_FAMILIES = ("model", "data")


def reference(of: Mapping[str, Family], options: Mapping[str, type[Section]]) -> str:
    """The page: what every run has, each family's own sections and presets, the ``options`` of each reader."""
    anyone = next(iter(of.values()))
    common = [row for row in _rows(anyone) if row[0].split(".")[0] not in _OF_FAMILIES]
    parts = [INTRODUCTION, "## Every run", _sections(common)]
    for name, family in of.items():
        own = [row for row in _rows(family) if row[0].split(".")[0] in _OF_FAMILIES]
        parts += [
            f"## Family `{name}`",
            family.summary[:1].upper() + family.summary[1:] + ".",
            _sections(own, f" of `{name}`"),
        ]
        parts += [f"### Presets of `{name}`", _presets(family)]
    parts.append("## Options of the readers")
    for name, section in options.items():
        rows = [(path, _cells(path, info, {})) for path, info in _fields(section, "data.options.")]
        parts.append(_sections(rows, f" of reader `{name}`") if rows else f"Reader `{name}` has no options.")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


Row = tuple[str, str]
"""Dotted name, and the cells of the table behind it as Markdown."""


def _rows(family: Family) -> list[Row]:
    model = config_class(family)
    defaults = configuration.dump(configuration.build(model, {"family": family.name, "preset": "*"}))
    return [(path, _cells(path, info, defaults)) for path, info in _fields(model)]


def _fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf; of a table of sections (``dict[str, Group]``) also the leaves of one, under ``<name>``."""
    for path, info in configuration.walk(model, prefix):
        yield path, info
        _, *values = typing.get_args(info.annotation) or (None,)
        for value in values:
            if isinstance(value, type) and issubclass(value, Section):
                yield from _fields(value, f"{path}.<name>.")


def _cells(path: str, info: FieldInfo, defaults: Mapping[str, Any]) -> str:
    default = "required" if info.is_required() else f"`{_value(_default(path, info, defaults))}`"
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    resume = "yes" if extra.get("resumable") else ""
    bounds = ", ".join(_bound(bound) for bound in info.metadata if type(bound) in _BOUNDS)
    cells = (_type(info.annotation), default, bounds, resume, info.description or "")
    return " | ".join(cell.replace("|", "\\|") for cell in cells)


def _bound(bound: Any) -> str:
    """``Ge(ge=1)`` becomes ``≥ 1``."""
    attribute, sign = _BOUNDS[type(bound)]
    return f"{sign} {getattr(bound, attribute)}"


def _default(path: str, info: FieldInfo, defaults: Mapping[str, Any]) -> Any:
    """The value in the configuration without a preset: a section's default may differ from its field's."""
    value: Any = defaults
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return info.get_default(call_default_factory=True, validated_data={})
        value = value[part]
    return value


def _type(annotation: Any) -> str:
    if annotation in _TYPES:
        return _TYPES[annotation]
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{_value(word)}`" for word in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(part) for part in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)}: {_type(arguments[0])}"
    if origin in (tuple, list):
        return f"list: {_type(arguments[0])}"
    if origin is dict:
        return f"table: {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    raise TypeError(f"{annotation}: say in docs_config.py how this type is called")


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _sections(rows: list[Row], owner: str = "") -> str:
    """One table a section under its own heading; keys without a section come first."""
    sections: dict[str, list[str]] = {}
    for path, cells in rows:
        section = path.split(".")[0] if "." in path else ""
        sections.setdefault(section, []).append(f"| `{path}` | {cells} |")
    head = "| key | type | default | bounds | resume | meaning |\n| --- | --- | --- | --- | --- | --- |\n"
    titles = {name: f"### `{name}`{owner}\n\n" if name else "" for name in sections}
    return "\n\n".join(titles[name] + head + "\n".join(lines) for name, lines in sections.items())


def _presets(family: Family) -> str:
    """What each preset sets; a key that a preset leaves alone shows the default."""
    names = list(family.presets)
    resolved = {name: _leaves(configuration.dump(resolve(family, name))) for name in names}
    stated = {key for preset in family.presets.values() for key in _leaves(preset)}
    keys = [path for path, _ in configuration.walk(config_class(family)) if _stated(path, stated)]
    head = [f"| key | {' | '.join(f'`{name}`' for name in names)} |", "| --- |" + " --- |" * len(names)]
    rows = (f"| `{key}` | {' | '.join(_preset_cell(resolved[name], key) for name in names)} |" for key in keys)
    return "\n".join((*head, *rows))


def _stated(path: str, stated: set[str]) -> bool:
    return any(key == path or key.startswith(f"{path}.") for key in stated)


def _preset_cell(values: Mapping[str, Any], key: str) -> str:
    if key in values:
        return f"`{_value(values[key])}`"
    inner = {name.removeprefix(f"{key}."): value for name, value in values.items() if name.startswith(f"{key}.")}
    return f"`{_value(inner)}`"


def _leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def page() -> str:
    """The reference of this installation: every family and every reader found."""
    return reference(
        {name: families.load(name) for name in families.names()},
        {name: readers.load(name).Options for name in readers.names()},
    )


def main() -> None:
    """Write the page to the file that the command line names."""
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
