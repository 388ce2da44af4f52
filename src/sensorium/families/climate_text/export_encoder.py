"""``sensorium export climate-encoder``: the encoder of a downloaded Prithvi WxC in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sensorium import reading
from sensorium.errors import CheckpointError, ConfigError, DataError
from sensorium.exported import LIBRARY, write_tensors
from sensorium.families.climate_text.prithvi_weights import (
    ABOUT,
    FORMAT,
    KIND,
    EncoderWeights,
    checksum_of,
    expected_shapes,
    find_weights,
    sha256_of,
)
from sensorium.files import make_folder, new_folder, require_space, write_json

SHARD = 1_000_000_000  # bytes; twice that is held at once, and a file may have 2 GB
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LARGEST_CARD = 1 << 20


def export_encoder(
    source: Path,
    output: Path,
    dtype: str = "fp32",
    *,
    trusted: bool = False,
    shard: int = SHARD,
    advance: Callable[[int, int], None] | None = None,
) -> str:
    """Write ``encoder.json`` and ``model-*.safetensors`` into the new folder ``output``; says in a line what is there.

    Bounded memory: the source is mapped, and one shard of it is read at a time. ``dtype``: of ``DTYPES``. ``trusted``:
    code in a ``.pt`` may run. ``advance(done, total)`` is told the bytes that are written. Raises ConfigError,
    CheckpointError, DataError (the folder is not empty) and DiskError; then nothing is left behind.
    """
    if source.is_dir():
        raise CheckpointError(f"{source}: a folder; give the .pt file of Prithvi WxC")
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; give the downloaded .pt of Prithvi WxC")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already; name a new folder")
    found = find_weights(source, trusted=trusted)
    sizes = _sizes(found, DTYPES[dtype])
    total = sum(sizes.values())
    make_folder(output.parent)
    require_space(output.parent, total, f"the encoder in {dtype}")
    with new_folder(output) as folder:
        groups = _groups(sizes, shard)
        done, files = 0, {}
        for number, names in enumerate(groups, start=1):
            name = f"model-{number:05}-of-{len(groups):05}.safetensors"
            _write_shard(folder / name, found, names, DTYPES[dtype])
            files[name] = sha256_of(folder / name)
            done += sum(sizes[one] for one in names)
            if advance is not None:
                advance(done, total)
        _write_about(folder, found, dtype, files, total)
    weights = sum(size // DTYPES[dtype].itemsize for size in sizes.values())
    return f"{weights:,} weights in {dtype}, {total / 1e9:.2f} GB of {source.stat().st_size / 1e9:.2f} GB"


def _sizes(found: EncoderWeights, dtype: torch.dtype) -> dict[str, int]:
    shapes = expected_shapes(found.shape)
    return {name: torch.Size(shapes[name]).numel() * dtype.itemsize for name in found.names}


def _groups(sizes: Mapping[str, int], most: int) -> list[tuple[str, ...]]:
    """Names of the tensors of each file: at most so many bytes, or one tensor."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return [tuple(group) for group in groups]


def _write_shard(path: Path, found: EncoderWeights, names: tuple[str, ...], dtype: torch.dtype) -> None:
    tensors: dict[str, Tensor] = found.read(names)
    infinite = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if infinite:
        raise CheckpointError(f"{found.path}: {infinite[0]} is not finite; the download may be damaged")
    write_tensors(path.parent, {name: tensor.to(dtype) for name, tensor in tensors.items()}, path.name)


def _write_about(folder: Path, found: EncoderWeights, dtype: str, files: Mapping[str, str], total: int) -> None:
    source = found.path
    shape = vars(found.shape)
    content = {
        "library": LIBRARY,
        "format": FORMAT,
        "kind": KIND,
        "shape": shape,
        "field": found.field.model_dump(mode="json"),
        "static": found.static.model_dump(mode="json"),
        "dtype": dtype,
        "weights": total // DTYPES[dtype].itemsize,
        "bytes": total,
        "source": {
            "name": source.name,
            "bytes": source.stat().st_size,
            "sha256": sha256_of(source),
            "state": found.wrapped_in,
        },
        "licence": _licence(source.parent),
        "files": dict(files),
    }
    write_json(folder / ABOUT, {**content, "checksum": checksum_of(content)})


def _licence(folder: Path) -> str:
    """What the model card beside the download says."""
    try:
        text = reading.read_bytes(folder / "README.md", _LARGEST_CARD).decode("utf-8", "replace")
    except OSError:
        return "not stated beside the download"
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    label = re.search(r"^license:[ \t]*(\S.*)$", front[1], re.MULTILINE) if front else None
    return label[1].strip() if label else "not stated in the README.md beside the download"
