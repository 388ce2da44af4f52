"""The model section of an `interaction` run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sensorium.config import Section

Size = Literal["tiny", "small", "base", "large", "custom"]


class Shape(Section):
    """What a size stands for."""

    width: int = Field(256, ge=8, le=4096, description="Width d of all towers; even.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads; must divide the width.")
    vision_blocks: int = Field(4, ge=1, le=48, description="Transformer blocks of the image tower.")
    text_blocks: int = Field(3, ge=1, le=48, description="Transformer blocks of the text tower.")
    audio_blocks: int = Field(3, ge=1, le=48, description="Transformer blocks of the audio tower.")
    fusion_layers: int = Field(2, ge=1, le=48, description="Layers of the fusion: a look at all tokens, then a block.")
    word_width: int = Field(
        128, ge=4, le=4096, description="Width of the word table; a Linear widens it where it is less than the width."
    )
    latents: int = Field(16, ge=1, le=1024, description="Latent vectors of the fusion.")

    @model_validator(mode="after")
    def _consistent(self) -> Shape:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads (found {self.width} and {self.heads})")
        if self.word_width > self.width:
            raise ValueError(f"word_width must not be above width (found {self.word_width} and {self.width})")
        return self


SHAPES: dict[Size, Shape] = {
    "tiny": Shape(),
    "small": Shape(
        width=384,
        heads=6,
        vision_blocks=6,
        text_blocks=4,
        audio_blocks=3,
        fusion_layers=2,
        word_width=192,
        latents=32,
    ),
    "base": Shape(
        width=512,
        heads=8,
        vision_blocks=8,
        text_blocks=4,
        audio_blocks=5,
        fusion_layers=2,
        word_width=512,
        latents=32,
    ),
    "large": Shape(
        width=768,
        heads=12,
        vision_blocks=10,
        text_blocks=6,
        audio_blocks=6,
        fusion_layers=2,
        word_width=768,
        latents=64,
    ),
}


class TextConfig(Section):
    """Where words come from."""

    word_vectors: str = Field(
        "bert-base-uncased",
        min_length=1,
        description="What the word table begins with: a hub name, a local folder or `package:minilm` (a model with "
        "BERT's vocabulary); `none`: random vectors.",
    )
    tokenizer: str = Field(
        "same",
        min_length=1,
        description="`same`: of the model that gave the word vectors; `learn`: WordPiece, learned from the training "
        "captions; or a hub name or local folder.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TextConfig:
        if self.word_vectors == "none" and self.tokenizer == "same":
            raise ValueError("without word vectors there is no tokenizer beside them; set tokenizer to learn")
        if self.word_vectors != "none" and self.tokenizer != "same":
            raise ValueError("word vectors belong to the words of their own tokenizer; set one to none, or both alike")
        return self


class StageConfig(Section):
    """A stage of training."""

    share: float = Field(
        1.0, ge=0, le=1, description="Part of all steps, relative to the other stages; 0 leaves it out."
    )
    lr_scale: float = Field(1.0, gt=0, le=100, description="Multiplies the learning rate in this stage.")


class StagesConfig(Section):
    """The three stages."""

    unimodal: StageConfig = StageConfig(share=0.2)
    align: StageConfig = StageConfig(share=0.5)
    full: StageConfig = StageConfig(share=0.3, lr_scale=0.3)
    layer_decay: float = Field(
        0.85, gt=0, le=1, description="In the last stage, multiplies the rate of each block below the top of its tower."
    )

    @model_validator(mode="after")
    def _some(self) -> StagesConfig:
        if self.align.share + self.full.share == 0:
            raise ValueError("stages.align.share and stages.full.share are 0: nothing would be aligned")
        return self


class WeightsConfig(Section):
    """Weights of the losses beside the contrastive ones; all but the last one in the last stage."""

    match: float = Field(1.0, ge=0, description="Telling true pairs from the most similar wrong ones.")
    recon: float = Field(
        0.5,
        ge=0,
        description="Predicting a left-out modality's embedding, as it was before the stage, from the others.",
    )
    classify: float = Field(0.5, ge=0, description="Labels from the fused features, where the data are labelled.")
    distil: float = Field(
        1.0, ge=0, description="Predicting the vectors of frozen teachers (`data.teachers`), in the first two stages."
    )


class ModelConfig(Section):
    """The defaults are the guide's model, size base: 80,025,580 parameters."""

    size: Size = Field("base", description="Size of the model; custom is built from `shape`.")
    shape: Shape | None = None
    image_size: int = Field(224, ge=8, le=1024, description="Height and width of pictures; a multiple of `patch`.")
    patch: int = Field(16, ge=2, le=64, description="Height and width of a picture's patches.")
    max_tokens: int = Field(128, ge=4, le=4096, description="Longest text in tokens, [CLS] and [SEP] included.")
    vocab: int = Field(30522, ge=32, le=1_000_000, description="Rows of the word table.")
    mel_bands: int = Field(80, ge=8, le=512, description="Bands of the log-mel spectrogram.")
    embedding: int = Field(256, ge=8, le=4096, description="Width of the vectors that retrieval compares.")
    num_classes: int = Field(1000, ge=1, le=1_000_000, description="Rows of the classifier.")
    embed_dim: int | None = Field(
        None, ge=8, le=4096, description="Width of the fused features; null takes the width of the size."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of whole channels in every update of a block.")
    use_checkpoint: bool = Field(
        False, description="Gradient checkpointing: every block is computed twice, and keeps only its input."
    )
    attention_chunk: int | None = Field(
        None, ge=1, le=4096, description="Queries answered at a time where no fused attention kernel takes the mask."
    )
    text: TextConfig = TextConfig()
    stages: StagesConfig = StagesConfig()
    weights: WeightsConfig = WeightsConfig()

    @property
    def dims(self) -> Shape:
        """What the size stands for."""
        return self.shape or SHAPES[self.size]

    @property
    def fused_width(self) -> int:
        """Width of the fused features."""
        return self.embed_dim or self.dims.width

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if (self.size == "custom") != (self.shape is not None):
            raise ValueError("model.shape belongs to model.size custom, and custom needs it")
        if self.image_size % self.patch:
            raise ValueError(f"model.image_size must be a multiple of model.patch ({self.patch})")
        return self
