"""Train the multimodal climate-text model.

    python train_multimodal.py --config config.yaml
    python train_multimodal.py --config config.yaml training.epochs=5 --training.learning_rate=1e-4
    python train_multimodal.py --resume checkpoints/multimodal/checkpoint_epoch_3
    deepspeed train_multimodal.py --config config.yaml --deepspeed deepspeed_config.json
    deepspeed --hostfile hostfile --num_nodes 2 --num_gpus 8 train_multimodal.py --config config.yaml
    torchrun --nproc_per_node 4 train_multimodal.py --config config.yaml

Values: those of the file, then the DeepSpeed JSON, then SECTION.KEY=VALUE (with or without -- before it), any key of
config.yaml; of docs/config.md those of the sections train, optim, schedule, loader, checkpoint, evaluate, track, guard.
Without a launcher one process trains. Paths are relative to the current folder.

Your own data: change `ClimateTextDataset`. Your own loss: change `compute_loss`. Both stand here, and are used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from training import Training

from sensorium import errors, guide
from sensorium.data.fields import tree
from sensorium.families.climate_text import guided, own, task

CONFIG = Path(__file__).resolve().parent / "config.yaml"
OVERRIDE = re.compile(r"--(\w+(?:\.\w+)+=.*)", re.DOTALL)


class ClimateTextDataset(own.ClimateTextDataset):
    """The samples of one split, `data.train_path` or `data.val_path`, which is `self.folder`."""

    def _load_climate_data(self, climate_file: str) -> torch.Tensor:
        """The field of an entry: float32 [time_steps, channels, height, width], in the units of its channels."""
        return tree.load(self.folder / climate_file)

    def _load_samples(self) -> list[dict[str, Any]]:
        """The entries of the split: climate_file, text, target, and what docs/data-formats.md lists besides."""
        return tree.raw_entries(self.folder)


class ClimateTextTask(task.ClimateTextTask):
    """What is trained: `self.model` reads fields and prompts."""

    def compute_loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a target token; a scalar with gradient."""
        if self.model.config.objective != "lm":
            return self.model.regression(batch).mean()
        said = self.model(batch)
        loss: torch.Tensor = said.losses().mean()
        return loss if said.contrast is None else loss + self.model.config.contrastive_weight * said.contrast


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--config", Path, "config.yaml beside this script", "file of values")
    flags.flag("--deepspeed", Path, None, "train with DeepSpeed, and this JSON of its own settings")
    flags.flag("--resume", Path, None, "go on from checkpoint_epoch_N, or from the folder that holds these")
    flags.flag("--local_rank", int, None, "given by launchers; not looked at")
    flags.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="any other value")
    return flags


def main() -> None:
    words = [found[1] if (found := OVERRIDE.fullmatch(word)) else word for word in sys.argv[1:]]
    given = parser().given(words)
    with guided.in_words_of_the_guide():
        Training(given, CONFIG, ClimateTextDataset, ClimateTextTask).run()


if __name__ == "__main__":
    errors.shown(main)
