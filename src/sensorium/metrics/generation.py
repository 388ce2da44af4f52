"""How alike pictures are, and how far apart two sets of them lie.

Legend: B pictures, C channels, H and W sides; N, M rows of features, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from sensorium.errors import DataError

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1


def ssim(one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Structural similarity ``[B]`` of pictures in 0..1 (Wang et al. 2004): Gaussian window of 11 with sigma 1.5, data
    range 1, mean over the places where the whole window fits and over the channels.

    Raises DataError where shapes differ or a side is shorter than the window.
    """
    if one_BCHW.shape != other_BCHW.shape or min(one_BCHW.shape[-2:]) < WINDOW:
        raise DataError(
            f"SSIM needs two pictures of one size, {WINDOW} pixels a side at least (found "
            f"{tuple(one_BCHW.shape[-2:])} and {tuple(other_BCHW.shape[-2:])})"
        )
    one, other = one_BCHW.double(), other_BCHW.double()
    stacked = torch.cat([one, other, one * one, other * other, one * other])
    mean_1, mean_2, square_1, square_2, product = _blurred(stacked).chunk(5)
    variance_1, variance_2 = square_1 - mean_1**2, square_2 - mean_2**2
    covariance = product - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + _C1) * (2 * covariance + _C2)
    below = (mean_1**2 + mean_2**2 + _C1) * (variance_1 + variance_2 + _C2)
    return (above / below).mean(dim=(1, 2, 3))


def _blurred(pictures_BCHW: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=pictures_BCHW.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = weights / weights.sum()
    B, C, H, W = pictures_BCHW.shape
    flat = pictures_BCHW.reshape(B * C, 1, H, W)
    flat = conv2d(conv2d(flat, weights.view(1, 1, WINDOW, 1)), weights.view(1, 1, 1, WINDOW))
    return flat.reshape(B, C, *flat.shape[-2:])


def frechet_distance(one_ND: Tensor, other_MD: Tensor) -> float:
    """Squared Fréchet distance between the normal distributions of two sets of features (Heusel et al. 2017).

    With few rows it is biased upwards, and depends on how many there are. Raises DataError for fewer than two rows.
    """
    if min(len(one_ND), len(other_MD)) < 2:
        raise DataError(f"a Fréchet distance needs two pictures a side (found {len(one_ND)} and {len(other_MD)})")
    one, other = one_ND.double(), other_MD.double()
    root_1, root_2 = _root(one), _root(other)
    # tr sqrt(S1 S2) is the sum of the singular values of R1 R2', where S = R'R
    shared = torch.linalg.svdvals(root_1 @ root_2.T).sum()
    gap = (one.mean(0) - other.mean(0)).square().sum()
    return float((gap + root_1.square().sum() + root_2.square().sum() - 2 * shared).clamp(min=0))


def _root(rows_ND: Tensor) -> Tensor:
    """R with R'R the covariance: the centred rows, or D of them where there are more."""
    centred = (rows_ND - rows_ND.mean(0)) / (len(rows_ND) - 1) ** 0.5
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T
