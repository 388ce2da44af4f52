"""Make samples of FLICKR-AES: what a worker liked, and the photograph that they liked next.

    python data/preprocess_flickr.py --data_dir datasets/FLICKR
    python data/preprocess_flickr.py --data_dir datasets/FLICKR --split honest --captioner checkpoints/blip
    python data/preprocess_flickr.py --data_dir datasets/FLICKR --captions my_captions.json --styles FLICKR_styles.json

Writes train.json, val.json, test.json and split_report.json into DATA_DIR/processed_dataset. FLICKR_captions.json in
DATA_DIR is found by itself; the published set has no captions.
"""

from __future__ import annotations

from preprocessing import Kind, parser, run

from sensorium import errors

KIND = Kind("flickr_aes", "worker", "datasets/FLICKR", ("above",))


def main() -> None:
    flags = parser(__doc__ or "", KIND)
    flags.flag("--above", int, 2, "a photograph was liked that was rated above this, of 1 to 5")
    run(flags, KIND)


if __name__ == "__main__":
    errors.shown(main)
