"""Train soft prompts for users' tastes.

    python scripts/train.py --config configs/flickr_train.yaml
    python scripts/train.py --config configs/flickr_train.yaml --resume_from outputs/flickr/checkpoint-5000
    python scripts/train.py --config configs/flickr_train.yaml --device cuda training.learning_rate=1e-5
    accelerate launch --config_file accelerate_config.yaml scripts/train.py --config configs/flickr_train.yaml

Values: those of the file, then SECTION.KEY=VALUE, any key of it (README.md). All visible GPUs are used, a process each;
--processes and CUDA_VISIBLE_DEVICES set another number. Paths are relative to the current folder.
"""

from __future__ import annotations

from pathlib import Path

from sensorium import errors, guide


class FrozenModel:
    """The language model of the run, before it is opened."""

    gradient_checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """Compute its activations, and those of the UNet, anew in the backward pass: slower, in much less memory."""
        self.gradient_checkpointing = True


llama_model = FrozenModel()
# For limited VRAM; the same as training.gradient_checkpointing: true in the file.
# llama_model.gradient_checkpointing_enable()


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--config", Path, None, "file of values, such as configs/flickr_train.yaml")
    flags.flag("--resume_from", str, None, "checkpoint-N or final_model to go on from, or latest")
    flags.flag("--device", str, "auto", "cpu, cuda, cuda:1 or auto")
    flags.flag("--processes", int, None, "processes on this machine; default: one a visible GPU")
    flags.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="any key of the file")
    return flags


def main() -> None:
    given = parser().given()
    from guide_keys import in_words_of_the_guide
    from pmg_training import Training

    with in_words_of_the_guide():
        Training(given, checkpointing=llama_model.gradient_checkpointing).run()


if __name__ == "__main__":
    errors.shown(main)
