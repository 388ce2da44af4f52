"""What `inference.py` draws with, and where: the adapter, the test file and the folder of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from adapter_folders import FINAL, AdapterFolders
from guide_keys import KEYS, GuideConfig

from sensorium import config as configuration
from sensorium import families, use
from sensorium.errors import CheckpointError, ConfigError
from sensorium.families.pmg.use import Pictures, open_pictures

# Keys of the file that belong to the adapter: another value than that of training would be without effect.
TRAINED = ("pmg.num_image_prompt", "pmg.num_prefix_prompt", "pmg.conditioning", "pmg.prompt_template", "pmg.weights")
PLACES = ("name", "image_dir", "path_prefix", "user_preferences", "image_size", "negative_prompt")
say = partial(print, flush=True)


class Inference:
    """One command. ``given``: its flags."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        if "config" not in given:
            raise ConfigError("--config FILE is missing; configs/flickr_train.yaml is one")
        changes = configuration.parse_overrides(given.get("overrides", []))
        self.guide = GuideConfig.read(given["config"], changes)
        self.out = Path(given.get("output_dir") or self.guide.data_dir / "eval_outputs").expanduser()
        named = {"images": given.get("num_images"), "device": given.get("device")}
        self.how = {**self.guide.drawing(), **{name: one for name, one in named.items() if one is not None}}
        self.data = self._samples()
        self.checkpoint = self._chosen(Path(given.get("checkpoint") or self.guide.folder / FINAL).expanduser())

    def _samples(self) -> Path:
        """The test file."""
        found = self.guide.samples("test")
        if found is None:
            wanted = self.guide.processed_dir / "test.json"
            raise ConfigError(f"dataset.test_json: there is no {wanted}; give the samples to draw for")
        return Path(found)

    def _chosen(self, path: Path) -> Path:
        """The folder of an adapter; of what training wrote as a whole the last step. Raises CheckpointError."""
        value = self.guide.value
        files = AdapterFolders(families.load("pmg"), self.guide.folder, value("training.save_steps"), None)
        if path.is_dir():
            inside = [path / name for name in (FINAL, "run") if (path / name).is_dir()]
            return inside[0] if inside and not (path / "config.yaml").is_file() else path
        there = ", ".join(files.names) or "no checkpoint"
        raise CheckpointError(f"{path}: no such folder; in {files.folder} there is {there}")

    def run(self) -> None:
        """Draw what is missing."""
        say(f"Adapter: {self.checkpoint}; samples: {self.data}; pictures: {self.out}")
        self._opened().draw_file(self.data, self.out, self.how, use.host(say))

    def _opened(self) -> Pictures:
        """The adapter between the base models that the file names. Raises CheckpointError and ConfigError."""
        ours = self.guide.settings(world=1)
        bases = {name: ours["model"][name] for name in ("llm", "stable_diffusion", "clip")}
        found = open_pictures(self.checkpoint, bases, {name: ours["data"][name] for name in PLACES})
        trained = found.task.settings.model_dump(mode="json")
        for key in TRAINED:
            name = KEYS[key][0] if key in KEYS else key
            mine, theirs = ours["model"][name.rpartition(".")[2]], trained[name.rpartition(".")[2]]
            if self.guide.given(key) and mine != theirs:
                raise ConfigError(
                    f"{key} is {mine}, the adapter {self.checkpoint} was trained with {theirs}; leave it out, or give "
                    "its file of values"
                )
        return found
