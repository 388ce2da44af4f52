"""``docs/add-a-family.md`` is followed to the letter: its blocks become a sixth family, which trains and resumes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import lines
from test_layers import lint
from test_resume import assert_equal_runs, cut

from sensorium import cli, families

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/add-a-family.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^### `([\w.]+)`\n.*?^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
FILES = {"__init__.py", "config.py", "data.py", "task.py", "evaluator.py", "presets.py"}


def write_family(folder: Path) -> Path:
    """The family of the page in ``folder``/thumbnails."""
    assert BLOCKS.keys() == FILES
    (folder / "thumbnails").mkdir(parents=True)
    for name, text in BLOCKS.items():
        (folder / "thumbnails" / name).write_text(text, encoding="utf-8")
    return folder / "thumbnails"


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The family, found by its name like the others; the work goes on in an empty folder."""
    folder = write_family(tmp_path / "families")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder.parent)])
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("sensorium.families.thumbnails")]:
        del sys.modules[name]


def sensorium(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    """Exit code of a command line, typed as the page has it."""
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def page_commands() -> list[str]:
    return re.findall(r"^sensorium .*$", PAGE, flags=re.MULTILINE)


@pytest.mark.usefixtures("family")
def test_the_family_learns_resumes_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, longer, evaluate = page_commands()
    assert sensorium(monkeypatch, f"{train} checkpoint.every_steps=20 checkpoint.keep=50") == 0
    run = Path("runs/thumbnails")
    cut(run, Path("runs/cut"), 20)
    assert sensorium(monkeypatch, "sensorium resume runs/cut") == 0
    assert_equal_runs(run, Path("runs/cut"))

    losses = [line["loss"] for line in lines(run / "metrics.jsonl") if line["kind"] == "train"]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    page = (run / "report.html").read_text(encoding="utf-8")
    for shown in ("Pictures drawn again", "Pictures with the nearest numbers", "mean_colour", 'src="data:image/'):
        assert shown in page

    assert sensorium(monkeypatch, longer) == 0
    assert sensorium(monkeypatch, evaluate) == 0
    assert (run / "evaluation/val.json").is_file()
    capsys.readouterr()
    assert sensorium(monkeypatch, "sensorium families") == 0
    assert "thumbnails" in capsys.readouterr().out


@pytest.mark.usefixtures("family")
def test_a_lost_picture_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": "1", "split": "train", "image": "lost.png"}\n')
    assert sensorium(monkeypatch, f"sensorium train thumbnails data.root={tmp_path}") == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/lost.png: cannot be read (No such file or directory)\n"


@pytest.mark.usefixtures("family")
def test_the_family_refuses_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative twin: the sections of the page are in force."""
    assert sensorium(monkeypatch, "sensorium train thumbnails --preset tiny model.nubmers=3 data.side=2") == 2
    said = capsys.readouterr().err
    assert "did you mean 'numbers'?" in said
    assert "data.side: input should be greater than or equal to 4 (found 2)" in said


def test_without_its_folder_there_is_no_such_family() -> None:
    assert "thumbnails" not in families.names()


def test_the_contract_test_takes_the_family_in(tmp_path: Path) -> None:
    """It is tested because it is there: the same checks as for every other family, in a process that finds it."""
    folder = write_family(tmp_path / "families").parent
    text = f"from sensorium import families\nfamilies.__path__.append({str(folder)!r})\n"
    (tmp_path / "more_families.py").write_text(text)
    words = ["-p", "more_families", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", "thumbnails"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 9


def test_the_blocks_keep_the_rules_of_the_house(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src/sensorium", tmp_path / "sensorium", ignore=shutil.ignore_patterns("__pycache__"))
    folder = write_family(tmp_path / "sensorium/families")
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout
    for words in (("check",), ("format", "--check")):
        command = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
