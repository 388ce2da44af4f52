"""The encoder of Prithvi WxC (Schmude et al. 2024, arXiv 2409.13598; prithviwxc 1.0.1, MIT), in an order that stays.

Legend: B rows, T times, C channels, X static channels, H W grid points, h w patches, G mask units, L patches in a unit,
D width, N tokens.

The package's own forward draws a random order of units at every call, also where nothing is masked. So its parts are
chained here, one after the other, and what comes out lies on the map again. Normalisation is the data source's; the
codes of place and time are float32 whatever the weights are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from sensorium.data.fields.channels import Scalers
from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.tokens import (
    Sides,
    join_fields,
    mask_unit,
    patch_code,
    pool_windows,
    token_window,
    window_centres,
)
from sensorium.parts.attention import without_autocast
from sensorium.parts.encoders_base import weights_digest

CHANNELS, TIMES, STATIC, PATCH = 160, 2, 8, 2  # of the published model; four of the static ones are day and hour
DAY_HOUR = 4


@dataclass(frozen=True)
class PrithviShape:
    """What the sizes of all weights follow from. ``blocks``: pairs of a local and a global one; a local one more comes
    at the end."""

    width: int
    blocks: int
    heads: int
    mlp: int
    channels: int = CHANNELS
    times: int = TIMES
    static: int = STATIC
    patch: int = PATCH

    @property
    def layers(self) -> int:
        return 2 * self.blocks + 1


@cache
def package() -> ModuleType:
    """``PrithviWxC/model.py``, loaded by itself. Raises ConfigError where the package is not installed.

    The package's ``__init__`` also imports readers of MERRA-2 with h5py, pandas and requests, none of which is needed
    here. Its ``model.py`` compares versions as texts: it takes 2.13 for older than 2.3, and leaves out the names of
    ``sdpa_kernel`` for a call that warns of its own removal each time; so both are put right.
    """
    found = importlib.util.find_spec("PrithviWxC")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("Prithvi WxC needs its package: pip install 'sensorium[climate]', or prithviwxc==1.0.1")
    path = Path(found.submodule_search_locations[0]) / "model.py"
    spec = importlib.util.spec_from_file_location("sensorium_prithviwxc_model", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be imported; install prithviwxc==1.0.1 again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(TORCH_VERSION="9", SDPBackend=SDPBackend, sdpa_kernel=sdpa_kernel)
    return module


class ExactLinear(nn.Linear):
    """A Linear in float32, whatever type its weights have and autocast says."""

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(x.float(), self.weight.float(), bias)


class PrithviEncoder(nn.Module):
    """``encode(batch)``; weights have the names of the published checkpoint.

    ``settings``: mask unit, shifting, window and most tokens. ``scalers``: those of the checkpoint, or None for random
    weights. ``checkpointed``: layers that are computed anew in the backward pass.
    """

    packages = ("torch", "prithviwxc")

    def __init__(
        self,
        shape: PrithviShape,
        settings: ModelConfig,
        scalers: Scalers | None = None,
        day_hour: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * DAY_HOUR, (1.0,) * DAY_HOUR),
        checkpointed: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.input_time_embedding = ExactLinear(1, shape.width // 4)
        self.lead_time_embedding = ExactLinear(1, shape.width // 4)
        self.shape, self.settings, self.scalers, self.day_hour = shape, settings, scalers, day_hour
        self.width = shape.width
        theirs = package()
        sides = (shape.patch, shape.patch)
        self.patch_embedding = theirs.PatchEmbed(sides, shape.channels * shape.times, shape.width)
        self.patch_embedding_static = theirs.PatchEmbed(sides, shape.channels + shape.static, shape.width)
        self.encoder = theirs.PrithviWxCEncoderDecoder(
            embed_dim=shape.width,
            n_blocks=shape.blocks,
            mlp_multiplier=shape.mlp,
            n_heads=shape.heads,
            dropout=0.0,
            drop_path=0.0,
            transformer_cp=list(checkpointed),
        )
        self._shifted_for: tuple[int, ...] | None = None

    @property
    def identity(self) -> str:
        """sha256 over the weights and all settings that change the tokens."""
        own = self.settings
        settings = {
            "kind": "prithvi",
            "shape": asdict(self.shape),
            "day_hour": self.day_hour,
            "mask_unit": own.mask_unit,
            "encoder_shifting": own.encoder_shifting,
            "token_window": own.token_window,
            "max_climate_tokens": own.max_climate_tokens,
            "weights": weights_digest(self),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``[B, N, D]`` with the latitudes and longitudes of their windows, ``[B, N]`` float32.

        ``field`` ``[B, T, C, H, W]`` and ``climatology`` ``[B, C, H, W]`` normalised, ``static`` ``[B, X - 4, H, W]``
        normalised, ``lat`` ``[B, H]``, ``lon`` ``[B, W]`` degrees, ``day_hour`` ``[B, 4]``, ``input_time``,
        ``lead_time`` ``[B]`` hours. More times than two are taken as consecutive pairs, side by side. Raises DataError
        for other shapes, ConfigError for units and windows that do not fit.
        """
        field = batch["field"]
        self._require(batch)
        height, width = field.shape[-2:]
        patch, times = self.shape.patch, self.shape.times
        pairs = field.shape[1] - times + 1
        unit = mask_unit(height, width, patch, self.settings.mask_unit)
        points = self.window(height, width, field.shape[1])
        place = window_centres(batch["lat"], batch["lon"], points)
        found = []
        for first in range(pairs):
            map_BDhw = self.chain(batch, field[:, first : first + times], unit)
            found.append((pool_windows(map_BDhw, (points[0] // patch, points[1] // patch)), *place))
        return join_fields(found)

    def window(self, height: int, width: int, times: int) -> Sides:
        """Side lengths, in grid points, of the windows that tokens of so many times stand for. Raises as ``encode``."""
        patch, settings = self.shape.patch, self.settings
        pairs = times - self.shape.times + 1
        unit = mask_unit(height, width, patch, settings.mask_unit)
        grid, inner = (height // patch, width // patch), (unit[0] // patch, unit[1] // patch)
        window = token_window(grid, inner, settings.max_climate_tokens, settings.token_window, fields=pairs)
        return window[0] * patch, window[1] * patch

    def time_code(self, input_time_B: Tensor, lead_time_B: Tensor) -> Tensor:
        """``[B, width]`` float32 from the hours between the two times and to the forecast time, as ``time_encoding`` of
        the package has it."""
        given, lead = self.input_time_embedding(input_time_B[:, None]), self.lead_time_embedding(lead_time_B[:, None])
        return torch.cat([given.cos(), lead.cos(), given.sin(), lead.sin()], dim=-1)

    def chain(self, batch: Mapping[str, Tensor], field_BTCHW: Tensor, unit: Sides) -> Tensor:
        """The package's parts over as many times as it takes: a map ``[B, D, h, w]``, row 0 the south as in the
        field."""
        shape, dtype = self.shape, self.patch_embedding.proj.weight.dtype
        height, width = field_BTCHW.shape[-2:]
        mean, std = (torch.tensor(values, device=field_BTCHW.device) for values in self.day_hour)
        clock = ((batch["day_hour"].float() - mean) / std)[:, :, None, None].expand(-1, -1, height, width)
        constant = torch.cat([clock, batch["static"].float(), batch["climatology"].float()], dim=1)
        x = self.patch_embedding(field_BTCHW.flatten(1, 2).to(dtype))
        still = self.patch_embedding_static(constant.to(dtype))
        still = still + patch_code(batch["lat"], batch["lon"], shape.patch, shape.width).to(still.dtype)
        time = self.time_code(batch["input_time"], batch["lead_time"])[:, None, None]
        local = (unit[0] // shape.patch, unit[1] // shape.patch)
        units = (height // unit[0], width // unit[1])
        if self.settings.encoder_shifting:
            self._shift_for(unit, units, local)
        encoded = self.encoder(to_units(x, local) + to_units(still, local) + time.to(x.dtype))
        return to_map(encoded, units, local)

    def _shift_for(self, unit: Sides, units: Sides, local: Sides) -> None:
        """The package's shifter depends on the grid, but has no weights."""
        if self._shifted_for != (*unit, *units):
            sides = (self.shape.patch, self.shape.patch)
            self.encoder.lgl_block.shifter = package().SWINShiftNoBuffer(unit, units, local, sides, n_context_tokens=0)
            self._shifted_for = (*unit, *units)

    def _require(self, batch: Mapping[str, Tensor]) -> None:
        """Raise DataError unless the shapes fit the encoder and each other."""
        field, shape = batch["field"], self.shape
        if field.ndim != 5 or field.shape[1] < shape.times or field.shape[2] != shape.channels:
            raise DataError(
                f"field has shape {list(field.shape)}; this encoder reads [B, T, {shape.channels}, H, W] with T of "
                f"{shape.times} or more (data.time_policy repeat makes two times of one)"
            )
        rows, (height, width) = len(field), field.shape[-2:]
        wanted = {
            "static": (rows, shape.static - DAY_HOUR, height, width),
            "climatology": (rows, shape.channels, height, width),
            "lat": (rows, height),
            "lon": (rows, width),
            "day_hour": (rows, DAY_HOUR),
            "input_time": (rows,),
            "lead_time": (rows,),
        }
        wrong = [name for name, sides in wanted.items() if tuple(batch[name].shape) != sides]
        if wrong:
            name = wrong[0]
            raise DataError(f"{name} has shape {list(batch[name].shape)}; this field needs {list(wanted[name])}")


def to_units(map_BDhw: Tensor, local: Sides) -> Tensor:
    """``[B, D, h, w] -> [B, G, L, D]``: units and the patches in them, both row by row."""
    rows, depth, height, width = map_BDhw.shape
    x = map_BDhw.reshape(rows, depth, height // local[0], local[0], width // local[1], local[1])
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def to_map(x_BGLD: Tensor, units: Sides, local: Sides) -> Tensor:
    """``[B, G, L, D] -> [B, D, h, w]``."""
    x = x_BGLD.reshape(len(x_BGLD), *units, *local, x_BGLD.shape[-1])
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def parameter_count(shape: PrithviShape) -> int:
    """Parameters of an encoder of this shape, by formula; a test holds it against a built one."""
    width, inner = shape.width, shape.width * shape.mlp
    layer = 3 * width**2 + width**2 + 2 * width * inner + inner + width + 4 * width
    patches = shape.patch**2 * (shape.channels * shape.times + shape.channels + shape.static)
    return shape.layers * layer + width * (patches + 2) + 4 * (width // 4)
