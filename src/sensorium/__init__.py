"""Sensorium: train, evaluate and use multimodal models of five families on one engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.use import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: ``sensorium --help`` must not wait for torch."""
    if name == "load":
        from sensorium.use import load

        return load
    raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
