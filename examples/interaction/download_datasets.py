"""Download the data sets of the interaction model, each into a folder of its own below --data-root.

    python download_datasets.py --datasets coco clotho audiocaps
    python download_datasets.py --datasets all --skip-existing
    python download_datasets.py --list

A file that is there and proved is never fetched again; an interrupted download goes on. Exit code 0: all that was asked
for is there and verified; 3: the rest has to be done by hand, as the last lines say (VoxCeleb, the sound of AudioCaps);
1: something failed; 2: a wrong flag, or too small a disk, and nothing was begun.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sensorium import errors, guide

guide.off_the_path(__file__)


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.add_argument("--datasets", nargs="+", metavar="NAME", help="coco, clotho, audiocaps, voxceleb, esc50, all")
    flags.flag("--data-root", Path, "./data", "folder of the data sets")
    flags.add_argument(
        "--skip-existing", action="store_true", help="compare what is there by name and size only, without hashing it"
    )
    flags.add_argument("--list", action="store_true", help="show the table of data sets and do nothing")
    flags.add_argument("--verify", action="store_true", help="fetch nothing; hash what is there")
    flags.add_argument("--audio", action="store_true", help="cut the clips of AudioCaps from YouTube (yt-dlp, ffmpeg)")
    flags.flag("--limit", int, None, "clips of each list of AudioCaps, at most")
    flags.flag("--cookies", Path, None, "file of cookies for yt-dlp")
    flags.flag("--from", Path, None, "folder with archives that you have already")
    flags.add_argument("--yes", action="store_true", help="do not ask, however much will come")
    return flags


def main() -> None:
    from sensorium import downloads
    from sensorium.data import catalog

    given = parser().given()
    if "datasets" not in given and "list" not in given:
        raise errors.ConfigError(f"--datasets is missing: name {', '.join(catalog.GOALS)} or all; --list shows them")
    if given.get("limit", 1) < 1:
        raise errors.ConfigError(f"--limit {given['limit']}: at least 1")
    root = given.get("data_root", Path("data"))
    plan = [(goal, root / goal.name) for goal in catalog.goals(given.get("datasets", ["all"]))]
    flags = downloads.Flags(
        copies=given.get("from"),
        skip_existing="skip_existing" in given,
        verify="verify" in given,
        audio="audio" in given,
        limit=given.get("limit"),
        cookies=given.get("cookies"),
    )
    wishes = downloads.wishes(flags)
    print(*downloads.table(plan), sep="\n", flush=True)
    if "list" in given:
        return
    if not (flags.verify or "yes" in given or downloads.agreed(plan)):
        print("nothing was downloaded")
        sys.exit(downloads.PARTIAL)
    sys.exit(downloads.run(plan, wishes))


if __name__ == "__main__":
    errors.shown(main)
