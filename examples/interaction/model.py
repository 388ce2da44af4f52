"""The model of the interaction guide.

    from model import create_model
    model = create_model("base")
    checkpoint = torch.load("outputs/checkpoints/best_model.pt")
    model.load_state_dict(checkpoint["model_state_dict"])

``load_model("outputs/checkpoints/best_model.pt")`` does the same for whatever size was trained, and returns
besides what makes texts, pictures and recordings ready for it.
"""

from __future__ import annotations

from pathlib import Path

from sensorium.families.interaction.model import InteractionModel, create_model
from sensorium.families.interaction.portable import Processor, model_of
from sensorium.use import read_file

__all__ = ["InteractionModel", "Processor", "create_model", "load_model"]


def load_model(path: str | Path) -> tuple[InteractionModel, Processor]:
    """The model of a file that training wrote, on the CPU and in evaluation mode, and what makes its inputs of files
    and texts. Nothing but the file is needed. Raises CheckpointError for any other file, and where a byte of it changed."""
    found = read_file(path, "interaction")
    return model_of(found.config, found.facts, found.weights, str(path))
