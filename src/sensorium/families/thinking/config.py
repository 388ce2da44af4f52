"""The model section of a `thinking` run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sensorium.config import Section


class Weights(Section):
    """Weights of the three losses. What has weight 0 is not built."""

    align: float = Field(0.6, gt=0, le=100, description="Contrastive loss between unimodal read-outs.")
    recon: float = Field(0.4, ge=0, le=100, description="Prediction of a left-out modality's frozen pooled vector.")
    match: float = Field(0.0, ge=0, le=100, description="True pairs against hard negatives; also re-ranks in search.")


class ModelConfig(Section):
    """The defaults are the guide's model: 11,667,459 parameters with the three default encoders."""

    kind: Literal["slots", "probe", "mlp"] = Field(
        "slots", description="Slot memory with a walker; or a linear head, or a small MLP, over pooled vectors."
    )
    width: int = Field(384, ge=8, le=4096, description="Width of the shared space and of everything in it.")
    slots: int = Field(64, ge=1, le=1024, description="Learned slots of the memory.")
    heads: int = Field(6, ge=1, le=64, description="Attention heads; must divide the width.")
    walker_blocks: int = Field(2, ge=1, le=24, description="Transformer blocks of one thinking step.")
    think_steps: int = Field(2, ge=0, le=64, description="Thinking steps K; 0 reads the memory before any thought.")
    think_steps_max: int | None = Field(
        None, ge=1, le=64, description="Train with K drawn from 1 to this in each step; null keeps `think_steps`."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of whole channels in every update of the memory.")
    layer_scale: float = Field(0.1, ge=0, le=1, description="Initial LayerScale of the walker's updates.")
    slot_competition: bool = Field(
        False, description="Slots compete for tokens: softmax over slots instead of over tokens."
    )
    vector_tokens: bool = Field(
        True, description="Give the projected vector of encoders that have one (CLIP) as one more token."
    )
    pooled_tokens: bool = Field(
        False, description="Give the pooled vector of encoders without a projection as one more token, too."
    )
    floor: bool = Field(
        False, description="Add a linear head over the pooled vector to the read-out: a superset of kind `probe`."
    )
    read_width: int | None = Field(
        None, ge=8, le=4096, description="Width of the read-out, where it is to be another one than `width`."
    )
    loss: Literal["infonce", "sigmoid"] = Field("infonce", description="Contrastive loss; sigmoid is SigLIP's.")
    queue: int = Field(
        0,
        ge=0,
        le=2**20,
        description="Rows of earlier steps kept as further negatives of the contrastive loss; 0: none.",
    )
    weights: Weights = Weights()

    @property
    def embedding_width(self) -> int:
        """Width of the vectors that retrieval compares."""
        return self.read_width or self.width

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"model.heads must divide model.width ({self.width} is no multiple of {self.heads})")
        if self.think_steps == 0 and self.think_steps_max is not None:
            raise ValueError("model.think_steps 0 has no walker to train; set model.think_steps_max to null")
        return self
