"""The command line: help without heavy imports, and one clear line for bad input, with nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from sensorium import __version__, cli, families

HEAVY = ("torch", "transformers", "accelerate", "numpy", "matplotlib", "PIL", "soundfile", "pydantic", "yaml")
TWIN = 'from dataclasses import replace\nfrom helpers import TOY\nFAMILY = replace(TOY, name="twin")\n'


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Sensorium = Callable[..., Answer]


@pytest.fixture
def sensorium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Sensorium]:
    """Runs a command line in an empty folder; the toy families ``toy`` and ``twin`` exist beside the real ones."""
    package, folder = tmp_path / "more_families", tmp_path / "here"
    for name, text in (("toy", "from helpers import TOY as FAMILY\n"), ("twin", TWIN)):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text(text)
    folder.mkdir()
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(package)])
    monkeypatch.chdir(folder)

    def call(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["sensorium", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        said = capsys.readouterr()
        return Answer(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    yield call
    for name in ("toy", "twin"):
        sys.modules.pop(f"sensorium.families.{name}", None)


def content(folder: Path) -> dict[str, str]:
    """Digest of every file; the lock, which says who came last, is left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(answer: Answer, *fragments: str, lines: int = 1) -> None:
    """Exit code 2, so many lines on standard error, every fragment among them, no traceback, no word elsewhere."""
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")
    assert len(answer.err.splitlines()) == lines, answer.err
    assert "Traceback" not in answer.out + answer.err
    for fragment in fragments:
        assert fragment in answer.err


BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "unknown family": (("train", "twim"), ("unknown family 'twim'", "did you mean 'twin'?"), 1),
    "family like no other": (("train", "xyz"), ("unknown family 'xyz'", "there are: ", "toy"), 1),
    "unknown preset": (("train", "toy", "--preset", "huge"), ("no preset 'huge'", "tiny"), 1),
    "misspelt keys": (
        ("train", "toy", "model.widht=3", "train.bath_size=2", "lr=1e-3", "optim.weight_decay=-1"),
        (
            "4 problems",
            "model.widht: unknown key; did you mean 'width'?",
            "train.bath_size: unknown key; did you mean 'batch_size'?",
            "lr: unknown key; did you mean 'optim.lr'?",
            "optim.weight_decay: input should be greater than or equal to 0 (found -1)",
        ),
        5,
    ),
    "wrong type": (("train", "toy", "model.width=wide"), ("model.width: input should be a valid integer", "'wide'"), 2),
    "out of bounds": (("train", "toy", "model.dropout=1.5"), ("model.dropout: input should be less than 1", "1.5"), 2),
    "no such preset": (("train", "toy", "quickly"), ("has no preset 'quickly'; it has: tiny",), 1),
    "two presets": (("check", "toy", "tiny", "--preset", "other"), ("two presets: 'tiny' and --preset other",), 1),
    "no override": (("train", "toy", "tiny", "quickly"), ("'quickly' is not an override", "optim.lr=1e-4"), 1),
    "no such file": (("train", "toy", "--config", "gone.yaml"), ("gone.yaml: cannot be read (No such file",), 1),
    "unknown kind of file": (("train", "toy", "--config", "run.ini"), ("run.ini: unknown kind", ".yaml"), 1),
    "no run to resume": (("resume", "nowhere"), ("nowhere: not a run folder (no config.yaml in it)",), 1),
    "no run to evaluate": (("evaluate", "nowhere"), ("nowhere: not a run folder",), 1),
    "no run to report": (("report", "nowhere"), ("nowhere: not a run folder",), 1),
    "no run to search": (("search", "nowhere", "a dog"), ("nowhere: not a run folder",), 1),
    "nothing to search for": (("search", "nowhere"), ("nothing to look for", "--image FILE"), 1),
    "unknown data set": (("demo", "--data", "moon"), ("--data moon", "emoji, stamps, synthetic"), 1),
    "unknown reader": (("data", "verify", "nativ"), ("nativ", "native"), 1),
}


@pytest.mark.parametrize(("words", "fragments", "lines"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(
    words: tuple[str, ...], fragments: tuple[str, ...], lines: int, sensorium: Sensorium
) -> None:
    refused(sensorium(*words), *fragments, lines=lines)
    assert not content(Path.cwd())


@pytest.fixture
def run(sensorium: Sensorium) -> Path:
    """A finished run of the toy family."""
    answer = sensorium("train", "toy", "--run", "run", "train.steps=2", "checkpoint.every_steps=1")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert "report.html" in answer.out.splitlines()[-1]
    return Path("run")


def test_a_run_is_trained_made_longer_evaluated_and_reported(run: Path, sensorium: Sensorium) -> None:
    """The counterpart of every refusal below."""
    answer = sensorium("resume", str(run), "train.steps=4")
    assert answer.code == 0, answer.err
    assert (run / "checkpoints/step_00000004").is_dir()
    for split in ("train", "val", "test"):
        assert sensorium("evaluate", str(run), "--split", split, "--checkpoint", "latest").code == 0
        assert (run / "evaluation" / f"{split}.json").is_file()
    (run / "report.html").unlink()
    assert sensorium("report", str(run)).code == 0
    assert (run / "report.html").is_file()


REFUSED_RUN: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "not twice": (("train", "toy", "--run", "run"), ("run: already holds a run", "sensorium resume run"), 1),
    "what is learned": (
        ("resume", "run", "model.width=9", "train.batch_size=4", "optim.lr=0.5"),
        (
            "cannot change what it learns",
            "model.width: 8 in the run, 9 asked for",
            "train.batch_size: 8 in",
            "optim.lr",
        ),
        4,
    ),
    "misspelt on resume": (("resume", "run", "train.step=9"), ("train.step: unknown key; did you mean 'steps'?",), 2),
    "no section on resume": (("resume", "run", "train=5"), ("train: ", "(found 5)"), 2),
    "shorter on resume": (("resume", "run", "train.steps=1"), ("2 steps are done already", "(1 asked for)"), 1),
    "unknown split": (("evaluate", "run", "--split", "dev"), ("no split 'dev'; there are: train, val, test",), 1),
    "no controls": (
        ("evaluate", "run", "--require-use"),
        ("run: --require-use needs an evaluation with controls; family 'toy' has none",),
        1,
    ),
    "unknown checkpoint": (
        ("evaluate", "run", "--checkpoint", "step_9"),
        ("no checkpoint 'step_9'", "best, latest, step_00000001, step_00000002"),
        1,
    ),
    "no such export": (("export", "run"), ("family 'toy' has no export format 'hf'; it has: none",), 1),
    "no use": (("search", "run", "a dog"), ("family 'toy' has no use",), 1),
}


@pytest.mark.parametrize(("words", "fragments", "lines"), REFUSED_RUN.values(), ids=REFUSED_RUN)
def test_a_run_is_not_harmed(
    words: tuple[str, ...], fragments: tuple[str, ...], lines: int, run: Path, sensorium: Sensorium
) -> None:
    before = content(run)
    refused(sensorium(*words), *fragments, lines=lines)
    assert content(run) == before


def test_a_checkpoint_of_another_family_is_refused(run: Path, sensorium: Sensorium) -> None:
    assert sensorium("train", "twin", "--run", "other", "train.steps=3").code == 0
    shutil.copytree("other/checkpoints/step_00000003", run / "checkpoints/step_00000003")
    answer = sensorium("evaluate", str(run), "--checkpoint", "step_00000003")
    refused(answer, "step_00000003: a checkpoint of family 'twin', not 'toy'")


def test_a_folder_that_is_something_else_is_not_written_into(sensorium: Sensorium) -> None:
    Path("photos").mkdir()
    Path("photos/cat.jpg").write_bytes(b"a cat")
    refused(sensorium("train", "toy", "--run", "photos"), "photos: not empty (cat.jpg", "--run takes another folder")
    assert list(content(Path.cwd())) == ["photos/cat.jpg"]


def test_missing_data_begin_no_run(sensorium: Sensorium) -> None:
    """The folder stays free for the same command with the data in place."""
    words = ("train", "thinking", "--preset", "tiny", "--run", "run", "data.reader=native", "data.root=gone")
    for _ in range(2):
        refused(sensorium(*words), "gone: no such folder", "manifest.jsonl")
    assert not content(Path.cwd())


def test_an_error_of_ours_in_a_process_of_its_own(tmp_path: Path) -> None:
    program = "from sensorium.cli import main; main()"
    words = [sys.executable, "-W", "error", "-c", program, "train", "thinkin"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown family 'thinkin'; did you mean 'thinking'?\n"


def test_the_command_line_is_a_module_that_launchers_can_start() -> None:
    words = [sys.executable, "-m", "sensorium", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"sensorium {__version__}\n"


def imported_by(program: str) -> set[str]:
    """The heavy packages that ``program`` has imported when it ends."""
    ending = f"\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program + ending], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    help_ = "from sensorium.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    assert imported_by(help_) == set()
    assert imported_by("import sensorium.config") >= {"pydantic", "yaml"}


def commands(command: Any, name: str = "sensorium") -> Iterator[tuple[str, Any]]:
    """Every verb and every group of verbs."""
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {child}")


ALL = dict(commands(typer.main.get_command(cli.app)))
VERBS = {name: command for name, command in ALL.items() if not getattr(command, "commands", None)}


@pytest.mark.parametrize("name", ALL)
def test_help_is_shown(name: str, sensorium: Sensorium) -> None:
    answer = sensorium(*name.split()[1:], "--help")
    assert answer.code == 0
    assert "Usage: " in answer.out
    assert ("Example: sensorium" in answer.out) == (name in VERBS)


def test_the_verbs_are_there() -> None:
    verbs = {
        "demo",
        "train",
        "resume",
        "evaluate",
        "report",
        "search",
        "export",
        "families",
        "data list",
        "data cache clear",
    }
    assert {f"sensorium {verb}" for verb in verbs} <= VERBS.keys()


MEASURED = """
from dataclasses import replace
from helpers import TOY
from sensorium.engine.contract import Table


def profile(config, meter):
    done = []
    took, used = meter.seconds(lambda: done.append(1)), meter.peak(lambda: bytearray(2**20))
    row = (len(done), meter.rows, str(meter.device), took >= 0, used is None or used < 2**30, config.model.width)
    return Table("Widths", ("passes", "rows", "device", "took", "used", "width"), (row,))


FAMILY = replace(TOY, name="twin", profile=profile)
"""


def test_models_are_compared_on_the_device_of_the_run(sensorium: Sensorium, tmp_path: Path) -> None:
    (tmp_path / "more_families/twin/__init__.py").write_text(MEASURED)
    answer = sensorium(
        "profile", "twin", "--rows", "3", "--repeats", "2", "--json", "model.width=9", "train.device=cpu"
    )
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["rows"] == [[7, 3, "cpu", True, True, 9]]  # five passes do not count
    shown = sensorium("profile", "twin", "tiny", "--repeats", "1")
    assert "Widths" in shown.out
    assert "passes" in shown.out
    refused(sensorium("profile", "toy"), "family 'toy' has no models to compare", "sensorium check toy")
