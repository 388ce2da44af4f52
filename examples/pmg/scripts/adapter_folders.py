"""What the guide promises: ``outputs/flickr/checkpoint-1000``.

```
outputs/flickr/
    checkpoint-1000/ …      every training.save_steps; the adapter and nothing frozen:
        model.safetensors   image prompt, prefix and mapping, float32; with training.ema_decay their moving average
        config.json         what builds the model around them, with digests of the base models
        README.md           the model card
        model.json          the resolved configuration and the facts of the run
        manifest.json       sizes and sha256 of these, and the native checkpoint from which the run goes on
    final_model/            the same of the last step
    logs/                   TensorBoard
    samples/                pictures drawn while training
    run/                    the run itself: curves, report.html, native checkpoints
```
"""

from __future__ import annotations

import re
from pathlib import Path

from sensorium import stored
from sensorium.engine import checkpoint, portable_folder, rundir, session
from sensorium.engine.contract import Family
from sensorium.engine.files import read_lines
from sensorium.engine.listener import Saved
from sensorium.families.pmg import adapter_files
from sensorium.files import new_folder, remove

FINAL, SAMPLES, LATEST = "final_model", "samples", "latest"
_NUMBERED = re.compile(r"(?:checkpoint-|step_0*)(\d+)")


class AdapterFolders:
    """Written when a native checkpoint is complete, each whole or not at all. ``begun_at``: the step from which the run
    goes on; what is of before stays as it is."""

    flag = "--resume_from"

    def __init__(self, family: Family, folder: Path, every: int, limit: int | None) -> None:
        self.family, self.folder, self.every, self.limit = family, folder, every, limit
        self.begun_at = 0

    @property
    def last(self) -> Path:
        """What goes on wherever the run stopped."""
        return self.folder

    @property
    def numbered(self) -> list[Path]:
        """``checkpoint-N``, oldest first."""
        return sorted((path for path in self.folder.glob("checkpoint-*") if _step(path) is not None), key=_order)

    @property
    def names(self) -> list[str]:
        """Of all from which a run may go on."""
        final = [FINAL] if (self.folder / FINAL).is_dir() else []
        return [*(path.name for path in self.numbered), *final]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is of steps behind the beginning of this run."""
        if not self.begun_at:
            return self.folder / FINAL, self.folder / SAMPLES, *self.numbered
        drawn = sorted((self.folder / SAMPLES).glob("step_*"), key=_order)
        return self.folder / FINAL, *(path for path in [*self.numbered, *drawn] if _order(path) > self.begun_at)

    def begin_anew(self, but: str | None) -> None:
        """Remove what an earlier run left, which has been set aside with it; ``but``: what this one begins with."""
        for path in self.paths:
            if but is None or path.absolute() != Path(but).absolute():
                remove(path)

    def write(self, saved: Saved) -> None:
        """What follows from a complete checkpoint."""
        ends = rundir.read_json(saved.checkpoint / checkpoint.STATE)["stage_ends"]
        names = [f"checkpoint-{saved.step}"] * (saved.step % self.every == 0) + [FINAL] * (saved.step == ends[-1])
        for name in names:
            target = self.folder / name
            if not portable_folder.made_from(target, saved):
                if target.exists():
                    checkpoint.drop(target)
                with new_folder(target) as temporary:
                    self._fill(temporary, saved, target)
        for path in self.numbered[: -self.limit] if self.limit else []:
            checkpoint.drop(path)

    def _fill(self, folder: Path, saved: Saved, target: Path) -> None:
        content = checkpoint.load(saved.checkpoint, self.family.name)
        config, facts = session.read_config(self.family, saved.run), rundir.read_facts(saved.run)["facts"]
        found = stored.Stored(saved.checkpoint, config, facts, content.weights, content.frozen)
        adapter_files.write_trained(folder, found)
        portable_folder.write_about(saved, folder)
        portable_folder.write_manifest(saved, folder, target)
        adapter_files.write_trained_card(folder, found, _results(saved))  # last: it may be edited


def _step(path: Path) -> int | None:
    """What a name says."""
    found = _NUMBERED.fullmatch(path.name)
    return int(found[1]) if found else None


def _order(path: Path) -> int:
    return _step(path) or 0


def _results(saved: Saved) -> str:
    """Of the model card: position, and the newest validation."""
    lines = [f"Step {saved.step:,}, epoch {saved.epoch:.2f}."]
    for line in read_lines(saved.run / "metrics.jsonl"):
        if line.get("kind") == "val" and line["step"] <= saved.step:
            lines[1:] = [f"val_loss {line['metrics']['loss']:.5f}, validated at step {line['step']:,}."]
    return " ".join(lines)
