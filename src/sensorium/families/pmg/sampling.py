"""Pictures from noise. The noise of a picture is made on the CPU from its own seed: neither the others of a batch nor
the device change it.

Legend: B pictures, C channels, h and w sides of the latents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.engine.seeds import derive
from sensorium.errors import ConfigError
from sensorium.families.pmg.conditioning import Told, guided
from sensorium.families.pmg.diffusion import DiffusionShape, SchedulerName, open_scheduler, silent

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True)
class Sampling:
    """How to sample. ``pixels``: a side of the pictures."""

    pixels: int
    steps: int = 50
    guidance: float = 6.0
    scheduler: SchedulerName = "ddim"


def device_of(name: str) -> str:
    """Where to compute, of ``auto``, ``cpu``, ``cuda`` or ``cuda:1``. Raises ConfigError for one that is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device {name}: allowed are auto, cpu, cuda and cuda:N")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; take cpu or auto")
    return name


def picture_seed(seed: int, user: str, target: str, number: int, *, shared: bool = False) -> int:
    """The seed of picture ``number`` of a user's target; ``shared``: the published rule, seed + number for all."""
    return seed + number if shared else derive(seed, "picture", user, target, number)


def first_noise(seeds: Sequence[int], shape: DiffusionShape, pixels: int) -> Tensor:
    """``[B, C, h, w]`` float32 on the CPU."""
    side = shape.latent_sides(pixels)
    size = (1, shape.channels, side, side)
    return torch.cat([torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    folder: Path,
    told: tuple[Told, Told],
    noise: Tensor,
    seeds: Sequence[int],
    how: Sampling,
) -> Tensor:
    """Latents ``[B, C, h, w]`` float32. ``told``: what is wanted, and what is not. ``seeds``: for noise on the way,
    which ``ddpm`` adds."""
    scheduler = open_scheduler(folder, how.scheduler)
    device = next(unet.parameters()).device
    with silent():
        scheduler.set_timesteps(how.steps, device=device)  # type: ignore[attr-defined]
    latents = noise.to(device) * scheduler.init_noise_sigma  # type: ignore[attr-defined]
    generators = [torch.Generator().manual_seed(derive(seed, "on the way")) for seed in seeds]
    more = {"generator": generators} if how.scheduler == "ddpm" else {}
    for timestep in scheduler.timesteps:  # type: ignore[attr-defined]
        seen = scheduler.scale_model_input(latents, timestep)  # type: ignore[attr-defined]
        said = guided(unet, seen, timestep, told, how.guidance)
        latents = scheduler.step(said, timestep, latents, return_dict=False, **more)[0]  # type: ignore[attr-defined]
    return latents


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, scaling: float) -> list[Image.Image]:
    """Pictures of latents, one by one: a decoder takes much memory."""
    weight = next(vae.parameters())
    found = []
    for one in latents:
        with torch.autocast(weight.device.type, enabled=False):
            pixels = vae.decode((one[None] / scaling).to(weight.device, weight.dtype), return_dict=False)[0][0]
        array = ((pixels.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        found.append(Image.fromarray(np.ascontiguousarray(array.permute(1, 2, 0).numpy())))
    return found
