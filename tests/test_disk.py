"""A disk that is full, failing, read-only or gone: one line, exit code 3, and what was complete stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disks import Failing, Full, on
from helpers import TOY, toy_config
from test_resume import assert_equal_runs

from sensorium import files
from sensorium.data.files import read_text
from sensorium.engine import checkpoint, loop
from sensorium.errors import DataError, DiskError, SensoriumError, shown

EACH_STEP = {"train": {"steps": 4}, "checkpoint": {"every_steps": 1, "keep": 9}}


def train(run: Path, *, resume: bool = False, **track: Any) -> None:
    loop.train(TOY, toy_config({**EACH_STEP, "track": track}), run, resume=resume, quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run)
    return run


def go_on(run: Path, whole: Path) -> None:
    train(run, resume=(run / "config.yaml").exists())
    assert_equal_runs(whole, run)


WAYS = [
    (errno.ENOSPC, "write", "No space left on device", "free some space"),
    (errno.EDQUOT, "by_library", "Disk quota exceeded", "free some space"),
    (errno.EIO, "fsync", "Input/output error", "the disk may be failing"),
    (errno.EROFS, "open", "Read-only file system", "take another place"),
    (errno.EROFS, "mkdir", "Read-only file system", "take another place"),
    (errno.EACCES, "rename", "Permission denied", "take another place"),
]


@pytest.mark.parametrize(("number", "call", "reason", "advice"), WAYS, ids=[f"{w[2]} at {w[1]}" for w in WAYS])
def test_a_disk_that_fails_loses_no_checkpoint(
    whole: Path, tmp_path: Path, number: int, call: str, reason: str, advice: str
) -> None:
    run = tmp_path / "run"
    first = 12 if call == "fsync" else 4  # in the second save
    with on(Failing(number, (call,), run / "checkpoints", first)), pytest.raises(DiskError) as caught:
        train(run)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(run / "checkpoints"))
    assert f"cannot be written: {reason}" in line
    assert "bytes free on its disk" in line
    assert advice in line
    assert caught.value.exit_code == 3
    good, problems = checkpoint.complete(run)
    assert good
    assert not problems
    go_on(run, whole)


@pytest.mark.parametrize("room", [100, 3_000, 6_000, 9_000])
def test_a_disk_that_fills_up(whole: Path, tmp_path: Path, room: int) -> None:
    with on(Full(room)), pytest.raises(DiskError, match="No space left on device"):
        train(tmp_path / "run")
    go_on(tmp_path / "run", whole)


def test_with_room_enough_nothing_is_said(whole: Path, tmp_path: Path) -> None:
    """The negative twin of the two above."""
    with on(Full(10**9)), on(Failing(errno.EIO, first=10**9)):
        train(tmp_path / "run")
    assert_equal_runs(whole, tmp_path / "run")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit of the system that every write meets, those of libraries in other languages included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_of_the_system_is_met_by_the_library_that_writes_weights(tmp_path: Path) -> None:
    big = {"w": checkpoint.torch.zeros(10_000)}
    content = checkpoint.Content(big, big, {"step": 1})
    with largest_file(5_000), pytest.raises(DiskError, match=r"task\.safetensors: cannot be written: File too large"):
        checkpoint.save(tmp_path, "toy", 1, content)
    assert not list(checkpoint.newest(tmp_path, "toy"))
    checkpoint.save(tmp_path, "toy", 1, content)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_curves_that_cannot_be_written_are_a_line(whole: Path, tmp_path: Path) -> None:
    """TensorBoard's own files."""
    with largest_file(600), pytest.raises(DiskError, match="File too large"):
        train(tmp_path / "run")
    go_on(tmp_path / "run", whole)


def test_the_room_is_counted_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3_000))
    with pytest.raises(DiskError, match=r"needs [\d,]+ bytes in .*, 3,000 are free; make room or take another place"):
        train(tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000))
    train(tmp_path / "run", resume=True)


def test_a_run_folder_that_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def remove(name: str, path: Path, call: Any) -> Any:
        if path.name == "step_00000002":
            call()
            return shutil.rmtree(run)
        return call()

    with on(remove), pytest.raises(DiskError, match=r"No such file.*a folder on the way to it is gone"):
        train(run)
    assert not run.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_run_on_another_file_system(whole: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"sensorium-{os.getpid()}"
    other.mkdir()
    try:
        if other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("the two are one file system")
        (tmp_path / "run").symlink_to(other)
        train(tmp_path / "run")
        assert_equal_runs(whole, tmp_path / "run")
        (tmp_path / "file").touch()
        with pytest.raises(DiskError, match="the two lie on different file systems"):
            files.rename(tmp_path / "file", other / "file")
    finally:
        shutil.rmtree(other)


def test_the_exit_code_is_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with on(Failing(errno.ENOSPC, ("mkdir",))), pytest.raises(SystemExit) as end:
        shown(lambda: train(tmp_path / "run"))
    assert end.value.code == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run'}")


# ---------------------------------------------------------------- the functions themselves


def test_a_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "a/new/folder"
    with pytest.raises(DataError, match="no text"), files.new_folder(target) as folder:
        read_text(folder / "no text")
    assert list(target.parent.iterdir()) == []
    with files.new_folder(target) as folder:
        files.write_file(folder / "one", b"1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["one"]
    with pytest.raises(DataError, match="exists already"), files.new_folder(target) as folder:
        files.write_file(folder / "two", b"2")
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/link").symlink_to(tmp_path / "kept")
    files.remove(tmp_path / "gone")
    files.remove(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").read_text() == "kept"


def test_errors_of_ours_are_those_of_the_disk_only() -> None:
    assert issubclass(DiskError, SensoriumError)
    with pytest.raises(ZeroDivisionError), files.told(Path(sys.executable)):
        _ = 1 / 0
