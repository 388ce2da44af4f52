"""A small Stable Diffusion for `pmg_emoji.py`: VAE, then UNet and text encoder, trained from nothing on captions that
name the thing and the way it is drawn, and written as a folder of diffusers.

Legend: B rows, C channels and h, w sides of latents, M tokens of a text, d width of what the UNet is told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from pmg_emoji_world import SIDE, WAYS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sensorium import files
from sensorium.data.media import load_image
from sensorium.engine.seeds import derive, generator
from sensorium.families.pmg.losses import noisy, snr_weight

CHANNELS, LENGTH, WIDTH, WORDS = 8, 24, 128, 1500
VAE_ROWS, UNET_ROWS = 16, 32
KL, GAMMA = 1e-6, 5.0
NO_WAY, NOTHING = 0.2, 0.1  # shares of captions that leave out the way, or everything
START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
SCHEDULE = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"},
    **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
}
SAVE_SECONDS = 60.0


def trained(path: Path, parts: nn.ModuleDict, rates: tuple[float, int], loss_of: Callable[[int], Tensor]) -> EMAModel:
    """Train all of ``parts`` for ``rates[1]`` steps at most at ``rates[0]``; gives moving averages of the parameters.

    The state is kept in ``path`` every minute and at the end; a step's random draws follow from its number, so that
    it goes on from there as if nothing had been.
    """
    rate, steps = rates
    parameters = list(parts.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = EMAModel(parameters, decay=0.999, use_ema_warmup=True, power=0.75)
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        first = state["step"]
    saved, shown, recent = time.monotonic(), time.monotonic(), []
    for step in range(first, steps):
        torch.manual_seed(derive(0, path.stem, step))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * min(1.0, 4 * (1 - step / steps))  # the last quarter falls
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(parameters)
        recent.append(float(loss.detach()))
        if time.monotonic() - shown > 20 or step + 1 == steps:
            spent = f"{time.process_time():.0f} s of processor"
            print(f"{path.stem} step {step + 1} of {steps}: loss {np.mean(recent):.4f}, {spent}", flush=True)
            shown, recent = time.monotonic(), []
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == steps:
            keep(path, parts, optimizer, average, step + 1)
            saved = time.monotonic()
    return average


def keep(path: Path, parts: nn.ModuleDict, optimizer: torch.optim.Optimizer, average: EMAModel, step: int) -> None:
    """Write the state of a training."""
    state = {
        "parts": parts.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "step": step,
    }
    with files.replacing(path) as file:
        torch.save(state, file)


def pixels_of(folder: Path, rows: Sequence[dict[str, str]]) -> Tensor:
    """Pictures ``[N, 3, SIDE, SIDE]`` in -1..1."""
    arrays = [np.asarray(load_image(folder / row["image"]), np.float32) for row in rows]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).div(127.5).sub(1).contiguous()


def new_vae() -> AutoencoderKL:
    """Eight pixels a side of one latent."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=CHANNELS,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def train_vae(out: Path, pixels: Tensor, steps: int) -> AutoencoderKL:
    """On pictures, half of them mirrored: absolute and squared error, and a very small divergence from N(0, 1)."""
    torch.manual_seed(0)
    vae = new_vae().to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        chosen = pixels[torch.randint(len(pixels), (VAE_ROWS,))]
        if step % 2:
            chosen = chosen.flip(3)
        chosen = chosen.contiguous(memory_format=torch.channels_last)
        found = vae.encode(chosen).latent_dist
        made = vae.decode(found.sample()).sample.float()
        error = functional.l1_loss(made, chosen) + functional.mse_loss(made, chosen)
        return error + KL * found.kl().mean()

    average = trained(out / "vae.pt", nn.ModuleDict({"vae": vae}), (1e-3, steps), loss_of)
    average.copy_to(vae.parameters())
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def moments_of(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of latents, ``[N, C, h, w]`` each."""
    found = [vae.encode(some).latent_dist for some in pixels.split(32)]
    return torch.cat([one.mean for one in found]), torch.cat([one.std for one in found])


def new_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """One whose common words are one token."""
    words = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=[START, END], end_of_word_suffix=SUFFIX, show_progress=False
    )
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 ' - , . ( ) & !"
    words.train_from_iterator([*(text.lower() for text in texts), *letters], trainer)
    learned = json.loads(words.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=LENGTH)


def new_parts(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """UNet and text encoder, random."""
    torch.manual_seed(1)
    vocabulary = tokenizer.get_vocab()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(96, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return nn.ModuleDict({"unet": unet, "text_encoder": text})


def train_unet(
    out: Path, tokenizer: CLIPTokenizer, rows: Sequence[dict[str, str]], latents: tuple[Tensor, Tensor], steps: int
) -> nn.ModuleDict:
    """On scaled latents (means, deviations) and captions: some leave out the way, some are empty."""
    parts = new_parts(tokenizer).to(memory_format=torch.channels_last)
    means, deviations = latents
    alphas_T: Tensor = DDIMScheduler(**SCHEDULE).alphas_cumprod

    def loss_of(step: int) -> Tensor:
        draws = generator(0, "captions", step)
        chosen = draws.integers(len(rows), size=UNET_ROWS)
        captions = [caption(rows[row], draws) for row in chosen]
        ids = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        clean = means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])
        timestep = torch.randint(len(alphas_T), (UNET_ROWS,))
        noise, alpha = torch.randn_like(clean), alphas_T[timestep]
        told = parts["text_encoder"](input_ids=ids["input_ids"]).last_hidden_state
        seen = noisy(clean, noise, alpha).contiguous(memory_format=torch.channels_last)
        said = parts["unet"](seen, timestep, told).sample.float()
        error = (said - noise).square().flatten(1).mean(1)
        return (snr_weight("epsilon", alpha, GAMMA) * error).mean()

    average = trained(out / "unet.pt", parts, (1e-3, steps), loss_of)
    average.copy_to(parts.parameters())
    return parts.eval().requires_grad_(False)


def caption(row: dict[str, str], draws: np.random.Generator) -> str:
    """Of a picture: in one of the phrasings of its way, the name alone, or nothing."""
    ways = WAYS[row["way"]]
    chosen, coin = ways[int(draws.integers(len(ways)))], draws.random()
    if coin < NOTHING:
        return ""
    return row["name"] if coin < NOTHING + NO_WAY else chosen.format(row["name"])


def make_pipeline(world: Path, work: Path, target: Path, steps: tuple[int, int]) -> dict[str, Any]:
    """Train what is not trained yet and write the folder; gives what is worth telling."""
    rows: list[dict[str, str]] = json.loads((world / "pictures.json").read_text())
    pixels = pixels_of(world, rows)
    vae = train_vae(work, pixels, steps[0])
    means, deviations = moments_of(vae, pixels)
    scaling = 1 / float(means.std())
    vae.register_to_config(scaling_factor=scaling)
    with torch.no_grad():
        made = torch.cat([vae.decode(some).sample for some in means.split(32)]).clamp(-1, 1)
    error = float((made - pixels).div(2).square().mean())
    print(f"VAE: PSNR {-10 * np.log10(error):.1f} dB, scaling factor {scaling:.3f}", flush=True)
    tokenizer = new_tokenizer(way.format(row["name"]) for row in rows for way in WAYS[row["way"]])
    parts = train_unet(work, tokenizer, rows, (means * scaling, deviations * scaling), steps[1])
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=parts["unet"],
        text_encoder=parts["text_encoder"],
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    files.remove(target)
    with files.new_folder(target) as folder:
        files.write_by_library(folder, pipeline.save_pretrained)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in {"vae": vae, **parts}.items()}
    return {"pictures": len(rows), "psnr": -10 * float(np.log10(error)), **counts}
