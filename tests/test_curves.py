"""Event files: whatever happened between the starts of a run, TensorBoard shows the curves of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from event_view import scalars

from sensorium.engine import curves
from sensorium.engine.curves import PREFIX, EventFile

WHOLE = {
    "train/loss": [(step, step / 4) for step in range(1, 10)],
    "val/loss": [(step, float(step)) for step in (3, 6, 9)],
}


def drive(folder: Path, start: int, stop: int) -> EventFile:
    """Write steps start+1..stop; the file stays open, as a kill leaves it."""
    file = EventFile(folder, start)
    for step in range(start + 1, stop + 1):
        file.write(step, {"train/loss": step / 4})
        if step % 3 == 0:
            file.write(step, {"val/loss": float(step)})
    return file


def live(folder: Path) -> None:
    """Killed before there was a checkpoint, killed twice later, and run to its end."""
    for start, stop in ((0, 3), (0, 7), (4, 8), (6, 9)):
        drive(folder, start, stop).close()


def test_killed_and_resumed_looks_like_one_run(tmp_path: Path) -> None:
    live(tmp_path)
    assert scalars(tmp_path) == WHOLE
    assert len(list(tmp_path.iterdir())) == 4


def test_nothing_waits_to_be_written(tmp_path: Path) -> None:
    file = drive(tmp_path, 0, 9)
    assert scalars(tmp_path) == WHOLE
    file.close()


def test_a_torn_event_is_passed_over(tmp_path: Path) -> None:
    drive(tmp_path, 0, 7).close()
    [first] = tmp_path.iterdir()
    first.write_bytes(first.read_bytes()[:-3])
    drive(tmp_path, 6, 9).close()
    assert scalars(tmp_path) == WHOLE


def test_a_clock_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000, 0, -1))
    monkeypatch.setattr(curves.time, "time", lambda: float(next(clock)))
    (tmp_path / f"{PREFIX}from.elsewhere").write_bytes(b"")
    live(tmp_path)
    assert scalars(tmp_path) == WHOLE


def test_names_by_the_clock_would_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin."""
    clock = iter((40, 30, 20, 10))
    monkeypatch.setattr(curves, "_later_name", lambda folder: f"{PREFIX}{next(clock)}")
    live(tmp_path)
    assert scalars(tmp_path) != WHOLE


def test_a_first_file_that_does_not_say_where_it_starts_would_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative twin: TensorBoard takes the first start that is said for the run's own."""
    add = EventFile._add

    def silent(self: EventFile, event: Any) -> None:
        if not event.HasField("session_log"):
            add(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(EventFile, "_add", silent)
        drive(tmp_path, 0, 7).close()
    drive(tmp_path, 4, 9).close()
    assert scalars(tmp_path) != WHOLE


def test_other_names(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 0, {"train/grad_norm": "grad_norm", "val/x": "y"})
    file.write(1, {"train/loss": 0.5, "train/grad_norm": 2.0})
    file.close()
    assert scalars(tmp_path) == {"train/loss": [(1, 0.5)], "grad_norm": [(1, 2.0)]}
