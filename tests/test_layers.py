"""Imports go down only. The contracts stand in pyproject.toml; here they are checked, and shown to bite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api

ROOT = Path(__file__).parent.parent
PROGRAM = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"

# One forbidden import for each contract: the file that gets it, and the line.
VIOLATIONS = {
    "house": ("data/items.py", "import sensorium.engine.order"),
    "engine": ("engine/checkpoint.py", "import sensorium.engine.loop"),
    "families": ("families/thinking/model.py", "import sensorium.engine.rundir"),
    "siblings": ("families/second/__init__.py", "import sensorium.families.thinking.model"),
    "parts": ("parts/attention.py", "import sensorium.config"),
    "backend": ("engine/order.py", "import accelerate"),
    "transformers": ("metrics/retrieval.py", "import transformers"),
}


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the contracts of pyproject.toml over the package in ``source``."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    """Name of each contract by its id."""
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    return {contract["id"]: contract["name"] for contract in contracts}


def verdicts(output: str) -> dict[str, str]:
    """KEPT or BROKEN by the name of the contract."""
    return dict(re.findall(r"^(.+) (KEPT|BROKEN)(?: \(.*\))?$", output, re.MULTILINE))


def test_every_contract_is_kept(names: dict[str, str]) -> None:
    done = lint(ROOT / "src")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done.stdout) == dict.fromkeys(names.values(), "KEPT")


def sections(output: str) -> dict[str, str]:
    """What is said of each broken contract, by its name."""
    parts = re.split(r"^(.+)\n-{4,}\n", output.partition("Broken contracts")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def copied(target: Path) -> Path:
    shutil.copytree(ROOT / "src/sensorium", target / "sensorium", ignore=shutil.ignore_patterns("__pycache__"))
    return target / "sensorium"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of a package that holds every violation."""
    package = copied(tmp_path_factory.mktemp("broken"))
    for name, line in VIOLATIONS.values():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"\n{line}\n")
    done = lint(package.parent)
    assert done.returncode == 1, done.stdout + done.stderr
    return sections(done.stdout)


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_violation_breaks_its_contract(contract: str, names: dict[str, str], broken: dict[str, str]) -> None:
    """Its own one: the very import is named."""
    name, line = VIOLATIONS[contract]
    module = "sensorium." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert f"{module} -> {line.removeprefix('import ')} (l." in broken[names[contract]]


def test_a_module_without_a_layer_is_refused(tmp_path: Path) -> None:
    (copied(tmp_path) / "engine/helpers.py").write_text("")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "sensorium.engine.helpers" in done.stdout


def test_every_contract_has_a_violation(names: dict[str, str]) -> None:
    assert VIOLATIONS.keys() == names.keys()
