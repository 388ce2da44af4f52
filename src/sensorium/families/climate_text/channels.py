"""Names, units and normalisation of channels, as the family's encoders use them."""

from __future__ import annotations

from sensorium.data.fields.channels import (
    CONSTANT,
    LEVELS,
    MERRA2_160,
    SETS,
    SIGMA,
    STATIC_8,
    TIME_CODE,
    Channel,
    Normal,
    Scalers,
    known,
    names_of,
    read_scalers,
)

__all__ = [
    "CONSTANT",
    "LEVELS",
    "MERRA2_160",
    "SETS",
    "SIGMA",
    "STATIC_8",
    "TIME_CODE",
    "Channel",
    "Normal",
    "Scalers",
    "known",
    "names_of",
    "read_scalers",
]
