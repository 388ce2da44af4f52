"""Sensorium: train, evaluate and use multimodal models of five families on one engine."""

__version__ = "0.1.0"
