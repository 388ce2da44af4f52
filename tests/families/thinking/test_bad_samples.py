"""A broken file is an error, or left out of training and said; never of an evaluation, and never silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium import families
from sensorium.engine import settings
from sensorium.engine.contract import Host, Sources
from sensorium.errors import ConfigError, DataError

FAMILY = families.load("thinking")
SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pictures with a text each."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    root.mkdir()
    rows = []
    for number, split in enumerate(SPLITS):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / f"{number}.png")
        rows.append({"id": f"row {number}", "split": split, "text": f"thing {number}", "image": f"{number}.png"})
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def found(root: Path, said: list[str] | None = None, cache: bool = True, **loader: Any) -> Sources:
    data = {"reader": "native", "root": str(root), "use_cache": cache}
    config = settings.resolve(FAMILY, "tiny", {"data": data, "loader": loader})
    return FAMILY.sources(config, Host(say=(said if said is not None else []).append))


def test_a_broken_picture_is_left_out_of_training_and_said(root: Path) -> None:
    (root / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3\.png"):
        found(root)
    said: list[str] = []
    train = found(root, said, bad_samples="skip").train
    assert len(train) == 5
    train.collate([train.example(row, 0) for row in range(5)])
    [line] = [line for line in said if "left out" in line]
    assert line.startswith("left out: ")
    assert line.count(str(root / "3.png")) == 1


def test_a_broken_picture_of_an_evaluation_is_an_error(root: Path) -> None:
    (root / "6.png").unlink()
    with pytest.raises(DataError, match=r"^val: row 6: "):
        found(root, bad_samples="skip")


def test_more_than_max_bad_is_an_error(root: Path) -> None:
    for number in (1, 3):
        (root / f"{number}.png").write_bytes(b"broken")
    assert len(found(root, bad_samples="skip", max_bad=2).train) == 4
    with pytest.raises(DataError, match=r"^native: 2 bad samples; loader\.max_bad is 1$"):
        found(root, bad_samples="skip", max_bad=1)


def test_without_a_cache_skipping_is_refused(root: Path) -> None:
    assert len(found(root, cache=False).train) == 6
    with pytest.raises(ConfigError, match=r"^loader\.bad_samples=skip needs the cache"):
        found(root, cache=False, bad_samples="skip")
