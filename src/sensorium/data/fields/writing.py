"""Writing a tree of fields (see ``tree``): numbered files, the index of each split, channels, and statistics of train.

A tree appears by one rename, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensorium.data.fields.channels import Normal, Scalers
from sensorium.data.fields.tree import CHANNELS, INDEX, SPLITS, STATS
from sensorium.errors import DataError
from sensorium.files import (
    disk,
    free_name,
    make_folder,
    new_folder,
    remove,
    rename,
    require_space,
    told,
    write_json,
)

Field = npt.NDArray[np.float32]
REPORT = "validation_report.json"
_OURS = {CHANNELS, STATS, REPORT, *SPLITS}


class Moments:
    """Mean and standard deviation of channels over everything that was added; sums in float64."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.count = 0
        self.mean, self.squares = np.zeros(len(names)), np.zeros(len(names))

    def add(self, values_CN: npt.NDArray[np.floating[Any]]) -> None:
        """``[C, N]`` numbers of each channel (Chan 1979: stable however far the mean is from zero)."""
        values = values_CN.astype(np.float64)
        count = values.shape[1]
        mean = values.mean(1)
        apart = mean - self.mean
        total = self.count + count
        self.squares += ((values - mean[:, None]) ** 2).sum(1) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def normal(self) -> Normal:
        std = np.sqrt(self.squares / max(1, self.count))
        return Normal(self.names, tuple(self.mean.tolist()), tuple(std.tolist()))


@dataclass
class Writer:
    """Takes the samples of a new tree one by one. ``names`` of the channels, ``static`` of the static fields."""

    folder: Path
    names: tuple[str, ...]
    static: tuple[str, ...]
    entries: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    numbers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def __post_init__(self) -> None:
        names = {"field": self.names, "climatology": self.names, "static": self.static}
        self.moments = {part: Moments(some) for part, some in names.items()}
        for split in SPLITS:
            make_folder(self.folder / split)

    def field(self, split: str, values_TCHW: Field) -> str:
        """Write a field under the next number of the split; its name."""
        self.numbers[split] += 1
        name = f"climate_{self.numbers[split]:05d}.pt"
        self._save(split, name, values_TCHW)
        self._count(split, "field", values_TCHW.swapaxes(0, 1))
        return name

    def constant(self, split: str, what: str, name: str, values_CHW: Field) -> str:
        """Write a ``static`` field or a ``climatology`` once for all entries of the split that name it."""
        file = f"{what}_{name}.pt"
        if not (self.folder / split / file).exists():
            self._save(split, file, values_CHW)
            self._count(split, what, values_CHW)
        return file

    def entry(self, split: str, content: Mapping[str, Any]) -> None:
        """Add an entry to the index of the split; what is None is left out."""
        self.entries[split].append({key: value for key, value in content.items() if value is not None})

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the indices, ``channels.json`` with ``about`` in it, and ``stats.json``. Raises DataError."""
        if not self.entries["train"]:
            raise DataError("no sample is left for training; give more data, or a smaller part for validation")
        for split in SPLITS:
            write_json(self.folder / split / INDEX, self.entries[split])
        content = {"channels": list(self.names), "static": list(self.static), **about}
        write_json(self.folder / CHANNELS, content)
        parts = (self.moments[part].normal() for part in ("field", "static", "climatology"))
        write_json(self.folder / STATS, Scalers(*parts).plain())

    def _save(self, split: str, name: str, values: Field) -> None:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        path = self.folder / split / name
        with told(path):
            disk.by_library(path, lambda place: torch.save(tensor, place))  # made safe with the whole folder

    def _count(self, split: str, what: str, values_CX: Field) -> None:
        if split == "train":
            self.moments[what].add(values_CX.reshape(len(values_CX), -1))


def require_place(target: Path, *, overwrite: bool) -> bool:
    """Whether a tree is there that may be replaced. Raises DataError as ``new_tree`` does, before anything is done."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not overwrite:
        raise DataError(f"{target}: exists and is not empty; name a new folder, or add --overwrite")
    foreign = [path.name for path in target.iterdir() if path.name not in _OURS] if target.is_dir() else [target.name]
    if foreign:
        raise DataError(f"{target}: holds {min(foreign)!r}, which is no part of a tree of fields; not overwritten")
    return True


@contextmanager
def new_tree(target: Path, size: int, *, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well. ``size``: bytes that must be free.

    ``overwrite``: what a tree consists of is replaced, when the new one is whole. Raises DataError: there is something
    and it may not be replaced, or other things lie there; DiskError.
    """
    filled = require_place(target, overwrite=overwrite)
    make_folder(target.parent)
    require_space(target.parent, size, "the data set")
    if not filled:
        with new_folder(target) as folder:
            yield folder
        return
    fresh = free_name(target)
    with new_folder(fresh) as folder:
        yield folder
    remove(target)
    rename(fresh, target)


Progress = Callable[[int, int], None]
"""Called with what is done and the whole."""
