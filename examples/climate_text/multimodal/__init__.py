"""So that ``from multimodal.core.climate_text_fusion import ClimateTextFusion`` works in this folder."""
