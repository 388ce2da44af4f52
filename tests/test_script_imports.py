"""What benchmarks and examples import of the package is there: nothing else notices when a name moves."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/**/*.py")])


def lacking(source: str) -> Iterator[str]:
    """Modules of the package, and names in them, that a script imports and that are not there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sensorium" and not node.level:
            module = importlib.import_module(str(node.module))
            parts = {one.name for one in pkgutil.iter_modules(getattr(module, "__path__", ()))}
            for one in node.names:
                if one.name not in vars(module) and one.name not in parts:
                    yield f"{node.module}.{one.name}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_is_there(path: Path) -> None:
    assert list(lacking(path.read_text(encoding="utf-8"))) == []


def test_what_is_not_there_is_found() -> None:
    source = "from sensorium import cli, nowhere\ndef f():\n    from sensorium.engine.contract import Host, Saved\n"
    assert list(lacking(source)) == ["sensorium.nowhere", "sensorium.engine.contract.Saved"]
