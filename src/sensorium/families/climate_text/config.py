"""The model section of a `climate_text` run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sensorium.config import Section

FusionMode = Literal["cross_attention", "concatenate", "add"]
Window = Literal["auto"] | tuple[int, int]


class LoraConfig(Section):
    """Updates of low rank beside linear layers of the language model (arXiv 2106.09685)."""

    rank: int = Field(0, ge=0, le=1024, description="Rank of the updates; 0: none.")
    alpha: float = Field(16.0, gt=0, le=4096, description="The updates are multiplied by alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="Last names of the linear layers, as the model has them."
    )


class PrithviConfig(Section):
    """Shape of a Prithvi WxC encoder that is drawn at random (`random_init`). A trained one says its own."""

    width: int = Field(2560, ge=8, le=8192, description="Width of the tokens; a multiple of 4 and of `heads`.")
    blocks: int = Field(
        12, ge=0, le=48, description="Pairs of a local and a global block; a last local one comes besides."
    )
    heads: int = Field(16, ge=1, le=128, description="Attention heads.")
    mlp: int = Field(4, ge=1, le=16, description="Width of the MLPs, as a multiple of `width`.")
    channels: Literal["merra2-160", "data"] = Field(
        "merra2-160", description="What it reads: the channels of the published weights, or those that the data have."
    )

    @model_validator(mode="after")
    def _divides(self) -> PrithviConfig:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of the {self.heads} heads")
        return self


class GridVitConfig(Section):
    """The small trainable encoder."""

    patch: int = Field(8, ge=1, le=64, description="Side of a patch in grid points; must divide both sides.")
    width: int = Field(128, ge=8, le=4096, description="Width of the tokens; a multiple of 4 and of `heads`.")
    depth: int = Field(4, ge=1, le=48, description="Transformer blocks.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads.")

    @model_validator(mode="after")
    def _divides(self) -> GridVitConfig:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of the {self.heads} heads")
        return self


class ModelConfig(Section):
    """The defaults are the guide's model: Prithvi WxC and Llama 3 8B, both frozen, joined by four gated blocks."""

    llm: str = Field(
        "meta-llama/Meta-Llama-3-8B",
        min_length=1,
        description="The language model: a hub name, a local folder, or `random:tiny` (a small Llama from a fixed "
        "seed that reads bytes).",
    )
    freeze_llm: bool = Field(True, description="Keep the language model as it is.")
    lora: LoraConfig = LoraConfig()
    climate_encoder: Literal["prithvi", "grid_vit"] = Field(
        "prithvi", description="What reads the field: Prithvi WxC, or a small ViT that is trained with the rest."
    )
    encoder_path: str | None = Field(
        None,
        min_length=1,
        description="Weights of the encoder. Prithvi WxC: a folder of `sensorium export climate-encoder`, or the "
        "downloaded `.pt`. `grid_vit`: a run of this family that trained one, with any language model; it says the "
        "shape.",
    )
    random_init: bool = Field(False, description="Draw Prithvi's weights at random instead, in the shape `prithvi`.")
    freeze_encoder: bool = Field(
        True,
        description="Keep the encoder's weights as they are. A `grid_vit` without `encoder_path` is always trained.",
    )
    prithvi: PrithviConfig = PrithviConfig()
    grid_vit: GridVitConfig = GridVitConfig()
    mask_unit: Window = Field(
        "auto",
        description="Side lengths, in grid points, of the units in which Prithvi attends; `auto`: those that divide "
        "the grid and are nearest to the 30 x 32 of its training.",
    )
    encoder_shifting: bool = Field(False, description="Shift Prithvi's units by half of one in every other block.")
    token_window: Window = Field(
        "auto",
        description="Side lengths, in patches, of the windows whose tokens are averaged; `auto`: the smallest that "
        "divide the unit and leave at most `max_climate_tokens`.",
    )
    max_climate_tokens: int = Field(256, ge=1, le=65_536, description="Most tokens of a field, after averaging.")
    resampler: Literal["none", "perceiver"] = Field(
        "none", description="`perceiver`: learned queries read the tokens, and only they go on."
    )
    resampler_queries: int = Field(64, ge=1, le=4096, description="Queries of the resampler.")
    resampler_layers: int = Field(2, ge=1, le=24, description="Layers of the resampler.")
    fusion_mode: FusionMode = Field(
        "cross_attention",
        description="`cross_attention`: gated blocks between layers; `concatenate`: tokens before the text; `add`: one "
        "vector on every word, a weak baseline.",
    )
    num_fusion_layers: int = Field(
        4, ge=1, le=64, description="Gated blocks; the other two modes have none, and say so."
    )
    fusion_width: Literal["auto"] | int = Field(
        "auto", description="Width inside the blocks, a multiple of `fusion_heads`; `auto`: 1024 or the model's own."
    )
    fusion_heads: int = Field(8, ge=1, le=64, description="Attention heads of the blocks.")
    fusion_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the blocks' updates.")
    objective: Literal["lm", "pooled_mse_legacy"] = Field(
        "lm",
        description="`lm`: the next word of the target; `pooled_mse_legacy`: the published regression of means, "
        "after which a model makes no text.",
    )
    contrastive_weight: float = Field(
        0.0, ge=0, le=1000, description="Weight of a contrastive loss between fields and texts; 0: none."
    )
    climate_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of training samples that are shown without their field."
    )
    gradient_checkpointing: bool = Field(
        True, description="Compute activations of layers anew in the backward pass instead of keeping them."
    )
    activation_checkpointing: Literal["all", "every_2", "none"] = Field(
        "all", description="Which layers `gradient_checkpointing` is about."
    )

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        prithvi = self.climate_encoder == "prithvi"
        if self.encoder_path is not None and self.random_init:
            raise ValueError("encoder_path is given, but random_init is true; leave one of them out")
        if self.prithvi.channels == "data" and not self.random_init:
            raise ValueError("prithvi.channels data goes with random_init; trained weights have channels of their own")
        if self.objective != "lm" and self.contrastive_weight:
            raise ValueError("contrastive_weight goes with objective lm; set it to 0")
        if not prithvi and (self.mask_unit != "auto" or self.encoder_shifting):
            raise ValueError("mask_unit and encoder_shifting are Prithvi's; grid_vit has no units")
        if self.fusion_width != "auto" and (self.fusion_width < 8 or self.fusion_width % self.fusion_heads):
            raise ValueError(
                f"fusion_width {self.fusion_width} must be at least 8 and a multiple of fusion_heads "
                f"{self.fusion_heads}, or auto"
            )
        for name, sides in (("mask_unit", self.mask_unit), ("token_window", self.token_window)):
            if sides != "auto" and min(sides) < 1:
                raise ValueError(f"{name} {list(sides)}: both sides must be 1 or more")
        return self

    def notes(self) -> list[str]:
        """Settings that do nothing together with the others, one line each."""
        found = []
        if self.objective != "lm":
            found.append(f"model.objective {self.objective} teaches no words: the trained model makes no text")
        if self.fusion_mode != "cross_attention":
            found.append(f"model.num_fusion_layers does nothing with fusion_mode {self.fusion_mode}")
        if not self.gradient_checkpointing and self.activation_checkpointing != "all":
            found.append("model.activation_checkpointing does nothing without gradient_checkpointing")
        if not self.freeze_llm and self.lora.rank:
            found.append("model.lora trains beside a language model that is trained anyway (freeze_llm is false)")
        return found
