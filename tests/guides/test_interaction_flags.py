"""The interaction guide's flags, config.yaml, data folders and shell scripts: what they mean, and what mistakes say."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import published_trees as trees
import pytest
import torch
import yaml
from interaction_scripts import FOLDER, SMALL, module, run
from script_runs import Answer, Script, answering

from sensorium import families, guide
from sensorium.engine import continuation
from sensorium.engine.contract import Loaded
from sensorium.engine.settings import RunConfig, resolve
from sensorium.families.interaction.portable import portable_content

GUIDE = """\
model:
  size: base
  embed_dim: 512
  use_checkpoint: true

training:
  epochs: 100
  batch_size: 8
  learning_rate: 1.0e-4
  use_amp: true
  gradient_accumulation_steps: 4

paths:
  data_root: ./data
  output_dir: ./outputs
"""

SNIPPET = """\
import torch
from model import create_model

# 创建模型
model = create_model('base')

# 加载权重
checkpoint = torch.load('outputs/checkpoints/best_model.pt')
model.load_state_dict(checkpoint['model_state_dict'])
model.eval()

# 推理
with torch.no_grad():
    outputs = model(
        images=image_tensor,      # [B, 3, 224, 224]
        input_ids=text_ids,       # [B, L]
        attention_mask=text_mask, # [B, L]
        audio=audio_mel           # [B, T, 80]
    )

    # 获取融合特征
    features = outputs['fused_features']  # [B, 512]

    # 获取分类logits
    logits = outputs['logits']  # [B, num_classes]
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    return answering(partial(run, monkeypatch), capsys)


def begun(script: Script, monkeypatch: pytest.MonkeyPatch, *words: str) -> continuation.Start:
    """How a command line begins, without beginning."""
    found: list[continuation.Start] = []
    with monkeypatch.context() as patch:
        patch.setattr(guide, "leads", lambda start: bool(found.append(start)))
        patch.setattr(guide, "train", lambda *_: None)
        answer = script(*words)
    assert answer.code == 0, answer.err
    return found[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one of the four data sets, and the lists alone of another one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    trees.clotho(Path("data/clotho"))
    shutil.rmtree(trees.audiocaps(Path("data/audiocaps")) / "audio", ignore_errors=True)
    for path in [*Path("data/audiocaps").rglob("*.wav")]:
        path.unlink()
    return tmp_path / "here"


def test_the_file_is_the_guides() -> None:
    assert (FOLDER / "config.yaml").read_text() == GUIDE


def test_the_defaults_are_the_guides(here: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    start = begun(script, monkeypatch)
    config = start.config
    assert start.run == Path("outputs/run")
    assert (config.model.size, config.model.embed_dim, config.model.use_checkpoint) == ("base", 512, True)
    assert (config.train.epochs, config.train.batch_size, config.train.micro_batches) == (100, 32, 4)
    assert (config.optim.lr, config.train.precision) == (1e-4, "fp16")
    assert config.track.tensorboard_dir == "outputs/logs/tensorboard"
    assert {name: (one.reader, one.root) for name, one in config.data.sets.items()} == {
        "clotho": ("clotho", "data/clotho")
    }
    stages = [stage.share for stage in families.load("interaction").stages(config)]
    assert stages == pytest.approx([0.2, 0.5, 0.3])
    assert (config.checkpoint.best_metric, config.checkpoint.milestone_epochs) == ("loss", 10)


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {
        "model": {"size": "small", "embed_dim": None, "use_checkpoint": False},
        "training": {"epochs": 7, "learning_rate": 3e-4, "use_amp": False, "gradient_accumulation_steps": 2},
        "paths": {"output_dir": "elsewhere"},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(changed))
    start = begun(script, monkeypatch, "--config", "mine.yaml")
    config = start.config
    assert (config.model.size, config.model.embed_dim, config.model.use_checkpoint) == ("small", None, False)
    assert (config.train.epochs, config.optim.lr, config.train.precision) == (7, 3e-4, "fp32")
    assert (config.train.batch_size, config.train.micro_batches) == (16, 2)  # 8 is the default
    assert start.run == Path("elsewhere/run")
    flags = "--model-size tiny --epochs 2 --lr 5e-5 --batch-size 3 --output-dir there --data-root data"
    start = begun(script, monkeypatch, "--config", "mine.yaml", *flags.split())
    config = start.config
    assert (config.model.size, config.train.epochs, config.optim.lr) == ("tiny", 2, 5e-5)
    assert (config.train.batch_size, config.train.micro_batches, start.run) == (6, 2, Path("there/run"))
    assert config.model.use_checkpoint is False
    start = begun(script, monkeypatch, "--set", "seed=3", "--set", "optim.weight_decay=0.1")
    assert (start.config.seed, start.config.optim.weight_decay) == (3, 0.1)


BAD = {
    "unknown flag": (["--batchsize", "4"], "--batchsize: unknown flag; did you mean --batch-size?"),
    "no number": (["--epochs", "ten"], "argument --epochs: invalid float value: 'ten'"),
    "no size": (
        ["--model-size", "huge"],
        "model.size: input should be 'tiny', 'small', 'base' or 'large' (found 'huge')",
    ),
    "no rows": (["--batch-size", "0"], "training.batch_size: input should be greater than or equal to 1"),
    "unknown key": (["--config", "bad.yaml"], "training.lerning_rate: unknown key; did you mean 'learning_rate'?"),
    "no file": (["--config", "gone.yaml"], "gone.yaml: cannot be read"),
    "no data": (
        ["--data-root", "empty"],
        "python download_datasets.py --datasets coco clotho audiocaps --data-root empty",
    ),
    "no words": ([], "model.text.word_vectors=none"),
    "no checkpoint": (["--resume", "gone.pt"], "gone.pt: cannot be read"),
    "other values": (["--resume", "x.pt", "--config", "bad.yaml"], "--config has no place beside --resume"),
    "other data": (["--resume", "x.pt", "--demo"], "--demo has no place beside --resume"),
    "more rows than data": (
        ["--batch-size", "1000", "--set", "model.text.word_vectors=none", "--set", "model.text.tokenizer=learn"],
        "train.batch_size is 4,000, but there are 4 training samples",
    ),
}


@pytest.mark.parametrize(("words", "line"), BAD.values(), ids=BAD)
def test_a_mistake_is_said_and_leaves_nothing(here: Path, script: Script, words: list[str], line: str) -> None:
    Path("bad.yaml").write_text("training: {lerning_rate: 1}")
    answer = script(*words)
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert line in answer.err
    assert not Path("outputs").exists()


def test_the_table_shows_what_is_there_and_what_is_not(here: Path, script: Script) -> None:
    answer = script()
    rows = {line.split()[0]: line for line in answer.lines if line.strip() and line.split()[0] in trees_of_the_guide()}
    assert set(rows) == set(trees_of_the_guide())
    assert re.search(r"clotho +found +- +|clotho +found", rows["clotho"])
    assert "absent: no such folder" in rows["coco"]
    assert "absent: no picture or recording in it" in rows["audiocaps"]


def test_esc50_is_judged_where_it_lies_there_and_trains_nothing(
    here: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.esc50(Path("data/esc50"))
    assert set(begun(script, monkeypatch).config.data.sets) == {"clotho", "esc50"}
    shutil.rmtree("data/clotho")
    answer = script()
    assert answer.code == 2
    assert "no data set to train on in data" in answer.err


def trees_of_the_guide() -> tuple[str, ...]:
    return ("coco", "clotho", "audiocaps", "voxceleb")


def test_a_data_set_that_is_there_must_be_whole(here: Path, script: Script) -> None:
    next(iter(sorted(Path("data/clotho").rglob("*.wav")))).unlink()
    answer = script()
    assert answer.code == 2
    assert "data/clotho" in answer.err


def test_help_is_quick_and_the_script_hides_no_package(tmp_path: Path) -> None:
    """In the process of run_training.py ``datasets`` is the package of that name, not the file beside the script."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/__init__.py").write_text("NAME = 'the package'\n")
    code = (
        "import runpy, sys\nsys.argv = ['run_training.py', '--help']\n"
        f"sys.path[0] = {str(FOLDER)!r}\n"
        f"try: runpy.run_path({str(FOLDER / 'run_training.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])\n"
        "import datasets\nprint(datasets.NAME)\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\nimport importlib.util\nprint(importlib.util.find_spec('model').origin)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    *text, modules, name, origin = done.stdout.splitlines()
    assert (modules, name, origin) == ("[]", "the package", str(FOLDER / "model.py"))
    for default in ("./data", "./outputs", "base", "8", "100", "1e-4", "None"):
        assert f"(default: {default})" in " ".join(" ".join(text).split())


def test_the_guides_snippet_to_the_letter(tmp_path: Path) -> None:
    """In a fresh process, in the project's folder: nothing but torch and our package is imported."""
    for name in ("model.py", "datasets.py"):
        shutil.copy(FOLDER / name, tmp_path / name)
    family = families.load("interaction")
    layer = {"model": {"text": {"word_vectors": "none", "tokenizer": "learn"}}}
    config: RunConfig = resolve(family, "guide", layer)
    facts = {"labels": ["dog"], "mel_mean": [0.0] * 80, "mel_std": [1.0] * 80, "teachers": {}, "by_labels": True}
    facts["vocabulary"] = {
        "words": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "lowercase": True,
        "strip_accents": None,
    }
    loaded = Loaded(tmp_path, tmp_path, config, facts, family.task(config, facts), "")
    (tmp_path / "outputs/checkpoints").mkdir(parents=True)
    torch.save(
        portable_content(loaded, stage="full", epoch=1.0, metrics={}), tmp_path / "outputs/checkpoints/best_model.pt"
    )
    given = (
        "import torch\nimage_tensor, audio_mel = torch.zeros(2, 3, 224, 224), torch.zeros(2, 40, 80)\n"
        "text_ids = torch.ones(2, 5, dtype=torch.long)\ntext_mask = torch.ones(2, 5)\n"
    )
    after = (
        "import sys, datasets\nprint(tuple(features.shape), tuple(logits.shape), "
        "[name for name in ('transformers', 'accelerate') if name in sys.modules], datasets.SETS)"
    )
    command = [sys.executable, "-W", "error", "-c", given + SNIPPET + after]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 512) (2, 1000) [] ('coco', 'clotho', 'audiocaps', 'voxceleb')\n"


# ---------------------------------------------------------------- shell

RECORDER = """#!/bin/sh
# In the place of Python: writes down where and with what it is called.
case "$*" in *version_info*|*"import pip"*) exit "${PIP_IS_THERE:-0}" ;; esac
printf '%s|%s\\n' "$PWD" "$*" >> "$RECORD"
case "$1 $2 $4" in "-m venv venv") mkdir -p venv/bin && cp "$0" venv/bin/python ;; esac
case "$1" in download_datasets.py) exit "${DOWNLOAD_CODE:-0}" ;; run_training.py) exit "${TRAINING_CODE:-0}" ;; esac
"""


class Shell:
    """A copy of the folder, under a name with blanks, and what the scripts in it call."""

    def __init__(self, root: Path) -> None:
        self.folder, self.record, self.python = root / "my project", root / "record", root / "my python"
        shutil.copytree(FOLDER, self.folder, ignore=shutil.ignore_patterns("venv", "outputs", "data", "__pycache__"))
        self.python.write_text(RECORDER)
        self.python.chmod(0o755)

    def __call__(self, name: str, *words: str, **variables: str) -> tuple[Answer, list[str]]:
        self.record.unlink(missing_ok=True)
        away = self.folder.parent / "some where"
        away.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHON": str(self.python), "RECORD": str(self.record), **variables}
        command = ["bash", str(self.folder / name), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=away, env=environment, check=False)
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        places = {line.partition("|")[0] for line in lines}
        assert places <= {str(self.folder)}, places  # pip takes local paths from the current folder
        return Answer(done.returncode, done.stdout, done.stderr), [line.partition("|")[2] for line in lines]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


INSTALL = "-m pip install --compile --requirement requirements.txt"
SETS = "--datasets coco clotho audiocaps"


def test_everything_in_one_go(shell: Shell) -> None:
    assert (FOLDER / "run_all.sh").stat().st_mode & stat.S_IXUSR
    answer, calls = shell("run_all.sh", "--model-size", "base", "--batch-size", "8", "--epochs", "50")
    assert answer.code == 0, answer.err
    training = "run_training.py --model-size base --batch-size 8 --epochs 50"
    assert calls == ["-m venv --clear venv", INSTALL, f"download_datasets.py {SETS}", training]
    answer, calls = shell("run_all.sh", PIP_IS_THERE="0")
    assert calls == [INSTALL, f"download_datasets.py {SETS}", "run_training.py"]  # a second call repairs
    answer, calls = shell("setup_environment.sh", PIP_IS_THERE="0")
    assert calls == [INSTALL]


def test_paths_are_those_of_the_caller(shell: Shell) -> None:
    words = "--skip-setup --skip-existing --data-root my_data --output-dir=../out --resume /a/b.pt --datasets all"
    answer, calls = shell("run_all.sh", *words.split(), "--lr", "1e-3")
    away = shell.folder.parent / "some where"
    assert answer.code == 0, answer.err
    assert calls == [
        f"download_datasets.py --datasets all --skip-existing --data-root {away}/my_data",
        f"run_training.py --data-root {away}/my_data --output-dir {away}/../out --resume /a/b.pt --lr 1e-3",
    ]
    assert shell("run_all.sh", "--skip-setup", "--skip-download")[1] == ["run_training.py"]
    assert shell("run_all.sh", "--skip-setup", "--demo")[1] == ["run_training.py --demo"]


def test_what_fails_is_named(shell: Shell) -> None:
    answer, calls = shell("run_all.sh", "--skip-setup", DOWNLOAD_CODE="3")
    assert (answer.code, len(calls)) == (0, 2)
    assert "by hand" in answer.out
    answer, calls = shell("run_all.sh", "--skip-setup", DOWNLOAD_CODE="1")
    assert (answer.code, len(calls)) == (1, 1)
    assert answer.err == "run_all.sh: the step 'download' ended with exit code 1\n"
    answer, calls = shell("run_all.sh", "--skip-setup", TRAINING_CODE="3")
    assert (answer.code, answer.err) == (3, "run_all.sh: the step 'training' ended with exit code 3\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--modelsize", "base"], "error: unknown option: --modelsize"),
        (["--epochs"], "error: --epochs needs a value"),
        (["--datasets", "--demo"], "error: --datasets needs a name"),
        (["coco"], "error: unknown option: coco"),
    ],
)
def test_an_unknown_option_is_refused_with_the_list(shell: Shell, words: list[str], line: str) -> None:
    answer, calls = shell("run_all.sh", *words)
    assert (answer.code, calls) == (2, [])
    assert answer.err.splitlines()[0] == line
    for option in re.findall(r"--[a-z-]+(?=[ )|])", (FOLDER / "run_all.sh").read_text().partition("while (($#))")[2]):
        if option not in ("--datasets", "--requirement"):
            assert option in answer.err


def test_the_demo_of_a_fresh_clone(shell: Shell, tmp_path: Path) -> None:
    """For real: as typed, from another folder, in a path with blanks, with the Python of these tests."""
    words = ["--skip-setup", "--demo", "--batch-size", "4", "--epochs", "1", "--output-dir", "my outputs", *SMALL]
    answer, _ = shell("run_all.sh", *words, "--set", "data.sets.shapes.options.variants=1", PYTHON=sys.executable)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    outputs = tmp_path / "some where/my outputs"
    assert (outputs / "checkpoints/final_model.pt").is_file()
    assert (outputs / "checkpoints/checkpoint_epoch_1.pt").is_file()
    assert list((outputs / "reports").glob("report_*.md"))
    assert "Stage 3 of 3: full, steps 5 to 6" in answer.lines
    assert not (shell.folder / "outputs").exists()


def test_requirements_name_this_project_and_its_constraints() -> None:
    lines = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["--constraint ../../constraints.txt", "--editable ../..[downloads]"]
    assert (FOLDER / "../../constraints.txt").is_file()
    assert (FOLDER / "../../pyproject.toml").is_file()


def test_the_module_is_the_script() -> None:
    assert module().SIZES.keys() == {"tiny", "small", "base", "large"}
