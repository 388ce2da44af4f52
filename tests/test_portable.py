"""``.pt`` files: whole or absent, tensors and plain values only, and the way back to the native checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import Full, on
from helpers import TOY, toy_config

from sensorium.engine import checkpoint, loop, rundir
from sensorium.engine.listener import Saved
from sensorium.engine.portable import find_native, read_pt, write_pt
from sensorium.errors import CheckpointError, DiskError

EACH_STEP = {"train": {"steps": 3}, "checkpoint": {"every_steps": 1, "keep": 9}}


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """The second of three checkpoints of a run."""
    run = tmp_path / "run"
    loop.train(TOY, toy_config(EACH_STEP), run, quiet=True)
    return Saved(run, checkpoint.folder_of(run, 2), 2, 0.8, True, 1.25)


def test_what_was_saved_is_read_back(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.pt"
    write_pt(saved, path)
    found = read_pt(path)
    native = checkpoint.load(saved.checkpoint, "toy")
    assert found.weights.keys() == native.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in native.weights.items())
    assert (found.head.step, found.head.epoch, found.head.value, found.head.family) == (2, 0.8, 1.25, "toy")
    assert (found.config, found.facts) == (rundir.stored_config(saved.run), {"length": 20})
    assert found.content().frozen == native.frozen
    assert [p.name for p in path.parent.iterdir()] == ["best.pt"]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_it_holds_cpu_tensors_and_plain_values_only(saved: Saved, tmp_path: Path) -> None:
    write_pt(saved, tmp_path / "best.pt")
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    weights = content.pop("weights")
    assert all(type(tensor) is torch.Tensor and tensor.device.type == "cpu" for tensor in weights.values())
    assert plain(content)
    assert not plain({"path": tmp_path})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: b"weights", "damaged"),
        (lambda data: bytes(reversed(data)), "damaged"),
    ],
)
def test_a_damaged_file_is_one_line(
    saved: Saved, tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "best.pt"
    write_pt(saved, path)
    read_pt(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"best\.pt: .*{reason}") as caught:
        read_pt(path)
    assert "\n" not in str(caught.value)


def test_no_cut_makes_another_error(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    write_pt(saved, path)
    data = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(data), 60):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_pt(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_state_dict": {"w": torch.ones(2)}}, "not a file that this program wrote"),
        ([1, 2], "not a file that this program wrote"),
        ({"format": 1, "checkpoint": {}}, "format 1; this version reads format 2"),
        ({"format": 2, "checkpoint": {}}, "damaged at 'family': Field required"),
        (Path("/"), "damaged, or holds more than tensors and plain values"),
    ],
)
def test_a_foreign_file_is_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_pt(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be read \(No such file"):
        read_pt(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"a folder; give a \.pt file"):
        read_pt(tmp_path)


def test_a_failed_write_leaves_the_old_file(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    write_pt(saved, path)
    before = path.read_bytes()

    with on(Full(1000)), pytest.raises(DiskError, match=r"best\.pt: cannot be written: No space left"):
        write_pt(replace(saved, step=3), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", ["as it was", "moved together", "file moved", "set aside", "within the run"])
def test_the_native_checkpoint_is_found(saved: Saved, tmp_path: Path, where: str) -> None:
    path, run = tmp_path / "best.pt", saved.run
    write_pt(saved, path)
    if where == "moved together":
        (tmp_path / "other").mkdir()
        path, run = path.rename(tmp_path / "other/best.pt"), run.rename(tmp_path / "other/run")
    elif where == "file moved":
        (tmp_path / "other").mkdir()
        path = path.rename(tmp_path / "other/copy.pt")
    elif where == "set aside":
        run = rundir.set_aside(run) or run
        (run.with_name("run.junk")).mkdir()
    elif where == "within the run":
        (tmp_path / "far").mkdir()
        run = run.rename(tmp_path / "far/else")
        path = path.rename(run / "best.pt")
    assert find_native(read_pt(path)) == checkpoint.folder_of(run, 2)
    shutil.rmtree(checkpoint.folder_of(run, 2))
    assert find_native(read_pt(path)) is None


def test_another_run_of_the_same_name_is_not_taken_for_it(saved: Saved, tmp_path: Path) -> None:
    write_pt(saved, tmp_path / "best.pt")
    aside = rundir.set_aside(saved.run)
    assert aside is not None
    loop.train(TOY, toy_config({**EACH_STEP, "seed": 1}), saved.run, quiet=True)
    assert saved.checkpoint.is_dir()
    assert find_native(read_pt(tmp_path / "best.pt")) == checkpoint.folder_of(aside, 2)
    shutil.rmtree(aside)
    assert find_native(read_pt(tmp_path / "best.pt")) is None


@pytest.mark.parametrize("name", ["head.weight", "seen"])
def test_a_flipped_byte_of_the_weights_is_found(saved: Saved, tmp_path: Path, name: str) -> None:
    path = tmp_path / "best.pt"
    write_pt(saved, path)
    data = path.read_bytes()
    raw = read_pt(path).weights[name].numpy().tobytes()
    place = data.index(raw)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert not torch.equal(
        torch.load(path, weights_only=True)["weights"][name], checkpoint.load(saved.checkpoint, "toy").weights[name]
    )
    with pytest.raises(CheckpointError, match=r"best\.pt: damaged \(the checksum of its weights differs\)"):
        read_pt(path)
