"""Damage is found and said; a damaged checkpoint is passed over, never loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorium import proof
from sensorium.engine import checkpoint
from sensorium.errors import CheckpointError


def save(run: Path, step: int) -> Path:
    weights = {"w": torch.arange(6.0).reshape(2, 3) + step, "b": torch.tensor(step, dtype=torch.bfloat16)}
    content = checkpoint.Content(weights, {"w/exp_avg": torch.ones(2, 3)}, {"step": step, "best": None})
    return checkpoint.save(run, "toy", step, content)


def newest_step(run: Path) -> tuple[int | None, list[str]]:
    said = []
    for _, content in checkpoint.newest(run, "toy"):
        if not isinstance(content, str):
            return content.state["step"], said
        said.append(content)
    return None, said


def test_save_and_load_is_identity(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    content = checkpoint.load(folder, "toy")
    assert torch.equal(content.weights["w"], torch.arange(6.0).reshape(2, 3) + 3)
    assert content.weights["b"].dtype == torch.bfloat16
    assert content.state == {"step": 3, "best": None}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.integers(0, 3))
def test_any_flipped_bit_is_found(tmp_path: Path, place: float, bit: int, name: int) -> None:
    folder = checkpoint.folder_of(tmp_path, 1)
    if not folder.exists():
        save(tmp_path, 1)
    path = sorted(folder.iterdir())[name]
    data = path.read_bytes()
    changed = bytearray(data)
    changed[int(place * len(data))] ^= 1 << bit
    path.write_bytes(changed)
    try:
        with pytest.raises(CheckpointError):
            checkpoint.load(folder, "toy")
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / checkpoint.WEIGHTS).write_bytes(b""), "has 0 bytes"),
        (lambda folder: (folder / checkpoint.STATE).unlink(), "is missing"),
        (lambda folder: (folder / checkpoint.MANIFEST).unlink(), "not a complete checkpoint"),
        (lambda folder: (folder / checkpoint.MANIFEST).write_text("{}"), "damaged or of another format"),
    ],
)
def test_latest_passes_over_a_damaged_one(tmp_path: Path, damage, reason: str) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    assert newest_step(tmp_path) == (2, [])
    damage(folder)
    step, said = newest_step(tmp_path)
    assert step == 1
    assert len(said) == 1
    assert reason in said[0]
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.load(folder, "toy")


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    del manifest["checksum"]
    manifest["files"]["../secret"] = manifest["files"][checkpoint.STATE]
    (folder / checkpoint.MANIFEST).write_bytes(proof.seal(manifest))
    with pytest.raises(CheckpointError, match="other files"):
        checkpoint.check(folder)
    folder = save(tmp_path, 2)
    (folder / checkpoint.STATE).rename(tmp_path / "elsewhere")
    (folder / checkpoint.STATE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.check(folder)


def test_another_family_or_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="family 'toy', not 'other'"):
        checkpoint.load(folder, "other")
    text = (folder / checkpoint.MANIFEST).read_text()
    (folder / checkpoint.MANIFEST).write_text(text.replace('"format": 2', '"format": 9'))
    with pytest.raises(CheckpointError, match="format 9; this version reads format 2"):
        checkpoint.check(folder)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, [3], 9)
    assert sorted(p.name[-1] for p in (tmp_path / "checkpoints").iterdir()) == ["3", "5", "6"]


def flip(path: Path) -> None:
    """Damage the last byte: what only the checksum sees."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_prune_counts_no_damaged_checkpoint_that_was_passed_over(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    for step in (4, 5):
        flip(checkpoint.folder_of(tmp_path, step) / checkpoint.WEIGHTS)
    assert newest_step(tmp_path)[0] == 3  # the run goes on from here, saves the next, and keeps two
    checkpoint.prune(tmp_path, 2, [], 3)
    assert sorted(p.name[-1] for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "4", "5"]
    assert newest_step(tmp_path)[0] == 3


def test_tied_weights_are_kept_under_both_names(tmp_path: Path) -> None:
    one = torch.arange(4.0)
    checkpoint.save(tmp_path, "toy", 1, checkpoint.Content({"a": one, "b": one, "c": one[:2]}, {}, {"step": 1}))
    found = checkpoint.load(checkpoint.folder_of(tmp_path, 1), "toy").weights
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [0, 1, 2, 3],
        "b": [0, 1, 2, 3],
        "c": [0, 1],
    }


@pytest.mark.parametrize("gone", [checkpoint.STATE, checkpoint.OPTIMIZER, "all"])
def test_one_that_goes_while_it_is_read_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """The run that owns the folder may prune it at any moment."""
    folder, check = save(tmp_path, 1), checkpoint.check

    def check_and_prune(asked: Path) -> checkpoint.Manifest:
        manifest = check(asked)
        shutil.rmtree(asked) if gone == "all" else (asked / gone).unlink()
        return manifest

    monkeypatch.setattr(checkpoint, "check", check_and_prune)
    with pytest.raises(CheckpointError, match="step_00000001: cannot be read"):
        checkpoint.load(folder, "toy")
