"""Reading ``.pt`` files that nobody vouches for: tensors and plain values, no code."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sensorium import reading
from sensorium.errors import CheckpointError

_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
)  # what torch.load was seen to raise for files with flipped bits


def read(path: Path, *, mapped: bool = False) -> Any:
    """What the file holds; no code in it is run. Raises CheckpointError for anything but tensors and plain values.

    ``mapped``: bytes of tensors come from the disk when they are needed; the file must not change meanwhile.
    """
    try:
        with reading.open_plain(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: checksums say what they are worth
            _require_stored(file)
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except IsADirectoryError:
        raise CheckpointError(f"{path}: a folder; give a .pt file that training wrote") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or 'damaged'})") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: damaged, or holds more than tensors and plain values") from error


def _require_stored(file: BinaryIO) -> None:
    """torch packs nothing: a packed member may be a bomb. Raises BadZipFile."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise zipfile.BadZipFile("a packed member")
    file.seek(0)


def require_plain(path: Path, weights: dict[Any, Any]) -> None:
    """Raise CheckpointError unless these are plain tensors by name that the file is large enough to hold."""
    if not all(isinstance(name, str) and _is_plain(tensor) for name, tensor in weights.items()):
        raise CheckpointError(f"{path}: damaged; its weights must be plain tensors by name")
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > path.stat().st_size:
        raise CheckpointError(f"{path}: damaged; its weights claim more numbers than the file holds")


def _is_plain(tensor: object) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
