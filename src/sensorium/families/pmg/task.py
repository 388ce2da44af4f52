"""The trainable task of `pmg`: the UNet's error at denoising the target, given its caption and the user's soft tokens.

Legend: B rows, S draws of noise a row, C, h, w as of latents, N soft tokens, d width of what the UNet is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sensorium.engine.contract import Batch, Begin, Output
from sensorium.engine.settings import RunConfig
from sensorium.errors import ConfigError
from sensorium.families.pmg import losses
from sensorium.families.pmg.conditioning import Told, compose, lengths_of, predict
from sensorium.families.pmg.config import DataConfig, ModelConfig
from sensorium.families.pmg.diffusion import DiffusionShape, alphas, open_unet, read_shape, silent
from sensorium.families.pmg.folders import diffusion_folder, llm_folder
from sensorium.families.pmg.language import (
    checkpoint_layers,
    open_tokenizer,
    open_trunk,
    read_config,
    trunk_shape,
)
from sensorium.families.pmg.model import PMGAdapter, Sizes
from sensorium.families.pmg.prompts import preface

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import PreTrainedModel

# Frozen weights are kept in the numbers that they are computed with; what learns is fp32 always.
FROZEN_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Average(nn.Module):
    """Moving average of an adapter's parameters, as buffers: part of every checkpoint."""

    def __init__(self, adapter: PMGAdapter) -> None:
        super().__init__()
        for name, parameter in adapter.named_parameters():
            self.register_buffer(name.replace(".", "/"), parameter.detach().clone())

    @torch.no_grad()
    def update(self, adapter: PMGAdapter, decay: float) -> None:
        """``average = decay * average + (1 - decay) * parameter``."""
        for name, parameter in adapter.named_parameters():
            self.get_buffer(name.replace(".", "/")).lerp_(parameter, 1 - decay)

    def values(self) -> dict[str, Tensor]:
        """By the names of the parameters."""
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}


class PMGTask(nn.Module):
    """``forward`` is the mean loss of a row. The frozen models stay in eval mode."""

    def __init__(
        self,
        settings: ModelConfig,
        shape: DiffusionShape,
        llm: PreTrainedModel,
        unet: UNet2DConditionModel,
        alphas_T: Tensor,
    ) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        sizes = Sizes.of(trunk_shape(llm.config), shape.told, settings.num_image_prompt, settings.num_prefix_prompt)
        self.adapter = PMGAdapter(sizes)
        self.llm, self.unet = llm, unet
        self.average: Average | None = None
        self.alphas_T: Tensor
        self.register_buffer("alphas_T", alphas_T, persistent=False)
        self.plain_losses: dict[tuple[int, int], float] = {}  # of validation, which no training changes
        if settings.gradient_checkpointing:
            checkpoint_layers(llm)
            unet.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> PMGTask:
        """Of the adapter alone: dropout and the like of frozen models would be noise."""
        super().train(mode)
        self.llm.eval()
        self.unet.eval()
        return self

    def forward(self, batch: Batch) -> Output:
        """A batch of ``data.TrainSource``."""
        soft_BNd = self.soft(batch["input_ids"], batch["text_mask"])
        told = self.told(batch, soft_BNd)
        alpha_B = self.alphas_T[batch["timestep"][:, 0]]
        right_B = self.errors(batch, told)[:, 0]
        weight_B = losses.snr_weight(self.shape.prediction, alpha_B, self.settings.snr_gamma)
        loss_B = weight_B * right_B
        logs = {"mse": right_B.detach().mean(), "soft_norm": soft_BNd.detach().norm(dim=2).mean()}
        negative = self.settings.negative
        if negative.weight:
            wrong_B = self._wrong(batch, soft_BNd)
            loss_B = loss_B + losses.preference(right_B, wrong_B, negative)
            logs["mse_wrong"] = wrong_B.detach().mean()
        return Output(self.compute_loss(loss_B), logs, float(len(loss_B)))

    def compute_loss(self, loss_B: Tensor) -> Tensor:
        """Mean over the rows."""
        return loss_B.mean()

    def soft(self, ids_BT: Tensor, text_BT: Tensor) -> Tensor:
        """Soft tokens of histories, ``[B, N, d]`` float32; in eval mode of the moving average, where there is one."""
        values = self.average.values() if self.average is not None and not self.training else {}
        # Called as a module: ZeRO 3 puts its parameters together only then.
        found: Tensor = functional_call(self.adapter, values, (self.llm, ids_BT, text_BT))
        return found

    def told(self, batch: Mapping[str, Tensor], soft_BNd: Tensor) -> Told:
        """What the UNet is told in training: as the configuration has it."""
        given = batch["soft_given"] if self.settings.soft_dropout else None
        soft = None if self.settings.conditioning == "keywords" else soft_BNd
        states = (batch.get("caption_states"), batch.get("style_states"))
        return compose(self.settings.weights, states[0], soft, states[1], given)

    def errors(self, batch: Mapping[str, Tensor], told: Told, latents: Tensor | None = None) -> Tensor:
        """Mean squared error of each draw, ``[B, S]`` float32. ``latents``: of other pictures, with the same noise."""
        clean = batch["latents"] if latents is None else latents
        found = []
        for draw in range(batch["noise"].shape[1]):
            noise, timestep_B = batch["noise"][:, draw], batch["timestep"][:, draw]
            alpha_B = self.alphas_T[timestep_B]
            said = predict(self.unet, losses.noisy(clean, noise, alpha_B), timestep_B, told)
            found.append(losses.per_row(said, losses.wanted(self.shape.prediction, clean, noise, alpha_B)))
        return torch.stack(found, dim=1)

    def _wrong(self, batch: Batch, soft_BNd: Tensor) -> Tensor:
        """Error of the wrong pair: another user's soft tokens, or another user's picture and caption."""
        if self.settings.negative.kind == "user":
            other = self.soft(batch["wrong_ids"], batch["wrong_mask"])
            return self.errors(batch, self.told(batch, other))[:, 0]
        states = {"caption_states": batch["wrong_caption_states"]} if "wrong_caption_states" in batch else {}
        return self.errors(batch, self.told({**batch, **states}, soft_BNd), batch["wrong_latents"])[:, 0]


def sections(config: RunConfig) -> tuple[ModelConfig, DataConfig]:
    """The family's own sections of a configuration."""
    assert isinstance(config.model, ModelConfig)
    assert isinstance(config.data, DataConfig)
    return config.model, config.data


def build(config: RunConfig, facts: Mapping[str, Any]) -> PMGTask:
    """The task of a run. ``facts["precision"]``: what it was trained in. Raises ConfigError."""
    model, _ = sections(config)
    dtype = FROZEN_DTYPES[facts["precision"]]
    return open_task(model, dtype)


def open_task(model: ModelConfig, dtype: torch.dtype = torch.float32) -> PMGTask:
    """The frozen models in ``dtype`` and a new adapter, drawn from torch's generator, between them."""
    folder, name = llm_folder(model), model.llm
    trunk = open_trunk(folder, name, dtype)
    diffusion = diffusion_folder(model)
    shape = read_shape(diffusion, model.stable_diffusion)
    task = PMGTask(model, shape, trunk, open_unet(diffusion, dtype), alphas(diffusion))
    words = torch.tensor(preface(open_tokenizer(folder, name), model.num_prefix_prompt))
    task.adapter.initialise(trunk, model.init, words)
    if model.standardise:
        task.adapter.make_standard()
    if model.ema_decay:
        task.average = Average(task.adapter)
    return task


def require_trainable(model: ModelConfig) -> None:
    """Raise ConfigError where nothing learns, before anything slow."""
    if not model.num_image_prompt or model.conditioning == "keywords":
        reason = "num_image_prompt is 0" if not model.num_image_prompt else "conditioning is keywords"
        raise ConfigError(f"model.{reason}: nothing would be trained; take 1 or more soft tokens and another mode")
    with silent():  # says what to install
        folder = diffusion_folder(model)
    shape = read_shape(folder, model.stable_diffusion)
    lengths_of(model.conditioning, shape.text_length, model.num_image_prompt)
    read_config(llm_folder(model, weights=False), model.llm)


def begin_stage(task: nn.Module, begin: Begin) -> None:
    """Take the mean and spread of states from the first training histories, when a run begins."""
    assert isinstance(task, PMGTask)
    model = task.settings
    if begin.shared is None or not model.standardise or model.start_from is not None or task.adapter.is_standard:
        return
    assert task.adapter.mapping is not None
    seen: list[Tensor] = []
    hook = task.adapter.mapping.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        for ids, mask in begin.shared(model.standardise):
            device = task.adapter.mapping.bias.device
            task.adapter(task.llm, ids.to(device), mask.to(device))
    hook.remove()
    task.adapter.standardise(torch.cat(seen))


def after_step(task: nn.Module, step: int) -> None:
    """The moving average takes the step in."""
    del step
    assert isinstance(task, PMGTask)
    if task.average is not None:
        task.average.update(task.adapter, task.settings.ema_decay)


def group(name: str, parameter: nn.Parameter) -> str:
    """``soft``, ``prefix`` and ``mapping``, which may learn at different rates; ``mapping_no_decay``: its bias."""
    del parameter
    known = {"image_prompt_NH": "soft", "prefix_L2KPD": "prefix", "weight": "mapping", "bias": "mapping_no_decay"}
    return known[name.rpartition(".")[2]]


def folder_of(task: PMGTask) -> Path:
    """Where the task's Stable Diffusion lies."""
    return diffusion_folder(task.settings)
