"""The documentation tells the truth: links lead somewhere, commands parse, the reference equals the models."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import typer
from helpers import TOY, ToyData
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sensorium import cli, config, docs_config, families
from sensorium.data import readers
from sensorium.engine import checkpoint, settings
from sensorium.engine.guard import Guard
from sensorium.engine.session import Progress

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md"), *ROOT.glob("examples/**/*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def test_the_reference_equals_the_models() -> None:
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == docs_config.page(), "run: make docs"


def test_the_reference_follows_the_models() -> None:
    """Negative twin: another model, bound, default, description or preset is another page."""
    page = docs_config.reference({"toy": TOY}, {"files": ToyData})
    assert "| `model.dropout` | number | `0.2` | ≥ 0, < 1 |  | Dropout. |" in page
    assert "| `train.epochs` | number or null | `1.0` | \\> 0 | yes |" in page
    assert "| `optim.groups.<name>.lr_scale` | number | `1.0` | ≥ 0 |" in page
    assert "| `train.steps` | `12` |" in page
    assert "| `data.options.length` | whole number | `20` | ≥ 1 |" in page


def test_every_key_is_described() -> None:
    sections = [settings.config_class(families.load(name)) for name in families.names()]
    sections += [readers.load(name).Options for name in readers.names()]
    fields = [field for section in sections for field in config.walk(section)]
    assert not [path for path, info in fields if not (info.description or "").endswith((".", ")"))]


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    targets = (target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose))
    return [t for t in targets if t and not t.startswith(("http:", "https:")) and not (page.parent / t).exists()]


def commands(text: str) -> Iterator[list[str]]:
    """The words behind ``sensorium`` of every command in a shell block."""
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and words[0] == "sensorium":
                yield words[1:]


def problem_of(words: list[str]) -> str | None:
    """Why a command line would not be understood: no such verb or option, or a key that no configuration has."""
    command = typer.main.get_command(cli.app)
    verb = [*words]
    while verb and verb[0] in getattr(command, "commands", {}):
        command = command.commands[verb.pop(0)]  # type: ignore[attr-defined]
    if getattr(command, "commands", None):
        return f"no such verb: {' '.join(words)}"
    try:
        context = command.make_context(" ".join(words), verb)
    except typer.Exit:
        return None
    except Exception as error:  # noqa: BLE001  # whatever the parser raises is the finding
        return f"{' '.join(words)}: {error}"
    known = {path for name in families.names() for path, _ in config.walk(settings.config_class(families.load(name)))}
    known |= {preset for name in families.names() for preset in families.load(name).presets}
    given = context.params.get("overrides") or context.params.get("words") or []
    unknown = [path for item in given if (path := item.partition("=")[0]) not in known and "options." not in path]
    return f"{' '.join(words)}: no key {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere_and_commands_parse(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not broken_links(page, text)
    assert not [problem for words in commands(text) if (problem := problem_of(words))]


def test_a_wrong_page_is_found() -> None:
    assert broken_links(
        ROOT / "README.md", "see [here](docs/nowhere.md#part) and [there](docs/determinism.md#how)"
    ) == ["docs/nowhere.md"]
    page = (
        "```bash\n$ sensorium trian toy\nsensorium report --fast runs/a  # why\nsensorium resume a train.stops=3\n"
        "sensorium train thinking tyni\n```"
    )
    assert [bool(problem_of(words)) for words in commands(page)] == [True, True, True, True]
    assert [problem_of(words) for words in commands("```bash\nsensorium resume a \\\n  train.steps=3\n```")] == [None]


def test_the_format_page_names_every_file_and_key(tmp_path: Path) -> None:
    state = Progress(Guard(5)).dump()
    folder = checkpoint.save(tmp_path, "toy", 1, checkpoint.Content({"w": torch.ones(2)}, {}, state, "-"))
    page = (ROOT / "docs/checkpoint-format.md").read_text(encoding="utf-8")
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    names = [path.name for path in folder.iterdir()] + [
        *manifest,
        *state,
        *state["guard"],
        *manifest["files"]["state.json"],
    ]
    assert not [name for name in names if f"`{name}`" not in page and f"    {name} " not in page]
    assert f"Format {checkpoint.FORMAT}." in page


def requirements(group: str | None = None) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] if group is None else project["optional-dependencies"][group]
    return [Requirement(line) for line in lines]


def test_constraints_pin_every_requirement_to_what_is_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(pins) == sorted(pins)
    assert "+" not in "".join(pins.values())  # a build suffix would shut out other builds of the same version
    for requirement in (*requirements(), *requirements("dev"), *requirements("demo")):
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), requirement
    for requirement in (*requirements(), *requirements("dev")):
        assert version(requirement.name).split("+")[0] == pins[canonicalize_name(requirement.name)]
