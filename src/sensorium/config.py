"""Strict configuration: files, overrides, all problems at once, dump and digest.

A configuration is a tree of frozen pydantic models (``Section``). Unknown keys are refused with a suggestion,
every number has bounds, and every problem of a file is listed at once with its dotted path.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import json5
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sensorium import reading
from sensorium.errors import ConfigError

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """Base of every configuration section: frozen, no unknown keys, no NaN, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def resumable(default: Any, description: str, **bounds: Any) -> Any:
    """A field that may differ when a run is resumed (how long, how often, where; never what is learned)."""
    return Field(default, description=description, json_schema_extra={"resumable": True}, **bounds)


class _Yaml(yaml.SafeLoader):
    """YAML in which ``5e-5`` is a number and ``off`` a word, as in YAML 1.2 (1.1 wants ``5.0e-5``, and reads False)."""


_BOOL = "tag:yaml.org,2002:bool"
_Yaml.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in value if tag != _BOOL]
    for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


class _YamlDumper(yaml.SafeDumper):
    """Puts quotes around a text that ``_Yaml`` would read as a number, a truth value or null."""


_YamlDumper.yaml_implicit_resolvers = {
    key: [*yaml.SafeDumper.yaml_implicit_resolvers.get(key, []), *_Yaml.yaml_implicit_resolvers.get(key, [])]
    for key in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _Yaml.yaml_implicit_resolvers.keys()
}


def _unique_mapping(loader: _Yaml, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Yaml.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


_MOST_BYTES = 200_000  # of a configuration file; the parsers take a second for 20 kB
# tomllib needs the square of a key's length.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # json5 and tomllib raise ValueErrors


def load_file(path: Path) -> dict[str, Any]:
    """Read YAML, JSON with comments, or TOML into a plain dictionary. Raises ConfigError with the place."""
    readers: dict[str, Callable[[str], Any]] = {
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
        ".json": _read_json,
        ".json5": _read_json,
        ".toml": _read_toml,
    }
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path}: unknown kind of configuration file; allowed: {', '.join(readers)}")
    try:
        text = reading.read_bytes(path, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    try:
        content = readers[path.suffix.lower()](text)
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: {_why(error)}") from error
    if content is None:
        return {}
    if problem := reading.problem_of(content):
        raise ConfigError(f"{path}: {problem}")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found a {type(content).__name__}; expected sections with keys")
    return content


def _read_json(text: str) -> Any:
    try:
        return reading.parse_json(text)
    except ValueError:  # comments, perhaps; fifty times slower
        return json5.loads(text, allow_duplicate_keys=False)


def _read_toml(text: str) -> Any:
    if _LONG_KEY.search(text):
        raise ValueError("a key of more than 64 parts")
    return tomllib.loads(text)


def _read_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Yaml)
    except (TypeError, LookupError, AttributeError) as error:  # PyYAML lets these through
        raise ValueError("a key that is a list or a section, or a value that is not what its !!tag says") from error


def _why(error: Exception) -> str:
    """The reason in one line of bearable length."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return _cut(" ".join(str(error).split()) or type(error).__name__)


def _cut(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]} …"


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn ``["train.batch_size=8", "optim.lr=5e-5"]`` into nested dictionaries. Values are read as YAML."""
    tree: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            raise ConfigError(
                f"{_cut(repr(override))} is not an override; write section.key=value, for example optim.lr=1e-4"
            )
        try:
            value = _read_yaml(text)
        except _UNREADABLE as error:
            raise ConfigError(
                f"{_cut(repr(override))}: the value cannot be read; put quotes around text with : or #"
            ) from error
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{_cut(repr(override))} contradicts an earlier override of {parent!r}")
        node[leaf] = value
    if problem := reading.problem_of(tree):
        raise ConfigError(f"override {problem}")
    return tree


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; dictionaries are merged key by key, everything else is replaced."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = merge(value) if isinstance(value, Mapping) else value
    return result


def build(model: type[SectionT], content: Mapping[str, Any], origin: str = "configuration") -> SectionT:
    """Validate ``content``. Raises ConfigError that lists every problem, one a line, with its dotted path."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        problems = [_problem(model, dict(item)) for item in error.errors()]
        plural = "problem" if len(problems) == 1 else "problems"
        raise ConfigError("\n".join([f"{origin}: {len(problems)} {plural}", *(f"  {p}" for p in problems)])) from None


def _problem(model: type[Section], error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    dotted = ".".join(path) or "(whole)"
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(model, path[:-1]))
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        elsewhere = [name for name, _ in walk(model) if name.rpartition(".")[2] == path[-1]]
        hint = close[0] if close else elsewhere[0] if elsewhere else None
        advice = f"did you mean {hint!r}?" if hint else f"allowed here: {', '.join(allowed)}"
        return f"{dotted}: unknown key; {advice}"
    if error["type"] == "missing":
        return f"{dotted}: missing; a value is required"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    whole = error["loc"] == () or (error["type"] == "value_error" and isinstance(error["input"], Mapping))
    found = "" if whole else f" (found {_cut(repr(error['input']))})"  # a section says itself what of it is wrong
    return f"{dotted}: {message}{found}"


def _section_of(annotation: Any) -> type[Section] | None:
    """The Section inside an annotation such as ``Section`` or ``Section | None``."""
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _fields_at(model: type[Section], path: Sequence[str]) -> list[str]:
    annotation: Any = model
    for part in path:
        if section := _section_of(annotation):
            annotation = section.model_fields[part].annotation if part in section.model_fields else None
        else:  # of a table of sections each has any name
            annotation = typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None
    section = _section_of(annotation)
    return list(section.model_fields) if section else []


def walk(model: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf field of a configuration: dotted name and pydantic ``FieldInfo``."""
    for name, info in model.model_fields.items():
        section = _section_of(info.annotation)
        if section is None:
            yield prefix + name, info
        else:
            yield from walk(section, f"{prefix}{name}.")


def dump(config: Section) -> dict[str, Any]:
    """Plain values; ``build(type(config), dump(config)) == config``."""
    return config.model_dump(mode="json")


def dump_yaml(config: Section) -> str:
    """The configuration as YAML text in the order of the fields."""
    return yaml.dump(dump(config), Dumper=_YamlDumper, sort_keys=False, allow_unicode=True)


def flat(config: Section) -> dict[str, Any]:
    """Plain values by dotted name."""
    return leaves(dump(config))


def digest(config: Section) -> str:
    """16 hex digits that change when any value changes."""
    text = json.dumps(dump(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name, whatever holds them."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_resume(stored: Section, wanted: Section) -> None:
    """Raise ConfigError listing every field that differs although it is not resumable."""
    free = {name for name, info in walk(type(stored)) if (info.json_schema_extra or {}).get("resumable")}
    old, new = flat(stored), flat(wanted)
    of_free = tuple(f"{name}." for name in free)  # what is within a table
    changed = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in free and not key.startswith(of_free)
    ]
    if changed:
        lines = [f"  {key}: {old.get(key)!r} in the run, {new.get(key)!r} asked for" for key in changed]
        raise ConfigError(
            "\n".join(
                ["a resumed run cannot change what it learns:", *lines, f"  may differ: {', '.join(sorted(free))}"]
            )
        )
