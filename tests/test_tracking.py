"""Tracking: exact metrics files, cutting back, console on a pipe and on a terminal, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import TOY, toy_config

from sensorium.engine import loop
from sensorium.engine.files import cut_back, read_lines
from sensorium.engine.settings import Track
from sensorium.engine.tracking import Tracker, clock, progress_bar
from sensorium.errors import CheckpointError, ConfigError

BARE = Track(tensorboard=False, log_every=2)


def drive(run: Path, start: int, stop: int, settings: Track = BARE) -> None:
    """Report steps start+1..stop with a validation each third step; values are functions of the step alone."""
    with Tracker(run, settings, total_steps=9, start_step=start) as tracker:
        for step in range(start + 1, stop + 1):
            values = {"loss": 1 / (3 * step), "grad_norm": 0.1 * step, "lr/decay": 1e-3 / step}
            tracker.train(step, step / 4, "train", values, rows=8)
            if step % 3 == 0:
                tracker.validation(step, step / 4, {"loss": 1 / step, "a-b/x2y_R@1": 10.0 * step})
            if step == 5:
                tracker.event(step, "step 5: the loss is not finite; step skipped", "warning")


def test_resumed_file_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    drive(tmp_path / "whole", 0, 9)
    drive(tmp_path / "parts", 0, 7)
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    drive(tmp_path / "parts", 4, 6)
    drive(tmp_path / "parts", 6, 9)
    whole = (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == whole
    assert whole.count(b"\n") == 9 + 3 + 1
    drive(tmp_path / "parts", 9, 9)  # nothing left to do: nothing changes
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == whole


def test_files_differ_without_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin: what the test above compares does notice repeated steps."""
    monkeypatch.setattr("sensorium.engine.tracking.cut_back", lambda path, step: None)
    drive(tmp_path / "whole", 0, 9)
    drive(tmp_path / "parts", 0, 7)
    drive(tmp_path / "parts", 4, 9)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() != (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_lines_hold_full_precision_and_no_time(tmp_path: Path) -> None:
    drive(tmp_path, 0, 5)
    first = read_lines(tmp_path / "metrics.jsonl")[0]
    assert first == {
        "kind": "train",
        "step": 1,
        "epoch": 0.25,
        "stage": "train",
        "loss": 1 / 3,
        "grad_norm": 0.1,
        "lr/decay": 1e-3,
    }
    times = read_lines(tmp_path / "times.jsonl")
    assert [line["step"] for line in times] == [1, 2, 3, 4, 5]
    assert all(line["seconds"] > 0 and line["rows_per_second"] > 0 for line in times)


def test_resumes_are_noted_beside_the_times(tmp_path: Path) -> None:
    drive(tmp_path, 0, 5)
    drive(tmp_path, 4, 6)
    notes = [line for line in read_lines(tmp_path / "times.jsonl") if "resumed" in line]
    assert notes == [{"step": 4, "resumed": True}]


def test_values_that_are_not_finite_stay_strict_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, BARE, 2, 0, quiet=True) as tracker:
        tracker.train(1, 0.5, "train", {"loss": float("nan"), "grad_norm": float("inf")}, rows=4)

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["grad_norm"]) == ("nan", "inf")


def test_a_value_cannot_take_a_reserved_name(tmp_path: Path) -> None:
    with Tracker(tmp_path, BARE, 2, 0, quiet=True) as tracker, pytest.raises(ValueError, match="'step'"):
        tracker.train(1, 0.5, "train", {"step": 3.0}, rows=4)


def test_cut_back_keeps_bytes_and_leaves_a_good_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"x":0.10}\n{"step": 2}\n{"step": 3}\n{"step": 4')
    cut_back(path, 2)
    assert path.read_text() == '{"step":1,"x":0.10}\n{"step": 2}\n'
    before = path.stat()
    cut_back(path, 2)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    cut_back(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("damage", ['{"step": 1', "[1]", '{"kind": "val"}'])
def test_damage_before_the_last_line_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damage + '\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        cut_back(path, 9)


def test_plain_lines_on_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive(tmp_path, 0, 5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/9",
        "step 2/9",
        "val step 3",
        "step 4/9",
        "step 5: the loss is not finite; step skipped",
    ]
    assert lines[1].startswith("step 2/9  epoch 0.50  loss 0.1667  grad_norm 0.20  lr 5.0e-04  ")
    assert lines[1].rpartition("rows/s  left ")[2] == "0:00"
    assert lines[2] == "val step 3  loss 0.3333"
    assert (tmp_path / "train.log").read_text().splitlines() == lines


def test_the_rate_that_is_shown_is_that_of_most_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, BARE, 1, 0) as tracker:
        tracker.train(1, 0.5, "train", {"loss": 1.0, "lr/gates": 0.02, "lr/decay": 1e-3, "lr/no_decay": 1e-3}, 8)
    assert "  lr 1.0e-03  " in capsys.readouterr().out


def test_brackets_are_text_and_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, BARE, 2, 0) as tracker:
        tracker.say("[red]100 % [/] of [link=x]")
    assert capsys.readouterr().out == "[red]100 % [/] of [link=x]\n"
    with Tracker(tmp_path, BARE, 2, 0, quiet=True) as tracker:
        tracker.say("only in the log")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "train.log").read_text().endswith("only in the log\n")


def test_progress_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("encoding pictures", 8) as advance:
        for done in range(9):
            advance(done, 8)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert lines[2].startswith("encoding pictures  50 %  4/8  ")


TERMINAL = """
import sys, time
from pathlib import Path
from sensorium.engine.settings import Track
from sensorium.engine.tracking import Tracker, progress_bar
with progress_bar("encoding", 4) as advance:
    advance(4, 4)
with Tracker(Path(sys.argv[1]), Track(tensorboard=False, log_every=1), 3, 0) as tracker:
    for step in range(1, 4):
        tracker.train(step, step, "align", {"loss": 1.5, "lr/decay": 1e-3}, 8)
        tracker.say(f"said {step}")
assert "torch" not in sys.modules, "the console must not wait for torch"
"""


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    """A real terminal in a process of its own; torch must stay out of it."""
    outer, inner = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", TERMINAL, str(tmp_path)], stdout=inner, env=environment)
    os.close(inner)
    shown = b""
    while True:
        try:
            part = os.read(outer, 65536)
        except OSError:  # Linux says EIO when the other side has closed
            break
        shown += part
    os.close(outer)
    assert process.wait() == 0
    text = shown.decode()
    assert "━" in text
    assert "3/3" in text
    assert "rows/s  left 0:00" in text
    assert all(f"said {step}" in text for step in (1, 2, 3))
    assert "step 1/3" not in text  # plain lines are for pipes
    assert "step 1/3  epoch 1.00  loss 1.5000" in (tmp_path / "train.log").read_text()


def test_tensorboard_continues_without_repeats(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = Track(log_every=2)
    drive(tmp_path, 0, 7, settings)
    drive(tmp_path, 4, 9, settings)
    reader = events.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert set(reader.Tags()["scalars"]) == {
        "train/loss",
        "train/grad_norm",
        "train/seconds_per_step",
        "train/peak_rss_bytes",
        "stage/train",
        "lr/decay",
        "val/loss",
        "val/a-b/x2y_R@1",
    }
    assert [event.step for event in reader.Scalars("train/loss")] == list(range(1, 10))
    assert [event.step for event in reader.Scalars("val/loss")] == [3, 6, 9]


class WandbStandIn(ModuleType):
    """Records what a real wandb would be told."""

    class Error(Exception):
        """Its own base of what it refuses."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.told: list[dict[str, float]] = []
        self.finished = 0

    def init(self, **options: Any) -> WandbStandIn:
        self.started.append(options)
        if options["entity"] == "nobody":
            raise self.Error("No API key configured.\nUse `wandb login`")
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, float]) -> None:
        self.told.append(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_is_one_run_over_all_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = WandbStandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    settings = Track(tensorboard=False, wandb="offline", wandb_project="slots")
    drive(tmp_path, 0, 4, settings)
    drive(tmp_path, 4, 9, settings)
    first, second = wandb.started
    assert first == second
    assert (first["mode"], first["project"], first["resume"]) == ("offline", "slots", "allow")
    assert first["config"] == {"seed": 7}
    assert wandb.finished == 2
    assert wandb.told[0].pop("train/seconds_per_step") > 0
    assert wandb.told[0].pop("train/peak_rss_bytes") > 1e7
    assert wandb.told[0].pop("stage/train") == 1.0
    assert wandb.told[0] == {"train/loss": 1 / 3, "train/grad_norm": 0.1, "lr/decay": 1e-3, "step": 1}
    assert {"val/loss": 1 / 3, "val/a-b/x2y_R@1": 30.0, "step": 3} in wandb.told


def test_wandb_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = WandbStandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    Tracker(tmp_path, Track(wandb="online", tensorboard=False), 9, 0).close()
    assert wandb.started[0]["mode"] is None  # WANDB_MODE has a word, too
    with pytest.raises(ConfigError, match=r"^Weights & Biases: No API key configured\. Use `wandb login`; run .*$"):
        Tracker(tmp_path, Track(wandb="online", wandb_entity="nobody", tensorboard=False), 9, 0)


def test_wandb_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail as a missing package does
    with pytest.raises(ConfigError, match=r"pip install 'sensorium\[wandb\]'"):
        Tracker(tmp_path, Track(wandb="offline", tensorboard=False), 9, 0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (723, "12:03"), (3723, "1:02:03"), (-1, "-:--")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_curves_never_go_into_a_folder_with_other_things(tmp_path: Path) -> None:
    shared = tmp_path / "runs"
    (shared / "other").mkdir(parents=True)
    (shared / "other/precious.txt").write_text("x")
    curves = toy_config({"train": {"steps": 1}, "track": {"tensorboard_dir": str(shared)}})
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=r"track\.tensorboard_dir: .*runs holds more than curves \(other …\); name"):
        loop.train(TOY, curves, shared / "toy", quiet=True)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    own = toy_config({"train": {"steps": 1}, "track": {"tensorboard_dir": str(shared / "curves")}})
    for name in ("first", "second"):  # a folder of earlier curves is no such folder
        loop.train(TOY, own, tmp_path / name, quiet=True)
    assert (shared / "curves.1").is_dir()
