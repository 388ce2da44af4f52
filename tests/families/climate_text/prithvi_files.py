"""A small whole Prithvi WxC of the package, and files as they are published."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

needs_prithvi = pytest.mark.skipif(
    importlib.util.find_spec("PrithviWxC") is None, reason="prithviwxc==1.0.1 is not installed (extra `climate`)"
)
WIDTH, BLOCKS, HEADS, MLP = 32, 1, 4, 2


def whole(sides: tuple[int, int] = (64, 64), unit: tuple[int, int] = (32, 32), **changes: Any) -> nn.Module:
    """``PrithviWxC`` with random weights and scalers."""
    from sensorium.families.climate_text.prithvi import package

    torch.manual_seed(0)
    given: dict[str, Any] = {
        "in_channels": 160,
        "input_size_time": 2,
        "in_channels_static": 8,
        "input_scalers_mu": torch.randn(160) * 3,
        "input_scalers_sigma": torch.rand(160) + 0.5,
        "input_scalers_epsilon": 0.0,
        "static_input_scalers_mu": torch.randn(11),
        "static_input_scalers_sigma": torch.rand(11) + 0.5,
        "static_input_scalers_epsilon": 0.0,
        "output_scalers": torch.ones(160),
        "n_lats_px": sides[0],
        "n_lons_px": sides[1],
        "patch_size_px": (2, 2),
        "mask_unit_size_px": unit,
        "mask_ratio_inputs": 0.0,
        "mask_ratio_targets": 0.0,
        "embed_dim": WIDTH,
        "n_blocks_encoder": BLOCKS,
        "n_blocks_decoder": 0,
        "mlp_multiplier": MLP,
        "n_heads": HEADS,
        "dropout": 0.0,
        "drop_path": 0.0,
        "parameter_dropout": 0.0,
        "residual": "climate",
        "masking_mode": "both",
        "positional_encoding": "fourier",
    }
    model: nn.Module = package().PrithviWxC(**(given | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def published() -> dict[str, Tensor]:
    """The state of a whole model as the published file holds it: with decoder, shifter and masks."""
    model = whole(n_blocks_decoder=1, decoder_shifting=True)
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} >= {"decoder", "decoder_shifter", "unembed", "mask_token"}
    return dict(state)
