"""See ``climate_text_fusion.py``."""
