"""Shared test setup: one thread, no network, the caches in temporary folders."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def pytest_collection_finish() -> None:
    """Each run begins with a collection of garbage: what is imported by now need not be searched every time."""
    gc.freeze()
