"""Files and folders that appear whole, where cached ones lie, and where packages of data keep theirs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp gives 0600
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes it by one rename when the block ends well.

    An empty ``target`` is replaced. Raises DataError when a filled one is there by then, or nothing can be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    except OSError as error:
        raise DataError(f"{target.parent}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.replace(target)
        except OSError as error:
            raise DataError(f"{target}: exists already or cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
