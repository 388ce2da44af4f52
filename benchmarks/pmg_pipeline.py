"""A small Stable Diffusion for `pmg_emoji.py` and `pmg_taste.py`: VAE, then UNet and text encoder, trained from nothing
on pictures and captions, and written as a folder of diffusers.

Legend: N pictures, C channels and h, w sides of latents.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sensorium import files
from sensorium.data.media import load_image
from sensorium.engine.seeds import derive, generator
from sensorium.families.pmg.losses import noisy, snr_weight

KL, GAMMA = 1e-6, 5.0
Row = dict[str, str]  # of `pictures.json`: a picture's file, `image`, and what there is to say of it
START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
SCHEDULE = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"},
    **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
}
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """Sizes, training, and what is said of a picture. Pairs are of the VAE and of the UNet.

    ``side``: pixels; ``channels``: of latents, whose side is a half of ``side`` for each of ``vae`` but the first;
    ``groups``: in which channels are normalised; ``rows`` of a step; ``words`` of the tokenizer; ``length`` of a
    text in tokens; ``width`` of what the UNet is told; ``texts``: all captions of a picture; ``caption``: one of
    them, or less, drawn; ``straight``: see ``straighten``.
    """

    side: int
    vae: tuple[int, ...]
    channels: int
    unet: tuple[int, ...]
    groups: tuple[int, int]
    rows: tuple[int, int]
    rates: tuple[float, float]
    words: int
    length: int
    width: int
    texts: Callable[[Row], Iterable[str]]
    caption: Callable[[Row, np.random.Generator], str]
    straight: bool = False


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
        torch.autograd.backward(loss)
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


def pixels_of(folder: Path, rows: Sequence[Row]) -> Tensor:
    """Pictures ``[N, 3, side, side]`` in -1..1."""
    arrays = [np.asarray(load_image(folder / row["image"]), np.float32) for row in rows]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).div(127.5).sub(1).contiguous()


def new_vae(plan: Plan) -> AutoencoderKL:
    """Random, or random but for a straight way through it."""
    vae = AutoencoderKL(
        block_out_channels=plan.vae,
        down_block_types=("DownEncoderBlock2D",) * len(plan.vae),
        up_block_types=("UpDecoderBlock2D",) * len(plan.vae),
        layers_per_block=1,
        norm_num_groups=plan.groups[0],
        latent_channels=plan.channels,
        sample_size=plan.side,
        mid_block_add_attention=False,
    )
    if plan.straight:
        straighten(vae, plan.channels)
    return vae


def straighten(vae: AutoencoderKL, channels: int) -> None:
    """Let a VAE begin as one that takes a pixel of each block and repeats it: from nothing it learns edges first and
    colours last, hundreds of steps later."""
    for name, part in vae.named_modules():
        if name.endswith("conv_norm_out"):
            nn.init.constant_(part.bias, 2.0)  # so that the activation behind it hardly bends
        elif isinstance(part, nn.Conv2d) and not name.endswith("conv1"):
            (nn.init.zeros_ if name.endswith("conv2") else nn.init.dirac_)(part.weight)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        vae.quant_conv.bias[channels:] -= 6.0  # logarithm of the variance: latents with little noise


def train_vae(out: Path, plan: Plan, pixels: Tensor, steps: int) -> AutoencoderKL:
    """On pictures, half of them mirrored: absolute and squared error, and a very small divergence from N(0, 1)."""
    torch.manual_seed(0)
    vae = new_vae(plan).to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        chosen = pixels[torch.randint(len(pixels), (plan.rows[0],))]
        if step % 2:
            chosen = chosen.flip(3)
        chosen = chosen.contiguous(memory_format=torch.channels_last)
        found = vae.encode(chosen).latent_dist
        made = vae.decode(found.sample()).sample.float()
        error = functional.l1_loss(made, chosen) + functional.mse_loss(made, chosen)
        loss: Tensor = error + KL * found.kl().mean()
        return loss

    average = trained(out / "vae.pt", nn.ModuleDict({"vae": vae}), (plan.rates[0], steps), loss_of)
    average.copy_to(vae.parameters())
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def moments_of(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of latents, ``[N, C, h, w]`` each."""
    found = [vae.encode(some).latent_dist for some in torch.split(pixels, 32)]
    return torch.cat([one.mean for one in found]), torch.cat([one.std for one in found])


def kept_tokenizer(work: Path, plan: Plan, rows: Sequence[Row]) -> CLIPTokenizer:
    """One whose common words are one token, from `tokenizer.json`, which is written first where it is not there.

    Words as frequent as each other get their numbers by chance, so a state that was trained without that file can not
    be gone on with, and is removed.
    """
    path = work / "tokenizer.json"
    if not path.exists():
        files.remove(work / "unet.pt")
        files.write_json(path, learned_words(plan, rows))
    learned = json.loads(path.read_text())
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=plan.length)


def learned_words(plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """Vocabulary and merges of byte pair encoding, learned from all captions."""
    words = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.words, special_tokens=[START, END], end_of_word_suffix=SUFFIX, show_progress=False
    )
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 ' - , . ( ) & !"
    texts = (text.lower() for row in rows for text in plan.texts(row))
    words.train_from_iterator([*texts, *letters], trainer)
    learned: dict[str, Any] = json.loads(words.to_str())["model"]
    return {"vocab": learned["vocab"], "merges": learned["merges"]}


def new_parts(plan: Plan, tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """UNet and text encoder, random."""
    torch.manual_seed(1)
    vocabulary = tokenizer.get_vocab()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=plan.width,
            intermediate_size=2 * plan.width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=plan.length,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )
    unet = UNet2DConditionModel(
        sample_size=plan.side // 2 ** (len(plan.vae) - 1),
        in_channels=plan.channels,
        out_channels=plan.channels,
        block_out_channels=plan.unet,
        down_block_types=("CrossAttnDownBlock2D",) * len(plan.unet),
        up_block_types=("CrossAttnUpBlock2D",) * len(plan.unet),
        layers_per_block=1,
        cross_attention_dim=plan.width,
        attention_head_dim=4,
        norm_num_groups=plan.groups[1],
    )
    return nn.ModuleDict({"unet": unet.to(memory_format=torch.channels_last), "text_encoder": text})


def train_unet(
    out: Path, plan: Plan, tokenizer: CLIPTokenizer, rows: Sequence[Row], latents: tuple[Tensor, Tensor], steps: int
) -> nn.ModuleDict:
    """UNet and text encoder, on scaled latents (means, deviations) and drawn captions."""
    parts = new_parts(plan, tokenizer)
    means, deviations = latents
    alphas_T: Tensor = DDIMScheduler(**SCHEDULE).alphas_cumprod

    def loss_of(step: int) -> Tensor:
        draws = generator(0, "captions", step)
        chosen = draws.integers(len(rows), size=plan.rows[1])
        captions = [plan.caption(rows[row], draws) for row in chosen]
        ids = tokenizer(captions, padding="max_length", max_length=plan.length, truncation=True, return_tensors="pt")
        clean = means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])
        timestep = torch.randint(len(alphas_T), (plan.rows[1],))
        noise, alpha = torch.randn_like(clean), alphas_T[timestep]
        told = parts["text_encoder"](input_ids=ids["input_ids"]).last_hidden_state
        seen = noisy(clean, noise, alpha).contiguous(memory_format=torch.channels_last)
        said = parts["unet"](seen, timestep, told).sample.float()
        error = (said - noise).square().flatten(1).mean(1)
        loss: Tensor = (snr_weight("epsilon", alpha, GAMMA) * error).mean()
        return loss

    average = trained(out / "unet.pt", parts, (plan.rates[1], steps), loss_of)
    average.copy_to(parts.parameters())
    return parts.eval().requires_grad_(False)


def make_pipeline(world: Path, target: Path, plan: Plan, steps: tuple[int, int]) -> dict[str, Any]:
    """Train on the pictures of a folder and write the folder ``target``, beside which the states of both trainings are
    kept; gives what is worth telling. ``steps``: of the VAE and of the UNet."""
    work = target.parent
    rows: list[Row] = json.loads((world / "pictures.json").read_text())
    pixels = pixels_of(world, rows)
    vae = train_vae(work, plan, pixels, steps[0])
    means, deviations = moments_of(vae, pixels)
    scaling = 1 / float(means.std())
    vae.register_to_config(scaling_factor=scaling)
    with torch.no_grad():
        made = torch.cat([vae.decode(some).sample for some in torch.split(means, 32)]).clamp(-1, 1)
    error = float((made - pixels).div(2).square().mean())
    print(f"VAE: PSNR {-10 * np.log10(error):.1f} dB, scaling factor {scaling:.3f}", flush=True)
    tokenizer = kept_tokenizer(work, plan, rows)
    parts = train_unet(work, plan, tokenizer, rows, (means * scaling, deviations * scaling), steps[1])
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
