"""What no accident writes: the checksums are right, and the content is not ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_damage import STEPS, newest_of, passed_over, run, usable, whole
from wrecks import DEEP, flipped, forge, forge_file, state

from sensorium import proof
from sensorium.engine import checkpoint, rundir, session
from sensorium.errors import CheckpointError

__all__ = ["run", "whole"]  # fixtures


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda m: m.update(format=1), "format 1; this version reads format 2"),
    "a huge format": (lambda m: m.update(format=10**30), "format 10000000000000000000; this version"),
    "a format in words": (lambda m: m.update(format="2"), "names no format"),
    "no format": (lambda m: m.pop("format"), "names no format"),
    "a path outside": (lambda m: m["files"].update({"../x": m["files"][checkpoint.STATE]}), "lists other files"),
    "an absolute path": (lambda m: m["files"].update({"/etc/passwd": m["files"][checkpoint.STATE]}), "other files"),
    "a file less": (lambda m: m["files"].pop(checkpoint.STATE), "lists other files"),
    "a huge size": (lambda m: m["files"][checkpoint.STATE].update(size=10**30), f"bytes, not {10**30}"),
    "a negative size": (lambda m: m["files"][checkpoint.STATE].update(size=-1), "greater than or equal to 0"),
    "a size in words": (lambda m: m["files"][checkpoint.STATE].update(size="1"), "valid integer"),
    "no sha256": (lambda m: m["files"][checkpoint.STATE].update(sha256="0"), "should match pattern"),
    "another sha256": (lambda m: m["files"][checkpoint.STATE].update(sha256="0" * 64), "its checksum differs"),
    "another step": (lambda m: m.update(step=4), "holds step 4, not that of its name"),
    "a huge step": (lambda m: m.update(step=10**30), "holds step 1000000000000000000000000000000"),
    "a step of half": (lambda m: m.update(step=4.5), "valid integer"),
    "an unknown key": (lambda m: m.update({"new\nkey": 1}), "Extra inputs are not permitted"),
    "a missing key": (lambda m: m.pop("frozen"), "Field required"),
    "another family": (lambda m: m.update(family="other"), "family 'other', not 'toy'"),
}


@pytest.mark.parametrize("forged", MANIFESTS)
def test_a_forged_manifest_is_passed_over(run: Path, forged: str) -> None:
    change, reason = MANIFESTS[forged]
    forge(newest_of(run), change)
    assert reason in passed_over(run, newest_of(run))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (lambda text: text.replace(b"\n ", b"\n  ", 1), "its checksum differs"),
        (lambda text: text.replace(b'"step"', b'"step": 1, "step"', 1), "is given twice"),
        (lambda text: text.replace(b'"step": 6', b'"step": NaN', 1), "NaN is no number"),
        (lambda text: text.replace(b'"step": 6', b'"step": ' + b"9" * 5000, 1), "limit"),
        (lambda text: text.replace(b'"step": 6', b'"step": ' + DEEP, 1), "nested too deeply"),
        (lambda text: json.dumps(json.loads(text)).encode(), "its checksum differs"),
    ],
)
def test_a_manifest_is_read_strictly(run: Path, written: Callable[[bytes], bytes], reason: str) -> None:
    path = newest_of(run) / checkpoint.MANIFEST
    data = path.read_bytes()
    path.write_bytes(written(data))
    assert path.read_bytes() != data
    assert reason in passed_over(run, newest_of(run))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (state(of_a_future_version=1), "'of_a_future_version': Extra inputs"),
        (state(step=STEPS - 1), f"is that of step {STEPS - 1}"),
        (state(step=float(STEPS)), "'step': Input should be a valid integer"),
        (state(step=-1), "'step': Input should be greater"),
        (state(best={"step": 3}), "'best.value': Field required"),
        (state(best={"step": 3, "value": float("nan")}), "NaN is no number"),
        (state(guard={"in_a_row": 0}), "guard"),
        (state(guard={"in_a_row": "0", "skipped": 0, "at_chance": 0}), "valid integer"),
        (state(stage_ends="12"), "valid list"),
        (state(scaler={"scale": "big"}), "valid number"),
        (state(replaced=None), "valid integer"),
        (b"{}", "Field required"),
        (b"[]", "holds a list, not an object"),
        (b"", "cannot be read"),
        (DEEP, "nested too deeply"),
        (state() + b" " + state(), "Extra data"),
    ],
)
def test_a_state_that_this_version_did_not_write_is_passed_over(run: Path, data: bytes, reason: str) -> None:
    forge_file(newest_of(run), checkpoint.STATE, data)
    assert reason in passed_over(run, newest_of(run))


def test_a_state_may_know_an_infinite_best_value(run: Path) -> None:
    forge_file(newest_of(run), checkpoint.STATE, state(best={"step": 5, "value": float("inf")}))
    assert usable(run) == (newest_of(run).name, [])


@pytest.mark.parametrize("content", [[], {}, {"fingerprints": {}}, {"fingerprints": [], "facts": {}}, {"format": 9}])
def test_forged_facts_are_one_line(run: Path, content: Any) -> None:
    data = proof.seal({"format": 1, **content}) if isinstance(content, dict) else b"[]"
    (run / "facts.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"facts\.json: cannot be read"):
        rundir.read_facts(run)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER])
def test_tensors_of_another_writer_are_read_or_refused(run: Path, name: str) -> None:
    """Whatever safetensors makes of a flipped byte whose checksum is right: tensors, or an error of ours."""
    folder, refused = newest_of(run), 0
    path = folder / name
    for _ in flipped(path, 300, 10):
        forge_file(folder, name, path.read_bytes())
        try:
            found = session.load(folder, "toy")
        except CheckpointError as error:
            refused += str(error).count("\n") == 0
        else:
            assert found.state["step"] == STEPS
    assert refused > 50  # the header: lengths, names of types, offsets
