"""The model of the climate-text guide.

from multimodal.core.climate_text_fusion import ClimateTextFusion
model = ClimateTextFusion.from_pretrained("checkpoints/multimodal/checkpoint_epoch_5")
model.answer("data/training/val/climate_00001.pt", "Where is the strongest anomaly?")
hidden, mean = model.features(batch)  # joint representations: [B, S, E] and [B, E]
"""

from __future__ import annotations

from sensorium.families.climate_text.model import ClimateTextFusion

__all__ = ["ClimateTextFusion"]
