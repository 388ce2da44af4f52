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


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_violation_breaks_its_contract(contract: str, names: dict[str, str], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src/sensorium", tmp_path / "sensorium", ignore=ignored)
    name, line = VIOLATIONS[contract]
    path = tmp_path / "sensorium" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdicts(done.stdout)[names[contract]] == "BROKEN"


def test_a_module_without_a_layer_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src/sensorium", tmp_path / "sensorium", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sensorium/engine/helpers.py").write_text("")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "sensorium.engine.helpers" in done.stdout


def test_every_contract_has_a_violation(names: dict[str, str]) -> None:
    assert VIOLATIONS.keys() == names.keys()
