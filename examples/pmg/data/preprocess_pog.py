"""Make samples of POG (Alibaba iFashion, not Polyvore): what a user clicked, and what they clicked next.

    python data/preprocess_pog.py --data_dir datasets/POG --download
    python data/preprocess_pog.py --data_dir datasets/POG --split honest --users 2000
    python data/preprocess_pog.py --data_dir datasets/POG --target outfit

Writes train.json, val.json, test.json and split_report.json into DATA_DIR/processed_dataset. --download first fetches
the pictures that are missing, by the addresses of item_data.txt; run it again after an interruption. Titles are the
captions where there are no others (captions_sampled.json in DATA_DIR is found by itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing import Kind, parser, run

from sensorium import errors

if TYPE_CHECKING:
    from sensorium.data.history_build import Choices


def download(given: Mapping[str, Any], root: Path, options: Choices) -> None:
    """Fetch the pictures that the samples need, where it was asked for. Raises DataError."""
    if "download" not in given:
        return
    from sensorium.data import links
    from sensorium.data.readers import pog
    from sensorium.engine.tracking import progress_bar

    assert isinstance(options, pog.Options)
    addresses = pog.addresses(root, options)
    with progress_bar("pictures", len(addresses)) as advance:
        tally = links.fetch_pictures(addresses, root / pog.PICTURES, advance)
    print(errors.printable(tally.line), flush=True)


KIND = Kind("pog", "user", "datasets/POG", ("users", "target"), download)


def main() -> None:
    flags = parser(__doc__ or "", KIND)
    flags.flag("--users", int, 2000, "users that are read, drawn by the seed")
    flags.flag(
        "--target", str, "next", "next: the next click; outfit: an item of the outfit, from the last five clicks"
    )
    flags.add_argument("--download", action="store_true", help="fetch missing pictures by their addresses")
    run(flags, KIND)


if __name__ == "__main__":
    errors.shown(main)
