"""Zip and tar files in memory, right and wrong ones."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping


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
