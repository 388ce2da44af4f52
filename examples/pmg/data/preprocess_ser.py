"""Make samples of SER30K: stickers of a theme, which stands for a user, and another sticker.

    python data/preprocess_ser.py --data_dir datasets/SER
    python data/preprocess_ser.py --data_dir datasets/SER --split honest --captioner checkpoints/blip

Writes train.json, val.json, test.json and split_report.json into DATA_DIR/processed_dataset. ser30k_captions.json in
DATA_DIR is found by itself; the published set has no captions. As published, the target is of another theme, of which
the history says nothing; --split honest takes one of the same theme.
"""

from __future__ import annotations

from preprocessing import Kind, parser, run

from sensorium import errors

KIND = Kind("ser30k", "user", "datasets/SER", ("target", "samples"))


def main() -> None:
    flags = parser(__doc__ or "", KIND)
    flags.flag("--target", str, "other_theme; with --split honest same_theme", "of which theme the target is")
    flags.flag("--samples", int, 3, "samples of each theme")
    run(flags, KIND)


if __name__ == "__main__":
    errors.shown(main)
