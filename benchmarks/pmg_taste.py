"""`pmg` in a world where taste can be counted: users love one of six colours, SmolLM2, a small Stable Diffusion.

    OMP_NUM_THREADS=1 python benchmarks/pmg_taste.py --llm SMOLLM2 --out runs/pmg_taste

SMOLLM2: a Hugging Face folder of SmolLM2-135M, or any other causal language model. The world: `pmg_taste_world.py`. A
Stable Diffusion is trained first on full captions, "a red circle" (`pmg_pipeline.py`), and frozen. Then the adapter
trains, by the command `sensorium train pmg`: the captions of a history name the colour, that of the target does not.
Then `sensorium generate` draws for users that nothing has seen, with the same noise: with their own soft tokens, the
same from histories in words that nothing has seen, with those of a user who loves another colour, from the caption
alone, and from the full caption, which is what Stable Diffusion can do at best. Counted are pictures of the user's
colour, and of the shape that was asked for.

What is finished is not repeated and what is not goes on, so the script may be killed and started again. `--name NAME`
trains another adapter beside those that are there, on the same Stable Diffusion.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import machine, sensorium, table
from pmg_pipeline import Plan, Row, make_pipeline
from pmg_taste_world import PLAIN, SIDE, caption, colour_of, shape_of, write_world
from pmg_worlds import adapter_run, options, write_sheet

from sensorium import files
from sensorium.data.media import load_image
from sensorium.families.pmg.drawing import folder_of
from sensorium.families.pmg.toy import COLOURS
from sensorium.metrics.bootstrap import Difference, difference

NO_COLOUR, NOTHING = 0.2, 0.1  # shares of captions that leave out the colour, or everything
GUIDANCE, STEPS = 3.0, 20
# Samples and mode of each row.
ARMS: Mapping[str, tuple[str, str]] = {
    "own": ("test", "target_soft"),
    "own, in words never seen": ("unseen", "target_soft"),
    "other user": ("other", "target_soft"),
    "caption alone": ("test", "caption_only"),
    "told": ("told", "caption_only"),
}
SETTINGS = (
    f"data.image_size={SIDE}",
    "data.name=COLOURS",
    "data.grid_users=7",
    "train.batch_size=16",
    "train.epochs=3",
    "optim.lr=1e-3",
    "schedule.warmup_steps=10",
    "evaluate.every_steps=60",
)


def captions(row: Row) -> list[str]:
    """Of a picture: all that is said of it."""
    return [caption(row["colour"], row["shape"]), caption(row["colour"], row["shape"], PLAIN)]


def drawn_caption(row: Row, draws: np.random.Generator) -> str:
    """Of a picture: the full one, the shape alone, or nothing."""
    full, plain = captions(row)
    coin = draws.random()
    if coin < NOTHING:
        return ""
    return plain if coin < NOTHING + NO_COLOUR else full


PLAN = Plan(
    side=SIDE,
    vae=(8, 8, 16, 32),
    channels=4,
    unet=(32, 64),
    groups=(2, 4),
    rows=(8, 32),
    rates=(3e-3, 1e-3),
    words=300,
    length=12,
    width=64,
    texts=captions,
    caption=drawn_caption,
    straight=True,
)


def picture_of(folder: Path, number: int) -> Path:
    """Of a sample that was drawn into ``folder``."""
    return folder_of(folder, number) / "gen_0.jpg"


def counted(samples: Path, folder: Path) -> dict[str, Difference]:
    """Share of pictures in the user's colour and in the target's shape, with 95 % intervals by user."""
    wanted = json.loads(samples.read_text())
    users = [one["user_id"] for one in wanted]
    pictures = [load_image(picture_of(folder, number)) for number in range(len(wanted))]
    found = [(colour_of(picture), shape_of(picture)) for picture in pictures]
    right = [
        [said == asked for said, asked in zip(both, one["target_item_id"].split("-"), strict=True)]
        for both, one in zip(found, wanted, strict=True)
    ]
    shares = [difference(np.asarray(values, float), users) for values in zip(*right, strict=True)]
    return dict(zip(("colour", "shape"), shares, strict=True))


def draw(given: argparse.Namespace, run: Path) -> dict[str, dict[str, Difference]]:
    """Pictures of every arm, and what is counted in them."""
    world, out = given.out / "world", given.out / f"drawn-{given.name}"
    files.make_folder(out)
    counts = {}
    for arm, (samples, mode) in ARMS.items():
        source, folder = world / f"{samples}.json", out / arm.replace(" ", "-")
        how = ("--mode", mode, "--guidance", GUIDANCE, "--steps", STEPS, "--image-dir", world)
        sensorium("generate", run, "--data", source, "--out", folder, *how)
        counts[arm] = counted(source, folder)
    return counts


def sheet(given: argparse.Namespace, rows: int = 12) -> Path:
    """The first pictures of each arm, a sample a row, beside the target."""
    world, out = given.out / "world", given.out / f"drawn-{given.name}"
    whole = []
    for number, one in enumerate(json.loads((world / "test.json").read_text())[:rows]):
        places = [world / one["target_item_info"]["image_path"]]
        places += [picture_of(out / arm.replace(" ", "-"), number) for arm in ARMS]
        whole.append([load_image(place) for place in places])
    return write_sheet(out / "sheet.png", whole, SIDE)


def asked() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__, out=Path("runs/pmg_taste"), users=240, vae_steps=300, unet_steps=2000)
    parser.add_argument("--name", default="pmg", help="of the adapter's run; another one is trained beside it")
    parser.add_argument("--held", type=int, default=60, help="users to draw for")
    given = parser.parse_args()
    if min(given.users, given.held) < len(COLOURS):
        parser.error(
            f"--users {given.users} --held {given.held}: each colour needs a user; give {len(COLOURS)} or more"
        )
    return given


def main() -> None:
    given = asked()
    given.out = given.out.resolve()
    world = given.out / "world"
    if not world.exists():
        write_world(world, given.users, given.held)
    if not (given.out / "stable_diffusion").exists():
        print(
            make_pipeline(world, given.out / "stable_diffusion", PLAN, (given.vae_steps, given.unet_steps)), flush=True
        )
    counts = draw(given, adapter_run(given, given.name, *SETTINGS))
    lines = [
        [arm, *(cell for one in shares.values() for cell in (f"{one.mean:.1%}", f"{one.low:.1%} to {one.high:.1%}"))]
        for arm, shares in counts.items()
    ]
    print(machine())
    print(table(("told", "user's colour", "95 %", "target's shape", "95 %"), lines))
    print(sheet(given))


if __name__ == "__main__":
    main()
