"""What benchmarks and examples import of the package is there: nothing else notices when a name moves."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/**/*.py")])


def lacking(source: str) -> Iterator[str]:
    """What a script takes from the package and is not there: modules, names it imports from them, and attributes of
    modules that it imported."""
    tree, modules = ast.parse(source), defaultdict[str, list[ModuleType]](list)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sensorium" and not node.level:
            module = importlib.import_module(str(node.module))
            parts = {one.name for one in pkgutil.iter_modules(getattr(module, "__path__", ()))}
            for one in node.names:
                if one.name in parts:
                    modules[one.asname or one.name].append(importlib.import_module(f"{node.module}.{one.name}"))
                elif one.name not in vars(module):
                    yield f"{node.module}.{one.name}"
    for node in ast.walk(tree):  # a parameter or variable of the same name is no module
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)):
            modules.pop(node.arg if isinstance(node, ast.arg) else node.id, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            known = modules[node.value.id]  # two functions may each import one of this name
            if not any(hasattr(module, node.attr) for module in known):
                yield f"{known[0].__name__}.{node.attr}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_is_there(path: Path) -> None:
    assert list(lacking(path.read_text(encoding="utf-8"))) == []


def test_what_is_not_there_is_found() -> None:
    source = """
from sensorium import cli, nowhere
from sensorium.engine import checkpoint as kept, loop

def f():
    from sensorium.engine.contract import Host, Saved
    loop.train(kept.gone, cli.app)
"""
    missing = ["sensorium.nowhere", "sensorium.engine.contract.Saved", "sensorium.engine.checkpoint.gone"]
    assert list(lacking(source)) == missing
