"""Draw pictures for the samples of the test file with what `train.py` trained.

    python scripts/inference.py --config configs/flickr_train.yaml --checkpoint outputs/flickr/final_model
    python scripts/inference.py --config configs/flickr_train.yaml --output_dir results --num_images 3 --device cuda
    python scripts/inference.py --config configs/flickr_train.yaml inference.mode=target_soft_style

Values: those of the file, then SECTION.KEY=VALUE, any key of it. What is complete in the output folder is not drawn
again. INFERENCE.md says what comes out. Paths are relative to the current folder.
"""

from __future__ import annotations

from pathlib import Path

from sensorium import errors, guide


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--config", Path, None, "file of values, such as configs/flickr_train.yaml")
    flags.flag("--checkpoint", Path, "final_model of training.output_dir", "checkpoint-N, final_model, or a run")
    flags.flag("--output_dir", Path, "DATA_DIR/eval_outputs", "where the pictures go")
    flags.flag("--device", str, "auto", "cpu, cuda, cuda:1 or auto")
    flags.flag("--num_images", int, "inference.images", "pictures of each sample")
    flags.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="any key of the file")
    return flags


def main() -> None:
    given = parser().given()
    from guide_keys import in_words_of_the_guide
    from pmg_inference import Inference

    with in_words_of_the_guide():
        Inference(given).run()


if __name__ == "__main__":
    errors.shown(main)
