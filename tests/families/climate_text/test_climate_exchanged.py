"""``benchmarks/climate_text.py --exchanged``: training sees the fields of others, validation its own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from sensorium.data.fields import demo
from sensorium.families.climate_text.data import DataConfig, open_part

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_texts_stay_and_fields_go_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("climate_text")
    root = tmp_path / "winds"
    demo.write(root, demo.Options(num_samples=12, shape=(2, 8, 24, 24), val_fraction=0.25, questions=2))
    before = (root / "train/index.json").read_bytes()
    made = script.exchanged(root)
    assert (root / "train/index.json").read_bytes() == before
    assert (made / "val/index.json").read_bytes() == (root / "val/index.json").read_bytes()
    old, new = (json.loads((folder / "train/index.json").read_text()) for folder in (root, made))
    where = {one["climate_file"]: (one["lat"], one["lon"], one["time"]) for one in old}
    for left, right in zip(old, new, strict=True):
        assert left["climate_file"] != right["climate_file"]
        assert [left[key] for key in ("text", "target", "facts")] == [right[key] for key in ("text", "target", "facts")]
        assert where[right["climate_file"]] == (right["lat"], right["lon"], right["time"])
    assert len({one["climate_file"] for one in new}) > len(new) // 3  # one that is left over takes any, shown twice
    assert open_part(made / "train", DataConfig()).sample(0).field.shape == (2, 8, 24, 24)
    assert script.exchanged(root) == made
