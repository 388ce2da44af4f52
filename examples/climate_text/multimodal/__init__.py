"""The guide's import line works in this folder: ``from multimodal.core.climate_text_fusion import ClimateTextFusion``."""
