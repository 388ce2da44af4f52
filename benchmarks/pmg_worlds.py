"""What `pmg_emoji.py` and `pmg_taste.py` do alike: the adapter's run in a world of our own, the sheet, the options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import trained_run
from PIL import Image

from sensorium import files

SETTINGS = (
    "data.negative_prompt=",
    "train.epochs=1",
    "train.micro_batches=1",
    "evaluate.batch_size=8",
    "loader.workers=0",
)


def adapter_run(given: argparse.Namespace, name: str, *settings: str) -> Path:
    """The run ``name`` under ``given.out``, on the world and the Stable Diffusion that lie there, by `sensorium train
    pmg`. ``settings`` come after those of every world, ``given.settings`` after them."""
    world = given.out / "world"
    data = [f"data.{split}_json={world / split}.json" for split in ("train", "val", "test")]
    models = [f"model.llm={given.llm}", f"model.stable_diffusion={given.out / 'stable_diffusion'}"]
    return trained_run(given.out / name, "pmg", "recommended", *data, *models, *SETTINGS, *settings, *given.settings)


def write_sheet(path: Path, rows: Sequence[Sequence[Image.Image]], side: int) -> Path:
    """Pictures in rows, each ``side`` pixels square, as one PNG."""
    sheet = Image.new("RGB", (side * len(rows[0]), side * len(rows)), "white")
    for top, row in enumerate(rows):
        for left, one in enumerate(row):
            sheet.paste(one.resize((side, side)), (left * side, top * side))
    with files.new_file(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def options(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """The options of both; ``defaults`` for ``out``, ``users``, ``vae_steps`` and ``unet_steps``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--users", type=int, help="users to train on")
    parser.add_argument("--vae-steps", type=int)
    parser.add_argument("--unet-steps", type=int)
    parser.add_argument("settings", nargs="*", help="of the run, section.key=value")
    parser.set_defaults(**defaults)
    return parser
