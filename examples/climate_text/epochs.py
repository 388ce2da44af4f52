"""The folders that the guide promises: ``checkpoints/multimodal/checkpoint_epoch_N``.

```
checkpoints/multimodal/
    checkpoint_epoch_1/ …   model.safetensors, model.json, manifest.json (engine/portable_folder.py), and besides
        config.yaml         the guide's values, and where the frozen parts are from
        tokenizer/          that of the language model
        mp_rank_00_model_states.pt, zero_pp_rank_0_mp_rank_00_optim_states.pt …    DeepSpeed's own files, whatever it
                            calls them; of plain runs two files of these names, marked ``format: sensorium-plain``
    best.json               tag, validation loss and step of the best epoch
    latest                  tag of the newest one
    run/                    the run itself: curves, report, native checkpoints, from which --resume goes on
```
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sensorium import config as configuration
from sensorium import guide
from sensorium.engine import checkpoint, portable_folder, rundir, session
from sensorium.engine.contract import Family
from sensorium.engine.listener import Saved
from sensorium.errors import ConfigError
from sensorium.families.climate_text.guided import GuideConfig
from sensorium.families.climate_text.llm import llm_folder, open_tokenizer
from sensorium.families.climate_text.task import sections
from sensorium.families.climate_text.tiny_llm import RANDOM
from sensorium.files import (
    make_folder,
    new_folder,
    remove,
    rename,
    replacing,
    write_by_library,
    write_file,
    write_json,
)
from sensorium.stored import BEST, DEEPSPEED, LATEST

PLAIN = "sensorium-plain"
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
SHARDS = ".shards.tmp"  # where DeepSpeed writes, until all is there
SCRIPT = "zero_to_fp32.py"


class EpochFolders:
    """Written when an epoch ends, each whole or not at all."""

    flag = "--resume"

    def __init__(self, family: Family, config: GuideConfig) -> None:
        self.family, self.config, self.folder = family, config, config.folder

    @staticmethod
    def newest(folder: Path) -> Path | None:
        """The folder that ``latest`` names."""
        path = folder / LATEST
        return folder / path.read_text().strip() if path.is_file() else None

    @property
    def last(self) -> Path:
        """What goes on wherever the run stopped."""
        return self.folder

    @property
    def tags(self) -> list[Path]:
        """Oldest first."""
        found = [path for path in self.folder.glob("checkpoint_*_*") if path.name.rpartition("_")[2].isdecimal()]
        return sorted(found, key=lambda path: int(path.name.rpartition("_")[2]))

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return self.folder / BEST, self.folder / LATEST, *self.tags

    def begin_anew(self, but: str | None) -> None:
        """Remove what an earlier run left, which has been set aside with it; ``but``: what this one begins with."""
        for path in self.paths:
            if but is None or path.absolute() != Path(but).absolute():
                remove(path)

    def tag(self, saved: Saved) -> str | None:
        """The name of its folder; None where none is due."""
        ends = rundir.read_json(saved.checkpoint / checkpoint.STATE)["stage_ends"]
        epoch = guide.due_epoch(saved, 1, ends)
        if epoch is None:
            return f"checkpoint_step_{saved.step}" if saved.better else None
        return f"checkpoint_epoch_{epoch}"

    def shards(self, saved: Saved) -> Path | None:
        """Where DeepSpeed is to write its own files of this checkpoint."""
        tag = self.tag(saved)
        remove(self.folder / SHARDS)
        if tag is None:
            return None
        make_folder(self.folder / SHARDS)
        return self.folder / SHARDS / tag

    def write(self, saved: Saved) -> None:
        """What follows from a complete checkpoint."""
        tag = self.tag(saved)
        if tag is None:
            return
        target = self.folder / tag
        if not portable_folder.made_from(target, saved):
            if target.exists():
                checkpoint.drop(target)
            with new_folder(target) as temporary:
                self._fill(temporary, saved, target)
        remove(self.folder / SHARDS)
        write_file(self.folder / LATEST, f"{tag}\n".encode())
        if saved.better:
            content = {"tag": tag, "loss": saved.value, "step": saved.step, "epoch": saved.epoch}
            write_json(self.folder / BEST, content)
        self._prune()

    def _fill(self, folder: Path, saved: Saved, target: Path) -> None:
        config = session.read_config(self.family, saved.run)
        model, _ = sections(config)
        portable_folder.write_model(saved, folder)
        text = self._origins(saved) + configuration.dump_yaml(self.config)
        write_file(folder / "config.yaml", text.encode())
        write_by_library(folder / "tokenizer", open_tokenizer(model).save_pretrained)
        if not self._take_shards(folder, target.name):
            _write_plain(folder, saved)
        portable_folder.write_manifest(saved, folder, target)

    def _origins(self, saved: Saved) -> str:
        """Comments: where the frozen parts come from."""
        model, _ = sections(session.read_config(self.family, saved.run))
        revision = ""
        if model.llm != RANDOM:
            try:
                place = llm_folder(model, weights=False)
                revision = f", revision {place.name}" if place.parent.name == "snapshots" else ""
            except ConfigError:  # gone since the run began
                revision = ", no more to be found"
        encoder = model.encoder_path or ("random" if model.random_init else model.climate_encoder)
        lines = [f"language model: {model.llm}{revision}", f"climate encoder: {encoder}"]
        lines.append(f"sha256 of all frozen weights: {checkpoint.check(saved.checkpoint).frozen}")
        return "".join(f"# {line}\n" for line in lines)

    def _take_shards(self, folder: Path, tag: str) -> bool:
        """Move what DeepSpeed wrote; whether it wrote anything."""
        written = self.folder / SHARDS / tag
        if not written.is_dir():
            return False
        for path in sorted(written.iterdir()):
            rename(path, folder / path.name)
        script = self.folder / SHARDS / SCRIPT
        if script.is_file():
            rename(script, self.folder / SCRIPT)
        return True

    def _prune(self) -> None:
        limit = self.config.training.save_total_limit
        if limit is None:
            return
        best = json.loads((self.folder / BEST).read_text())["tag"] if (self.folder / BEST).is_file() else None
        for path in self.tags[:-limit]:
            if path.name != best:
                checkpoint.drop(path)


def _write_plain(folder: Path, saved: Saved) -> None:
    """The two files of the guide's names, of a run without DeepSpeed."""
    content = checkpoint.load(saved.checkpoint, checkpoint.check(saved.checkpoint).family)
    about = {"format": PLAIN, "step": saved.step, "epoch": saved.epoch}
    for name, part in ((DEEPSPEED, {"module": content.weights}), (OPTIMIZER, {"optimizer": content.optimizer})):
        with replacing(folder / name) as file:
            torch.save({**about, **part}, file)
