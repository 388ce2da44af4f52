"""Curves at Weights & Biases. The package is imported when it is asked for."""

from __future__ import annotations

import importlib
import io
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from sensorium import config as configuration
from sensorium.engine.settings import Track
from sensorium.errors import ConfigError
from sensorium.files import write_file


class Wandb:
    """One Weights & Biases run for one run folder, however often it is resumed. Raises ConfigError where it is refused
    there, as without a key."""

    def __init__(self, run: Path, settings: Track) -> None:
        wandb = import_wandb()
        self._package = wandb
        try:
            self._run = wandb.init(
                project=settings.wandb_project,
                entity=settings.wandb_entity,
                name=run.name,
                dir=str(run),
                mode=None if settings.wandb == "online" else settings.wandb,  # None: as WANDB_MODE says, else online
                id=_wandb_id(run),
                resume="allow",
                config=_stored_config(run),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"Weights & Biases: {reason}; run `wandb login`, or set WANDB_MODE=offline to keep the curves in the "
                "run folder"
            ) from error
        # our own axis: after a resume steps are logged again, which the built-in one refuses
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def draw(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Pictures of a step, PNGs by name."""
        shown = {name: self._package.Image(Image.open(io.BytesIO(content))) for name, content in pictures.items()}
        self._run.log({**shown, "step": step})

    def settle(self) -> None:
        """Its process keeps what it was told on its own."""

    def close(self) -> None:
        self._run.finish()


def import_wandb() -> ModuleType:
    """The package wandb. Raises ConfigError with the way out when it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "track.wandb: the package wandb is not installed; pip install 'sensorium[wandb]', or set track.wandb=off"
        ) from error


def _wandb_id(run: Path) -> str:
    path = run / "wandb_id"
    if not path.exists():
        write_file(path, uuid.uuid4().hex[:12].encode())
    return path.read_text().strip()


def _stored_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    return configuration.load_file(path) if path.exists() else {}
