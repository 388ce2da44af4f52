"""Reading text, where cached files lie, and where packages of data keep theirs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from sensorium import reading
from sensorium.errors import DataError


def cache_folder(name: str) -> Path:
    """Where files that can be made again are kept: ``SENSORIUM_CACHE/name``, else ``~/.cache/sensorium/name``."""
    value = os.environ.get("SENSORIUM_CACHE")
    return (Path(value).expanduser() if value else Path.home() / ".cache" / "sensorium") / name


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises DataError naming file and reason."""
    try:
        return reading.read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def package_folder(package: str) -> Path:
    """The folder of an installed package of data, found without running its code. Raises DataError if there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DataError(f"the package {package!r} is not installed; run: pip install 'sensorium[demo]'")
    return Path(found.submodule_search_locations[0])


def package_version(distribution: str) -> str:
    """The version of an installed distribution. Raises DataError if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"{distribution} is not installed; run: pip install 'sensorium[demo]'") from None
