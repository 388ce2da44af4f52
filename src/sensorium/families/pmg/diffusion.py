"""A folder of Stable Diffusion 1.x or 2.x: what it is, and its parts.

Legend: M length of its text encoder, d width of what the UNet is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sensorium.errors import ConfigError
from sensorium.parts.encoders_base import LOAD_ERRORS, quiet, read_config, read_json, reason

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

SchedulerName = Literal["ddim", "ddpm", "dpmsolver"]
SCHEDULERS: tuple[SchedulerName, ...] = ("ddim", "ddpm", "dpmsolver")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DiffusionShape:
    """``told``: d; ``text_length``: M; ``factor``: pixels a side of one latent; ``native``: pixels a side of the
    UNet's training; ``scaling``: what latents are multiplied by before the UNet."""

    told: int
    text_length: int
    channels: int
    factor: int
    native: int
    scaling: float
    prediction: str
    timesteps: int

    def latent_sides(self, pixels: int) -> int:
        """Side of the latents of a picture."""
        return pixels // self.factor


def read_shape(folder: Path, name: str) -> DiffusionShape:
    """From the configurations alone. Raises ConfigError for what is not Stable Diffusion 1.x or 2.x."""
    unet, vae, text = (read_config(folder / part) for part in ("unet", "vae", "text_encoder"))
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    told = unet.get("cross_attention_dim", 1280)
    width = text.get("hidden_size", 512)
    prediction = scheduler.get("prediction_type", "epsilon")
    subject = f"Stable Diffusion {name}"
    if told != width:
        raise ConfigError(f"{subject}: its UNet is told vectors of {told} numbers, its text encoder makes {width}")
    if prediction not in _PREDICTIONS:
        raise ConfigError(f"{subject} predicts {prediction!r}; known are {' and '.join(_PREDICTIONS)}")
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise ConfigError(
            f"{subject}: its UNet takes {unet['in_channels']} channels, its VAE has {vae.get('latent_channels', 4)}; "
            "models for inpainting or upscaling cannot be used"
        )
    factor = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    return DiffusionShape(
        told=int(told),
        text_length=int(text.get("max_position_embeddings", 77)),
        channels=int(vae.get("latent_channels", 4)),
        factor=factor,
        native=int(unet.get("sample_size") or 64) * factor,
        scaling=float(vae.get("scaling_factor", 0.18215)),
        prediction=str(prediction),
        timesteps=int(scheduler.get("num_train_timesteps", 1000)),
    )


@contextmanager
def silent() -> Iterator[None]:
    """No remarks of diffusers; what matters in them becomes an error of ours. Raises ConfigError without diffusers."""
    try:
        from diffusers.utils import logging as library
    except ImportError:
        raise ConfigError("pmg needs diffusers; run: pip install 'sensorium[pmg]'") from None
    level = library.get_verbosity()
    library.set_verbosity(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        library.set_verbosity(level)


def _open(load: Callable[..., Any], folder: Path, dtype: torch.dtype) -> Any:
    """A module of diffusers with every weight from the file, frozen, in eval mode, on the CPU. Raises ConfigError."""
    try:
        with silent():
            found, report = load(folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True)
    except LOAD_ERRORS as error:
        raise ConfigError(f"{folder} cannot be loaded ({reason(error)}); give a complete folder") from error
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise ConfigError(f"{folder}: {len(wrong)} weights are missing or have another shape, first {wrong[0]}")
    return found.eval().requires_grad_(False)


def open_unet(folder: Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The UNet of a folder of Stable Diffusion."""
    with silent():
        from diffusers import UNet2DConditionModel

    found: UNet2DConditionModel = _open(UNet2DConditionModel.from_pretrained, folder / "unet", dtype)
    return found


def new_unet(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """One of the same sizes with new weights, frozen."""
    with silent():
        from diffusers import UNet2DConditionModel

        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # cast afterwards, its tensors could not be fake ones
        try:
            found: UNet2DConditionModel = UNet2DConditionModel.from_config(read_config(folder / "unet"))
        finally:
            torch.set_default_dtype(usual)
    return found.eval().requires_grad_(False)


def open_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Its VAE; float32 unless told otherwise: decoders overflow in fp16."""
    with silent():
        from diffusers import AutoencoderKL

    found: AutoencoderKL = _open(AutoencoderKL.from_pretrained, folder / "vae", dtype)
    return found


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of its text encoder."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except LOAD_ERRORS as error:
        raise ConfigError(f"{folder / 'tokenizer'} cannot be loaded ({reason(error)})") from error
    return found


def open_text_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> CLIPTextModel:
    """Its text encoder."""
    from transformers import CLIPTextModel

    from sensorium.parts.encoders_base import load_pretrained

    load: Any = CLIPTextModel.from_pretrained
    found: CLIPTextModel = load_pretrained(load, folder / "text_encoder", folder.name, dtype=dtype, kind="text encoder")
    return found.eval().requires_grad_(False)


def open_scheduler(folder: Path, name: SchedulerName) -> SchedulerMixin:
    """A sampler with the noise that the UNet was trained with."""
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    with silent():
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

        kinds: Mapping[str, Any] = {
            "ddim": DDIMScheduler,
            "ddpm": DDPMScheduler,
            "dpmsolver": DPMSolverMultistepScheduler,
        }
        common = {key: value for key, value in config.items() if key in _NOISE}
        own = {"ddim": {"set_alpha_to_one": False, "steps_offset": 1}, "ddpm": {"steps_offset": 1}}.get(name, {})
        found: SchedulerMixin = kinds[name](**common, **own, **({} if name == "dpmsolver" else {"clip_sample": False}))
    return found


_NOISE = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("timestep_spacing", "rescale_betas_zero_snr"),
}


def alphas(folder: Path) -> Tensor:
    """Share of the signal's power that is left at each timestep, ``[timesteps]`` float32."""
    found: Tensor = open_scheduler(folder, "ddpm").alphas_cumprod  # type: ignore[attr-defined]
    return found.float()


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> list[int]:
    """The text as ``length`` tokens: cut, or filled up with padding. What does not fit is left out, as Stable Diffusion
    itself does."""
    found: list[int] = tokenizer(text, padding="max_length", max_length=length, truncation=True)["input_ids"]
    return found
