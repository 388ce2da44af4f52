"""Losses of noise prediction. Legend: B rows, S draws of noise a row, C, h, w as of latents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sensorium.families.pmg.config import NegativeConfig


def noisy(latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Latents with noise; ``alpha``: share of the signal's power that is left, one number a row (arXiv 2006.11239)."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def wanted(prediction: str, latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """What the UNet should say: the noise, or the velocity (arXiv 2202.00512)."""
    if prediction == "epsilon":
        return noise
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def per_row(said: Tensor, wanted_: Tensor) -> Tensor:
    """Mean squared error of each row, ``[rows]`` float32."""
    return (said.float() - wanted_.float()).square().flatten(1).mean(1)


def snr_weight(prediction: str, alpha: Tensor, gamma: float | None) -> Tensor:
    """Weight of each row, min(SNR, gamma) over SNR or, for velocities, SNR + 1 (arXiv 2303.09556); ones without
    ``gamma``. Finite also without noise, and without signal."""
    if gamma is None:
        return torch.ones_like(alpha)
    ratio = alpha / (1 - alpha).clamp_min(1e-8)
    if prediction == "v_prediction":
        return ratio.clamp(max=gamma) / (ratio + 1)
    return (gamma / ratio.clamp_min(1e-8)).clamp(max=1)


def preference(right: Tensor, wrong: Tensor, how: NegativeConfig) -> Tensor:
    """What is added to the loss of the right pair, ``[rows]``; bounded below.

    ``logistic``: weight * softplus(beta (right - wrong)) >= 0; ``subtract``: -weight * min(wrong, cap).
    """
    if how.form == "logistic":
        return how.weight * functional.softplus(how.beta * (right - wrong))
    return -how.weight * wrong.clamp(max=how.cap)
