"""The catalogue's data sets on a server of this machine, small, packed as they are published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import published_trees as trees
import pytest
from http_server import Server, publish
from packs import sevened, zipped

from sensorium.data.catalog import CATALOGUE

SETS = ("coco", "coco-karpathy", "clotho", "audiocaps", "esc50")


def offer(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the catalogue lead to ``server`` for as long as the test goes; ``folder``: for the trees."""
    coco = trees.lavis_lists(trees.coco(folder / "coco"))
    clotho, clips = trees.clotho(folder / "clotho"), trees.audiocaps(folder / "audiocaps")
    esc50 = trees.esc50(folder / "esc50")
    content = {path.name: path.read_bytes() for root in (coco, clotho, clips) for path in root.glob("*.*")}
    content["annotations_trainval2017.zip"] = zipped(below(coco, "annotations"))
    for part in ("train2017", "val2017"):
        content[f"{part}.zip"] = zipped(below(coco, part))
    for part in trees.CLOTHO:
        content[f"clotho_audio_{part}.7z"] = sevened(below(clotho, part))
    more = {"ESC-50-master/README.md": b"read me", "ESC-50-master/LICENSE": b"CC", "ESC-50-master/tests/t.py": b""}
    content["ESC-50-master.zip"] = zipped(below(esc50, "ESC-50-master") | more)
    for name in SETS:
        files = tuple(publish(server, remote, content[remote.name]) for remote in CATALOGUE[name].files)
        monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], files=files))


def below(root: Path, folder: str) -> dict[str, bytes]:
    paths = sorted(path for path in (root / folder).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
