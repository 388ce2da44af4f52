"""Train the unified TempMe-STOP model.

    python train_unified_model.py --config configs/my_training_config.json --mode joint --seed 42
    python train_unified_model.py --config configs/my_training_config.json --mode joint \\
        --resume checkpoints/unified_model/checkpoint_epoch_10.pth
    python train_unified_model.py --mode tempme_only training.num_epochs=5 training.batch_size=16
    torchrun --nproc_per_node=4 train_unified_model.py --config configs/my_training_config.json

Values: those of the file, then the flags, then SECTION.KEY=VALUE, any key of the file or of docs/config.md. All GPUs of
this machine are used. Paths are relative to the current folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from sensorium import errors, guide

CONFIG = Path(__file__).resolve().parent / "configs" / "training_config.json"


def parser() -> guide.Parser:
    flags = guide.Parser(__doc__ or "")
    flags.flag("--config", Path, "configs/training_config.json beside this script", "file of values")
    flags.flag("--mode", str, "training.training_mode", "joint, tempme_only, stop_only or sequential")
    flags.flag("--seed", int, 42, "seed of every random draw")
    flags.flag("--resume", Path, None, "a .pth file to go on from; with another mode: to begin with its weights")
    flags.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="any other value")
    return flags


def main() -> None:
    given = parser().given()
    from trainer import UnifiedModelTrainer

    from sensorium.engine.tables import print_evaluation

    config, settings = configured(given)
    trainer = UnifiedModelTrainer(config, seed=given.get("seed"), resume=given.get("resume"), settings=settings)
    guide.leads(trainer.start)
    trainer.train()
    if trainer.result is not None:
        print_evaluation(trainer.result)


def configured(given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The guide's configuration, and settings of the engine beside it. Raises ConfigError."""
    from sensorium import config as configuration
    from sensorium.engine import launch
    from sensorium.engine.settings import RunConfig
    from sensorium.families.video_retrieval.config import Mode
    from sensorium.families.video_retrieval.guided import UnifiedModelConfig
    from sensorium.families.video_retrieval.portable import read_values

    if "resume" in given and "config" not in given:
        config = read_values(given["resume"])[1]
    else:
        config = UnifiedModelConfig.from_json(given.get("config", CONFIG))
    if "mode" in given:
        if given["mode"] not in get_args(Mode):
            raise errors.ConfigError(f"--mode {given['mode']}: there are {', '.join(get_args(Mode))}")
        found = config.training.training_mode
        if found != given["mode"] and launch.is_main():
            print(f"--mode {given['mode']} wins over training.training_mode {found}", flush=True)
    overrides = configuration.parse_overrides(given.get("overrides", []))
    engine = {
        name: overrides.pop(name)
        for name in list(overrides)
        if name in RunConfig.model_fields.keys() - {"model", "data"}
    }
    flags = {"training": {"training_mode": given["mode"]}} if "mode" in given else {}
    return config.changed(configuration.merge(flags, overrides), "command line"), engine


if __name__ == "__main__":
    errors.shown(main)
