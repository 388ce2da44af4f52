"""Train the multimodal thinking model within 8 GB, or try it out on synthetic data.

    python train_multimodal_sota8gb.py --demo --epochs 1

Without --demo it does what train_multimodal_flickr8k.py does. With it: embedded pictures, sentences and tones, random
encoders, a small model that learns in seconds (batch 16, learning rate 2e-3 unless given), no network, no GPU. Its
files go to checkpoints/demo and runs/MMT_Demo, so that no other run is touched.
"""

from __future__ import annotations

from typing import Any

from train_multimodal_flickr8k import SAVEDIR, parser, run

from sensorium import errors

DEMO: dict[str, Any] = {
    "data": {
        "reader": "synthetic",
        "root": None,
        "text_encoder": "random:text?width=64&layers=2&seed=0",
        "image_encoder": "random:vision?width=64&layers=2&seed=0",
        "audio_encoder": "random:audio?width=64&layers=2&seed=0",
        "audio_window_seconds": 2.0,
        "options": {"variants": 12},
    },
    "model": {"width": 96, "slots": 8, "heads": 4},
    "train": {"batch_size": 16, "precision": "fp32"},
    "optim": {"lr": 2e-3},
    "schedule": {"warmup_steps": 20},
}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--demo", action="store_true", help="synthetic data and random encoders")
    given = flags.given()
    if given.pop("demo", False):
        run(given, DEMO, f"{SAVEDIR}/demo", "MMT_Demo")
    else:
        run(given, {})


if __name__ == "__main__":
    errors.shown(main)
