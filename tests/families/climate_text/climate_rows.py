"""Small models and batches of `climate_text` for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sensorium import config as configuration
from sensorium import families
from sensorium.engine.settings import RunConfig, resolve
from sensorium.families.climate_text.config import ModelConfig
from sensorium.families.climate_text.encoders import FieldFacts
from sensorium.families.climate_text.model import ClimateTextFusion

VOCABULARY, WIDTH, DEPTH = 61, 32, 4
TOKENS, TOKEN_WIDTH = 6, 12
END, PAD = 60, 59

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
_USUAL = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_GPT = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 128}
_NEO = {"hidden_size": WIDTH, "num_layers": DEPTH, "num_heads": 4, "max_position_embeddings": 128}

# Of each architecture in the table: its name in transformers, and a small shape.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "BloomForCausalLM": ("bloom", {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": 4}),
    "CohereForCausalLM": ("cohere", _USUAL | {"logit_scale": 0.3}),
    "FalconForCausalLM": (
        "falcon",
        {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "alibi": False},
    ),
    "GPT2LMHeadModel": ("gpt2", _GPT),
    "GPTBigCodeForCausalLM": ("gpt_bigcode", _GPT),
    "GPTJForCausalLM": ("gptj", _GPT | {"rotary_dim": 4}),
    "GPTNeoForCausalLM": ("gpt_neo", _NEO | {"attention_types": [[["global", "local"], 2]], "window_size": 8}),
    "GPTNeoXForCausalLM": ("gpt_neox", _USUAL),
    "Gemma2ForCausalLM": ("gemma2", _USUAL | {"final_logit_softcapping": 0.5}),
    "GemmaForCausalLM": ("gemma", _USUAL),
    "GraniteForCausalLM": ("granite", _USUAL | {"logits_scaling": 3.0}),
    "LlamaForCausalLM": ("llama", _USUAL),
    "MistralForCausalLM": ("mistral", _USUAL | {"sliding_window": 8}),
    "OPTForCausalLM": (
        "opt",
        {
            "hidden_size": WIDTH,
            "ffn_dim": 48,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 128,
        },
    ),
    "Olmo2ForCausalLM": ("olmo2", _USUAL),
    "Phi3ForCausalLM": ("phi3", _USUAL),
    "PhiForCausalLM": ("phi", _USUAL | {"partial_rotary_factor": 0.5}),
    "Qwen2ForCausalLM": ("qwen2", _USUAL),
    "Qwen3ForCausalLM": ("qwen3", _USUAL),
    "SmolLM3ForCausalLM": ("smollm3", _USUAL),
    "StableLmForCausalLM": ("stablelm", _USUAL),
}


def make_llm(architecture: str = "LlamaForCausalLM", **changes: Any) -> PreTrainedModel:
    """A small random model of transformers, with weights large enough for every part to matter."""
    kind, shape = SHAPES[architecture]
    config = CONFIG_MAPPING[kind](**{**_COMMON, **shape, **changes})
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    assert type(llm).__name__ == architecture
    return llm.eval()


def settings(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"climate_encoder": "grid_vit", "num_fusion_layers": 2, "fusion_heads": 4, "gradient_checkpointing": False}
        | changes
    )


def make_model(llm: PreTrainedModel | None = None, *, opened: bool = True, **changes: Any) -> ClimateTextFusion:
    """A model that reads ready tokens; ``opened``: its gates are not 0 any more, and climate matters."""
    llm = make_llm() if llm is None else llm
    torch.manual_seed(1)
    model = ClimateTextFusion(settings(**changes), FieldFacts(3, 2, 0, TOKEN_WIDTH), llm=llm).eval()
    if opened:
        open_gates(model)
    return model


def open_gates(model: ClimateTextFusion) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
            if name.endswith("lora.up") or (name.startswith("lora.") and name.endswith("up")):
                parameter.normal_(std=0.2)
            if name.startswith("prefix."):
                parameter.normal_(std=0.5)


def make_batch(lengths: tuple[tuple[int, int], ...] = ((7, 4), (4, 6), (9, 2)), seed: int = 5) -> dict[str, Tensor]:
    """Rows with so many words of prompt and target; ready climate tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(map(sum, lengths))
    ids = torch.full((rows, longest), PAD)
    mask, target = (torch.zeros(rows, longest, dtype=torch.bool) for _ in range(2))
    for row, (prompt, answer) in enumerate(lengths):
        ids[row, : prompt + answer] = torch.randint(0, 55, (prompt + answer,), generator=generator)
        ids[row, prompt + answer - 1] = END
        mask[row, : prompt + answer] = True
        target[row, prompt : prompt + answer] = True
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "target_mask": target,
        "field_given": torch.ones(rows, dtype=torch.bool),
        "climate_tokens": torch.randn(rows, TOKENS, TOKEN_WIDTH, generator=generator),
        "token_lat": torch.rand(rows, TOKENS, generator=generator) * 60,
        "token_lon": torch.rand(rows, TOKENS, generator=generator) * 90,
    }


def small_config(model: dict[str, Any], **data: Any) -> RunConfig:
    """A run of one epoch over a few fields of made-up weather."""
    demo = {"num_samples": 8, "shape": [2, 8, 24, 24], "questions": 2}
    layer = {
        "model": model,
        "data": {"demo": demo, "evaluation": {"answers": 2}},
        "train": {"epochs": 1, "batch_size": 4},
    }
    return resolve(families.load("climate_text"), "tiny", configuration.merge(layer, {"data": data}))


def rows_of(batch: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """Some rows, without the padding that only the others need."""
    found = {name: value[rows] for name, value in batch.items()}
    longest = int(found["attention_mask"].sum(dim=1).max())
    for name in ("input_ids", "attention_mask", "target_mask"):
        found[name] = found[name][:, :longest]
    return found


def make_field(
    rows: int = 2, sides: tuple[int, int] = (64, 64), times: int = 2, channels: int = 160, static: int = 4
) -> dict[str, Tensor]:
    """A normalised field with what belongs to it."""
    generator = torch.Generator().manual_seed(3)
    height, width = sides

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "field": normal(rows, times, channels, height, width),
        "static": normal(rows, static, height, width),
        "climatology": normal(rows, channels, height, width),
        "lat": torch.linspace(-16, 16, height).repeat(rows, 1),
        "lon": torch.linspace(170, 200, width).repeat(rows, 1),
        "day_hour": torch.tensor([[0.6, 0.8, 0.0, 1.0]]).repeat(rows, 1),
        "input_time": torch.full((rows,), 6.0),
        "lead_time": torch.zeros(rows),
        "field_given": torch.ones(rows, dtype=torch.bool),
    }
