"""Stable Diffusion as it is told things: parts and their lengths, guidance in one call, samples, losses."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium.errors import ConfigError
from sensorium.families.pmg import losses
from sensorium.families.pmg.conditioning import Told, compose, guided, joined, lengths_of, predict
from sensorium.families.pmg.config import NegativeConfig, WeightsConfig
from sensorium.families.pmg.diffusion import (
    DiffusionShape,
    alphas,
    open_scheduler,
    open_text_encoder,
    open_tokenizer,
    open_unet,
    open_vae,
    read_shape,
)
from sensorium.families.pmg.encoders import TextStates
from sensorium.families.pmg.sampling import Sampling, decode, first_noise, picture_seed, sample
from sensorium.families.pmg.tiny import write_diffusion
from sensorium.files import write_json

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # a longer batch adds up in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("sd")
    write_diffusion(found)
    return found


@pytest.fixture(scope="module")
def shape(folder: Path) -> DiffusionShape:
    return read_shape(folder, "tiny")


@pytest.fixture(scope="module")
def unet(folder: Path) -> torch.nn.Module:
    return open_unet(folder)


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("soft_only", (0, 2, 0)),
        ("target_soft", (75, 2, 0)),
        ("target_soft_style", (40, 2, 35)),
        ("keywords", (40, 0, 37)),
    ],
)
def test_lengths_are_those_of_the_published_generation(mode: str, expected: tuple[int, int, int]) -> None:
    found = lengths_of(mode, 77, 2)  # type: ignore[arg-type]
    assert (found.target, found.soft, found.style) == expected


def test_soft_tokens_leave_room_for_words() -> None:
    with pytest.raises(ConfigError, match="num_image_prompt 22 leaves 2 of 24 tokens for a text in conditioning targ"):
        lengths_of("target_soft", 24, 22)


def test_parts_are_weighted_and_their_order_is_free(unet: torch.nn.Module) -> None:
    caption, soft, style = drawn(2, 12, 32), drawn(2, 2, 32, seed=1), drawn(2, 10, 32, seed=2)
    weights = WeightsConfig(target=1.0, soft=0.5, preference=2.0)
    told = compose(weights, caption, soft, style)
    assert torch.equal(told.states, torch.cat([caption, 0.5 * soft, 2 * style], 1))
    x, t = drawn(2, 4, 8, 8), torch.tensor([3, 700])
    found = predict(unet, x, t, told)
    turned = predict(unet, x, t, Told(torch.cat([2 * style, caption, 0.5 * soft], 1)))
    torch.testing.assert_close(turned, found, **CLOSE)
    heavier = predict(unet, x, t, compose(WeightsConfig(), caption, soft, style))
    assert not torch.allclose(heavier, found, atol=1e-3)  # negative twin: weights are not free


def test_withheld_soft_tokens_say_nothing(unet: torch.nn.Module) -> None:
    caption, soft = drawn(2, 12, 32), drawn(2, 2, 32, seed=1)
    told = compose(WeightsConfig(), caption, soft, None, torch.tensor([True, False]))
    x, t = drawn(2, 4, 8, 8), torch.tensor([3, 700])
    found = predict(unet, x, t, told)
    torch.testing.assert_close(
        found[:1], predict(unet, x, t, compose(WeightsConfig(), caption, soft, None))[:1], **CLOSE
    )
    torch.testing.assert_close(found[1:], predict(unet, x, t, Told(caption))[1:], **CLOSE)


def test_guidance_in_one_call_is_that_of_two(unet: torch.nn.Module) -> None:
    """What is wanted is shorter than what is not, as with `soft_only`."""
    wanted, unwanted = Told(drawn(2, 3, 32)), Told(drawn(2, 24, 32, seed=1))
    x, t = drawn(2, 4, 8, 8), torch.tensor(500)
    found = guided(unet, x, t, (wanted, unwanted), 6.0)
    with_it, without = predict(unet, x, t.expand(2), wanted), predict(unet, x, t.expand(2), unwanted)
    torch.testing.assert_close(found, without + 6 * (with_it - without), rtol=1e-3, atol=1e-4)
    both = joined((unwanted, wanted))
    assert both.mask is not None
    open_padding = predict(unet, torch.cat([x] * 2), t.expand(4), Told(both.states))[2:]
    assert not torch.allclose(open_padding, with_it, atol=1e-3)  # negative twin: padding that is not masked


def test_the_negative_prompt_acts_on_soft_tokens_alone(unet: torch.nn.Module) -> None:
    wanted, x, t = Told(drawn(1, 2, 32)), drawn(1, 4, 8, 8), torch.tensor(500)
    found = [guided(unet, x, t, (wanted, Told(drawn(1, 24, 32, seed=seed))), 6.0) for seed in (1, 2)]
    assert not torch.allclose(*found, atol=1e-2)


def test_pictures_are_those_of_the_stock_pipeline(folder: Path, shape: DiffusionShape, unet: torch.nn.Module) -> None:
    """Without soft tokens: the same caption, negative prompt, noise and scheduler."""
    from diffusers import StableDiffusionPipeline

    scheduler = open_scheduler(folder, "ddim")
    parts = {"text_encoder": open_text_encoder(folder), "tokenizer": open_tokenizer(folder), "vae": open_vae(folder)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline(
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = first_noise([7], shape, 64)
        wanted = {"prompt": "a red circle", "negative_prompt": "a blue star", "latents": noise}
        theirs = pipeline(**wanted, num_inference_steps=3, guidance_scale=6.0, output_type="np").images[0]
    texts = TextStates(folder, shape, shape.text_length, "cpu")
    told = Told(texts.states(["a red circle"])), Told(texts.states(["a blue star"]))
    latents = sample(unet, folder, told, noise, [7], Sampling(64, 3))
    [ours] = decode(open_vae(folder), latents, shape.scaling)
    assert np.abs(np.asarray(ours) / 255 - theirs).max() < 1.5 / 255


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpmsolver"])
def test_a_picture_does_not_depend_on_its_neighbours(
    folder: Path, shape: DiffusionShape, unet: torch.nn.Module, scheduler: str
) -> None:
    how = Sampling(64, 4, 2.0, scheduler)  # type: ignore[arg-type]
    wanted, unwanted = drawn(2, 24, 32), drawn(2, 24, 32, seed=1)
    seeds = [picture_seed(42, "7", "cat", number) for number in range(2)]
    both = sample(unet, folder, (Told(wanted), Told(unwanted)), first_noise(seeds, shape, 64), seeds, how)
    alone = sample(
        unet, folder, (Told(wanted[1:]), Told(unwanted[1:])), first_noise(seeds[1:], shape, 64), seeds[1:], how
    )
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(both).all()


def test_seeds_follow_from_who_and_what() -> None:
    found = {picture_seed(42, user, target, n) for user in "ab" for target in "cd" for n in range(3)}
    assert len(found) == 12
    assert [picture_seed(42, user, "c", 1, shared=True) for user in "ab"] == [43, 43]


def test_other_models_are_refused(tmp_path: Path, folder: Path) -> None:
    def changed(part: str, file: str, **values: object) -> None:
        import json
        import shutil

        shutil.rmtree(tmp_path / "sd", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "sd")
        path = tmp_path / "sd" / part / file
        write_json(path, json.loads(path.read_text()) | values)

    changed("scheduler", "scheduler_config.json", prediction_type="sample")
    with pytest.raises(ConfigError, match="predicts 'sample'; known are epsilon and v_prediction"):
        read_shape(tmp_path / "sd", "mine")
    changed("unet", "config.json", cross_attention_dim=48)
    with pytest.raises(ConfigError, match="its UNet is told vectors of 48 numbers, its text encoder makes 32"):
        read_shape(tmp_path / "sd", "mine")
    changed("unet", "config.json", in_channels=9)
    with pytest.raises(ConfigError, match="takes 9 channels, its VAE has 4; models for inpainting"):
        read_shape(tmp_path / "sd", "mine")
    changed("unet", "config.json", block_out_channels=[24, 32])
    with pytest.raises(ConfigError, match=r"unet.*(missing|cannot be loaded)"):
        open_unet(tmp_path / "sd")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_velocity_are_those_of_diffusers(folder: Path, prediction: str) -> None:
    scheduler = open_scheduler(folder, "ddpm")
    x, noise, t = drawn(3, 4, 8, 8), drawn(3, 4, 8, 8, seed=1), torch.tensor([0, 500, 999])
    alpha = alphas(folder)[t]
    torch.testing.assert_close(losses.noisy(x, noise, alpha), scheduler.add_noise(x, noise, t))  # type: ignore[attr-defined]
    theirs = noise if prediction == "epsilon" else scheduler.get_velocity(x, noise, t)  # type: ignore[attr-defined]
    torch.testing.assert_close(losses.wanted(prediction, x, noise, alpha), theirs)


def test_weights_of_timesteps_are_those_of_diffusers(folder: Path) -> None:
    from diffusers.training_utils import compute_snr

    t = torch.tensor([0, 10, 300, 999])
    ratio = compute_snr(open_scheduler(folder, "ddpm"), t)
    least = ratio.clamp(max=5.0)
    torch.testing.assert_close(
        losses.snr_weight("epsilon", alphas(folder)[t], 5.0), least / ratio, rtol=1e-3, atol=1e-6
    )
    velocity = losses.snr_weight("v_prediction", alphas(folder)[t], 5.0)
    torch.testing.assert_close(velocity, least / (ratio + 1), rtol=1e-3, atol=1e-6)
    ends = torch.tensor([0.0, 1.0])
    assert all(torch.isfinite(losses.snr_weight(kind, ends, 5.0)).all() for kind in ("epsilon", "v_prediction"))
    assert torch.equal(losses.snr_weight("epsilon", ends, None), torch.ones(2))


def test_the_preference_loss_is_bounded() -> None:
    right, wrong = torch.tensor([0.2, 0.2]), torch.tensor([1e3, 1e6])
    logistic = losses.preference(right, wrong, NegativeConfig(weight=2.0, beta=3.0))
    assert torch.equal(logistic, torch.zeros(2))
    assert float(losses.preference(wrong[:1], right[:1], NegativeConfig(weight=2.0))) > 1000
    subtract = NegativeConfig(weight=0.5, form="subtract", cap=1.0)
    assert torch.equal(losses.preference(right, wrong, subtract), torch.full((2,), -0.5))
    far = torch.tensor([2.0], requires_grad=True)
    losses.preference(right[:1], far, subtract).sum().backward()
    assert far.grad is not None
    assert not far.grad.any()  # beyond the cap nothing is gained by a worse wrong pair
