"""A small ViT over a field, trained with the rest: any channels and any number of times, both fixed by the run.

Legend: B rows, T times, C channels, X static channels, H W grid points, h w patches, D width, N tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.prithvi import DAY_HOUR, ExactLinear
from sensorium.families.climate_text.tokens import Sides, patch_code, pool_windows, token_window, window_centres
from sensorium.parts.attention import Block, init_weights
from sensorium.parts.encoders_base import weights_digest

# Blocks begin as little updates: with full ones, two blocks and more learned nothing from 16,000 real fields in which
# one block found the place of the strongest anomaly (docs/log.md).
_LAYER_SCALE = 0.1


class GridVit(nn.Module):
    """``encode(batch)``, as of ``PrithviEncoder``, of ``times`` x ``channels`` and what is usual of them.

    ``static``: how many fields that stay. ``checkpointed``: blocks that are computed anew in the backward pass.
    """

    packages = ("torch",)

    def __init__(
        self, settings: ModelConfig, channels: int, times: int, static: int, checkpointed: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        own = settings.grid_vit
        self.settings, self.width, self.patch, self.checkpointed = settings, own.width, own.patch, checkpointed
        self.channels, self.times, self.static = channels, times, static
        maps = (times + 1) * channels + static
        self.patchify = nn.Conv2d(maps, own.width, own.patch, stride=own.patch)
        self.clock = ExactLinear(DAY_HOUR + 2, own.width)
        self.blocks = nn.ModuleList(Block(own.width, own.heads, layer_scale=_LAYER_SCALE) for _ in range(own.depth))
        self.norm = nn.LayerNorm(own.width)
        init_weights(self)

    @property
    def identity(self) -> str:
        """sha256 over the weights and all settings that change the tokens."""
        own = self.settings
        settings = {
            "kind": "grid_vit",
            "shape": own.grid_vit.model_dump(),
            "reads": [self.channels, self.times, self.static],
            "token_window": own.token_window,
            "max_climate_tokens": own.max_climate_tokens,
            "weights": weights_digest(self),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def window(self, height: int, width: int, times: int) -> Sides:
        """As of ``PrithviEncoder``; all times together make the tokens. Raises ConfigError where the patch does not
        divide."""
        del times
        window = layout(self.settings, height, width)[1]
        return window[0] * self.patch, window[1] * self.patch

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``[B, N, D]`` with the latitudes and longitudes of their windows, ``[B, N]`` float32. Batch as for
        ``PrithviEncoder.encode``. Raises DataError for other shapes, ConfigError where the patch does not divide."""
        field, static = batch["field"], batch["static"]
        height, width = field.shape[-2:]
        if field.ndim != 5 or field.shape[1:3] != (self.times, self.channels) or static.shape[1] != self.static:
            raise DataError(
                f"field has shape {list(field.shape)} and static {list(static.shape)}; this encoder reads [B, "
                f"{self.times}, {self.channels}, H, W] and [B, {self.static}, H, W]"
            )
        grid, window = layout(self.settings, height, width)
        dtype = self.patchify.weight.dtype
        x = self.patchify(torch.cat([field.flatten(1, 2), batch["climatology"], static], dim=1).to(dtype))
        hours = torch.stack([batch["input_time"], batch["lead_time"]], dim=1).float().clamp_min(0)
        clock = self.clock(torch.cat([batch["day_hour"].float(), hours.log1p()], dim=1))
        code = patch_code(batch["lat"], batch["lon"], self.patch, self.width) + clock[:, :, None, None]
        x = (x + code.to(x.dtype)).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.blocks):
            if number in self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        map_BDhw = self.norm(x).transpose(1, 2).unflatten(2, grid)
        points = (window[0] * self.patch, window[1] * self.patch)
        return pool_windows(map_BDhw, window), *window_centres(batch["lat"], batch["lon"], points)


def layout(settings: ModelConfig, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Patches of a grid of so many points, and of a window of tokens. Raises ConfigError where they do not fit."""
    grid = patches_of(height, width, settings.grid_vit.patch)
    return grid, token_window(grid, grid, settings.max_climate_tokens, settings.token_window)


def patches_of(height: int, width: int, patch: int) -> tuple[int, int]:
    """Patches of a grid. Raises ConfigError naming the patches that divide both sides."""
    if height % patch or width % patch:
        good = [side for side in range(1, min(height, width, 64) + 1) if height % side == 0 == width % side]
        raise ConfigError(
            f"model.grid_vit.patch {patch} does not divide the grid of {height} x {width} points; take one of "
            f"{', '.join(map(str, good))}"
        )
    return height // patch, width // patch
