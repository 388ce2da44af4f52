"""The model of the interaction guide.

    from model import create_model
    model = create_model("base")
    checkpoint = torch.load("outputs/checkpoints/best_model.pt")
    model.load_state_dict(checkpoint["model_state_dict"])

``load_model("outputs/checkpoints/best_model.pt")`` does the same for whatever size was trained, and returns
besides what makes texts, pictures and recordings ready for it.
"""

from __future__ import annotations

from sensorium.families.interaction.model import InteractionModel, create_model
from sensorium.families.interaction.processor import Processor
from sensorium.families.interaction.use import load_model

__all__ = ["InteractionModel", "Processor", "create_model", "load_model"]
