"""Small trees of fields for tests: good ones, and each kind of bad one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = ["T2M", "SLP", "U10M"]
USUAL = torch.tensor([288.0, 101_000.0, 0.0])
SPREAD = torch.tensor([5.0, 500.0, 3.0])


def field(seed: int, times: int = 2, side: int = 8) -> Tensor:
    """``[T, 3, H, W]`` of sensible numbers."""
    noise = torch.randn(times, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return USUAL[:, None, None] + SPREAD[:, None, None] * noise.clamp(-3, 3)


def entry(number: int, **more: Any) -> dict[str, Any]:
    """An entry of an index; days apart."""
    day = f"20{number // 300:02d}-{number // 25 % 12 + 1:02d}-{number % 25 + 1:02d}"
    return {
        "climate_file": f"climate_{number % 100 + 1:05d}.pt",
        "text": f"What happens on day {number}?",
        "target": f"Answer {number}.",
        "lat": [10.0, 17.0],
        "lon": [20.0, 27.0],
        "time": [f"{day}T00:00:00Z", f"{day}T06:00:00Z"],
        **more,
    }


def write_split(folder: Path, entries: list[dict[str, Any]], seed: int) -> None:
    folder.mkdir(parents=True)
    for number, one in enumerate(entries):
        torch.save(field(seed + number), folder / one["climate_file"])
    (folder / "index.json").write_text(json.dumps(entries))


def make_tree(root: Path, train: int = 3, val: int = 2) -> Path:
    """A tree in which nothing is wrong."""
    write_split(root / "train", [entry(number) for number in range(train)], 0)
    write_split(root / "val", [entry(100 + number) for number in range(val)], 1000)
    (root / "channels.json").write_text(json.dumps({"channels": NAMES}))
    return root


def change(root: Path, split: str, number: int, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change an entry of an index in place."""
    path = root / split / "index.json"
    entries = json.loads(path.read_text())
    edit(entries[number])
    path.write_text(json.dumps(entries))
