"""Shared test setup: one thread, no network, the caches in temporary folders, the number of generated examples."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# The suite draws the same few examples each time; SENSORIUM_EXAMPLES=10000 draws so many others.
EXAMPLES = os.environ.get("SENSORIUM_EXAMPLES")
settings.register_profile("suite", max_examples=60, derandomize=True, deadline=None)
settings.register_profile("soak", max_examples=int(EXAMPLES or 1), deadline=None)
settings.load_profile("soak" if EXAMPLES else "suite")


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For what is made for several tests, and the programs it starts; each test then has a cache of its own."""
    os.environ["SENSORIUM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test can see whether bytes have reached the disk, and thousands of checkpoints would wait for it.

    Programs that tests start, and kill within and between these calls, make the real ones.
    """

    def synced(handle: int) -> None:
        os.fstat(handle)  # what is open no more is an error as ever

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def pytest_collection_finish() -> None:
    """Each run begins with a collection of garbage: what is imported by now need not be searched every time."""
    gc.freeze()
