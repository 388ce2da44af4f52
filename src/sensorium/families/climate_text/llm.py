"""The language model: any causal one of Hugging Face whose decoder layers are known here.

What climate adds enters by hooks: before decoder layers, behind the embeddings, behind linear layers (LoRA), before the
head. So every architecture keeps its own code, its scaling of logits and its cache.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sensorium.errors import ConfigError
from sensorium.families.climate_text.config import LoraConfig, ModelConfig
from sensorium.families.climate_text.tiny_llm import RANDOM, random_llm, random_tokenizer
from sensorium.parts.encoders_base import LOAD_ERRORS, load_pretrained, quiet, reason
from sensorium.parts.encoders_hub import model_folder
from sensorium.parts.live import made_in
from sensorium.parts.lora import FusedLora

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ALLOWED = f"a local folder, a hub name like HuggingFaceTB/SmolLM2-135M, and {RANDOM}"
_ADVICE = (
    "Where access must be granted first: accept the terms on its page and run `hf auth login`. Or give a local folder "
    "in model.llm, or a free model such as HuggingFaceTB/SmolLM2-135M"
)

# Architecture, as config.json names it -> the list of its decoder layers.
LAYERS: dict[str, str] = {
    "BloomForCausalLM": "transformer.h",
    "CohereForCausalLM": "model.layers",
    "FalconForCausalLM": "transformer.h",
    "GPT2LMHeadModel": "transformer.h",
    "GPTBigCodeForCausalLM": "transformer.h",
    "GPTJForCausalLM": "transformer.h",
    "GPTNeoForCausalLM": "transformer.h",
    "GPTNeoXForCausalLM": "gpt_neox.layers",
    "Gemma2ForCausalLM": "model.layers",
    "GemmaForCausalLM": "model.layers",
    "GraniteForCausalLM": "model.layers",
    "LlamaForCausalLM": "model.layers",
    "MistralForCausalLM": "model.layers",
    "OPTForCausalLM": "model.decoder.layers",
    "Olmo2ForCausalLM": "model.layers",
    "Phi3ForCausalLM": "model.layers",
    "PhiForCausalLM": "model.layers",
    "Qwen2ForCausalLM": "model.layers",
    "Qwen3ForCausalLM": "model.layers",
    "SmolLM3ForCausalLM": "model.layers",
    "StableLmForCausalLM": "model.layers",
}


def llm_folder(model: ModelConfig, *, weights: bool = True) -> Path:
    """Where the model lies; fetched from the hub when it is not there yet. Raises ConfigError, quickly."""
    return model_folder(model.llm, "language model", _ALLOWED, _ADVICE, weights=weights)


def open_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; no weights are looked for. One without a padding token takes its end token for that:
    padding is known by the mask. Raises ConfigError."""
    if model.llm == RANDOM:
        return random_tokenizer()
    from transformers import AutoTokenizer

    folder = llm_folder(model, weights=False)
    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except LOAD_ERRORS as error:
        raise ConfigError(f"language model {model.llm}: {folder} has no tokenizer ({reason(error)})") from error
    if found.eos_token_id is None:
        raise ConfigError(f"language model {model.llm}: its tokenizer has no end token, so a text could not end")
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found


def open_llm(model: ModelConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model with its weights, on the CPU, in eval mode; ``dtype``: that of a frozen one, a trained one is float32.

    Gradients as ``freeze_llm`` says. Raises ConfigError for an architecture that is not in the table, before any weight
    is read, and for weights that are missing.
    """
    dtype = dtype if model.freeze_llm else torch.float32
    found: Any = random_llm() if model.llm == RANDOM else _trained_llm(model, dtype)
    ready: PreTrainedModel = found.to(dtype).eval().requires_grad_(not model.freeze_llm)
    return ready


def shaped_llm(model: ModelConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same with new weights, for where nothing but sizes counts; no weights are looked for. Raises ConfigError."""
    dtype = dtype if model.freeze_llm else torch.float32
    with quiet(), made_in(dtype):
        if model.llm == RANDOM:
            return random_llm().requires_grad_(not model.freeze_llm)
        from transformers import AutoModelForCausalLM

        config = _read_config(llm_folder(model, weights=False), model.llm)
        require_known((config.architectures or ["(none)"])[0], model.llm)
        found: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return found.requires_grad_(not model.freeze_llm)


def _trained_llm(model: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    folder = llm_folder(model)
    config = _read_config(folder, model.llm)
    require_known((config.architectures or ["(none)"])[0], model.llm)
    load: Any = AutoModelForCausalLM.from_pretrained
    found: PreTrainedModel = load_pretrained(load, folder, model.llm, dtype=dtype, kind="language model")
    return found


def _read_config(folder: Path, name: str) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise ConfigError(f"language model {name}: {folder} cannot be loaded ({reason(error)})") from error


def precision_notes(model: ModelConfig, precision: str) -> list[str]:
    """A warning for a model of bfloat16 that is to compute in float16, which ends at 65,504."""
    if precision != "fp16" or model.llm == RANDOM:
        return []
    if _read_config(llm_folder(model, weights=False), model.llm).dtype is not torch.bfloat16:
        return []
    return [
        f"{model.llm} was made in bfloat16; in float16 its larger activations may become infinite: take "
        "train.precision=bf16 where the device has it"
    ]


def require_known(architecture: str, name: str) -> None:
    """Raise ConfigError listing the architectures whose layers are known."""
    if architecture not in LAYERS:
        raise ConfigError(
            f"language model {name}: architecture {architecture} is not known; model.llm may be of "
            f"{', '.join(sorted(LAYERS))}"
        )


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, first to last. Raises ConfigError for an unknown architecture."""
    architecture = type(llm).__name__
    require_known(architecture, architecture)
    layers = llm.get_submodule(LAYERS[architecture])
    assert isinstance(layers, nn.ModuleList)
    return layers


def checkpoint_layers(layers: nn.ModuleList, numbers: Collection[int]) -> None:
    """Let these layers compute their activations anew in the backward pass.

    Not by ``activation_checkpointing_enable`` of transformers, which asks for train mode: a frozen model is in eval
    mode. As there, hooks of the layer stay outside and run once.
    """
    for number in numbers:
        layer = layers[number]
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


class LoraUpdates(nn.ModuleDict):
    """Updates of low rank beside frozen linear layers, by the layers' names with ``/`` for ``.``."""

    def __init__(self, llm: nn.Module, config: LoraConfig) -> None:
        super().__init__()
        self.scale = config.alpha / config.rank
        found = {name: module for name, module in llm.named_modules() if name.rpartition(".")[2] in config.targets}
        sides = {name: _sides(module) for name, module in found.items()}
        lacking = [target for target in config.targets if not any(n.rpartition(".")[2] == target for n in found)]
        if lacking or None in sides.values():
            there = sorted({n.rpartition(".")[2] for n, m in llm.named_modules() if _sides(m) is not None})
            raise ConfigError(
                f"model.lora.targets: {(lacking or [n for n, s in sides.items() if s is None])[0]} is no linear layer "
                f"of this model; it has {', '.join(there)}"
            )
        for name, size in sides.items():
            assert size is not None
            self[name.replace(".", "/")] = FusedLora(*size, config.rank)
            found[name].register_forward_hook(functools.partial(self.add, name.replace(".", "/")))

    def add(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of a layer."""
        del module
        lora = self[name]
        assert isinstance(lora, FusedLora)
        update: Tensor = lora(inputs[0].to(lora.down.dtype))
        return output + self.scale * update.to(output.dtype)


def _sides(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; also of GPT-2's, whose weights are transposed."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return (module.nx, module.nf) if isinstance(module, Conv1D) else None
