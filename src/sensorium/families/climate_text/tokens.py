"""From patches to tokens: mask units, averages over windows, and the code that says where on the globe a token lies.

Legend: B rows, h w patches of the grid, D width, N tokens, H W grid points, M frequencies.

Nothing here has parameters, so all of it may lie before a cache. The codes are computed in float32, with autocast off,
from degrees and from frequencies made on the spot: `.half()`, `.bfloat16()` and DeepSpeed round float buffers, and a
code of high frequency does not survive that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sensorium.errors import ConfigError, DataError
from sensorium.families.climate_text.config import Window
from sensorium.parts.attention import without_autocast

Sides = tuple[int, int]
NATIVE_UNIT: Sides = (30, 32)  # grid points of Prithvi's mask unit in its training


def mask_unit(height: int, width: int, patch: int, wanted: Window = "auto") -> Sides:
    """Side lengths of a mask unit in grid points.

    ``auto``: of the divisors of each side that are multiples of ``patch`` the one nearest to the native 30 x 32, the
    smaller one of two as near. Raises DataError where a side is no multiple of ``patch``, ConfigError where ``wanted``
    does not fit.
    """
    if height % patch or width % patch or min(height, width) < patch:
        raise DataError(f"a grid of {height} x {width} points: both sides must be multiples of the patch, {patch}")
    if wanted == "auto":
        rows, columns = (
            min((side for side in range(patch, length + 1, patch) if length % side == 0), key=lambda s: abs(s - native))
            for length, native in zip((height, width), NATIVE_UNIT, strict=True)
        )
        return rows, columns
    if any(length % side or side % patch for length, side in zip((height, width), wanted, strict=True)):
        raise ConfigError(
            f"model.mask_unit {list(wanted)}: must divide the grid of {height} x {width} points, in multiples of "
            f"{patch}; auto finds one"
        )
    return wanted


def token_window(grid: Sides, unit: Sides, most: int, wanted: Window = "auto", *, fields: int = 1) -> Sides:
    """Side lengths, in patches, of the windows over which tokens are averaged.

    ``grid``, ``unit``: patches of the field and of a mask unit, which a window divides. ``fields``: how many fields
    share the ``most`` tokens. ``auto``: as many tokens as may be, of windows as near to a square as may be. Raises
    ConfigError where no window does.
    """
    patches = grid[0] * grid[1] * fields
    if wanted != "auto":
        if any(length % side for length, side in zip(unit, wanted, strict=True)):
            raise ConfigError(
                f"model.token_window {list(wanted)}: must divide the unit of {unit[0]} x {unit[1]} patches"
            )
        if patches // (wanted[0] * wanted[1]) > most:
            raise ConfigError(
                f"model.token_window {list(wanted)} leaves {patches // (wanted[0] * wanted[1])} tokens, and "
                f"model.max_climate_tokens is {most}; take a larger window, or raise it"
            )
        return wanted
    sides = [[side for side in range(1, length + 1) if length % side == 0] for length in unit]
    fitting = [(rows, columns) for rows in sides[0] for columns in sides[1] if patches // (rows * columns) <= most]
    if not fitting:
        least = patches // (unit[0] * unit[1])
        raise ConfigError(
            f"model.max_climate_tokens {most}: one token for each unit of {unit[0]} x {unit[1]} patches makes {least}; "
            f"raise it to {least} or more"
        )
    return min(fitting, key=lambda window: (window[0] * window[1], abs(window[0] - window[1]), window))


def pool_windows(map_BDhw: Tensor, window: Sides) -> Tensor:
    """Means over windows, ``[B, N, D]``, row by row from the south; PyTorch sums them in float32."""
    return functional.avg_pool2d(map_BDhw, window, window).flatten(2).transpose(1, 2)


def window_centres(lat_BH: Tensor, lon_BW: Tensor, points: Sides) -> tuple[Tensor, Tensor]:
    """Mean latitude and longitude, degrees, of windows of so many grid points: two ``[B, N]``, float32.

    Longitudes of a row are taken as they are: a region over the date line must be continuous (170..200).
    """
    lat_Bh, lon_Bw = (
        values.float().reshape(len(values), -1, side).mean(dim=-1)
        for values, side in zip((lat_BH, lon_BW), points, strict=True)
    )
    rows, columns = lat_Bh.shape[1], lon_Bw.shape[1]
    lat = lat_Bh[:, :, None].expand(-1, -1, columns)
    lon = lon_Bw[:, None, :].expand(-1, rows, -1)
    return lat.flatten(1), lon.flatten(1)


def patch_code(lat_BH: Tensor, lon_BW: Tensor, patch: int, width: int) -> Tensor:
    """Prithvi's Fourier code of the patches, ``[B, width, h, w]`` float32: sines of latitude and longitude, then their
    cosines, each of 1..width/4 times the mean angle of the patch.

    The order of the operations is that of ``PrithviWxC.fourier_pos_encoding`` (prithviwxc 1.0.1): at 640 times an angle
    the last bit of the mean would show.
    """
    with without_autocast(lat_BH.device):
        shape = (-1, 1, lat_BH.shape[1], lon_BW.shape[1])
        lat = torch.deg2rad(lat_BH.float())[:, None, :, None].expand(shape)
        lon = torch.deg2rad(lon_BW.float())[:, None, None, :].expand(shape)
        lat, lon = (functional.avg_pool2d(values, patch, patch) for values in (lat, lon))
        modes = torch.arange(width // 4, device=lat.device).view(1, -1, 1, 1) + 1.0
        return torch.cat(
            [torch.sin(lat * modes), torch.sin(lon * modes), torch.cos(lat * modes), torch.cos(lon * modes)], 1
        )


PLACE_FREQUENCIES = 10  # 1, 2, 4 … 512 times the angle: from the globe to less than a degree
PLACE_WIDTH = 4 * PLACE_FREQUENCIES


def place_code(lat_BN: Tensor, lon_BN: Tensor) -> Tensor:
    """Sines and cosines of 1, 2, 4 … times latitude and longitude, ``[B, N, PLACE_WIDTH]`` float32."""
    with without_autocast(lat_BN.device):
        powers = 2.0 ** torch.arange(PLACE_FREQUENCIES, device=lat_BN.device, dtype=torch.float32)
        angles = torch.stack([torch.deg2rad(lat_BN.float()), torch.deg2rad(lon_BN.float())], dim=-1)
        turned = (angles[..., None] * powers).flatten(2)
        return torch.cat([turned.sin(), turned.cos()], dim=-1)


WITHIN_WIDTH = 12


def within_code(lat_BN: Tensor, lon_BN: Tensor) -> Tensor:
    """Where in its own field a token lies, ``[B, N, WITHIN_WIDTH]`` float32: sines and cosines of pi/2, pi and 2 pi
    times the share of the way from the south to the north, and from the west to the east.

    Texts speak of the north of a region; from degrees alone that is known only beside all other tokens.
    """
    with without_autocast(lat_BN.device):
        shares = []
        for degrees in (lat_BN.float(), lon_BN.float()):
            least, most = degrees.amin(dim=1, keepdim=True), degrees.amax(dim=1, keepdim=True)
            shares.append((degrees - least) / (most - least).clamp_min(1e-6))
        factors = torch.tensor([0.5, 1.0, 2.0], device=lat_BN.device) * torch.pi
        turned = (torch.stack(shares, dim=-1)[..., None] * factors).flatten(2)
        return torch.cat([turned.sin(), turned.cos()], dim=-1)


def join_fields(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``[B, N, D]`` with their latitudes and longitudes ``[B, N]`` of several fields, side by side."""
    tokens, lat, lon = (torch.cat(same, dim=1) for same in zip(*parts, strict=True))
    return tokens, lat, lon
