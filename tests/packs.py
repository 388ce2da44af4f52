"""Zip, tar and 7z files in memory, right and wrong ones."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import py7zr


def zipped(tree: Mapping[str, bytes], declared: int | None = None) -> bytes:
    """``declared``: a size that every member claims to have."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in tree.items():
            file.writestr(name, content)
        for member in file.filelist:
            member.file_size = member.file_size if declared is None else declared
    return stream.getvalue()


def tarred(tree: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """``more``: members without content, of any kind."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as file:
        for name, content in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for member in more:
            file.addfile(member)
    return stream.getvalue()


def sevened(tree: Mapping[str, bytes], change: Callable[[Any], object] | None = None) -> bytes:
    """``change``: what is done to the header before it is written. Names are written as they are, good or bad."""
    stream = io.BytesIO()
    with py7zr.SevenZipFile(stream, "w") as file:
        for number, content in enumerate(tree.values()):
            file.writestr(content, f"{number}")
        write_header = file._write_header

        def changed() -> None:
            for entry, name in zip(file.header.files_info.files if tree else (), tree, strict=True):
                entry["filename"] = name
            if change is not None:
                change(file.header)
            write_header()

        file._write_header = changed  # type: ignore[method-assign]
    return stream.getvalue()
