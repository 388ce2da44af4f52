"""The model and data sections of a `pmg` run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sensorium.config import Section, resumable

Mode = Literal["soft_only", "target_soft", "target_soft_style", "keywords"]
DrawMode = Literal["caption_only", "soft_only", "target_soft", "target_soft_style", "keywords"]
RANDOM = "random:tiny"
GONE, MOVED = "runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"


class WeightsConfig(Section):
    """What the parts of the conditioning are multiplied by."""

    target: float = Field(1.0, ge=0, le=10, description="The target's caption.")
    soft: float = Field(1.0, ge=0, le=10, description="The user's soft tokens.")
    preference: float = Field(1.0, ge=0, le=10, description="The text of the user's style.")


class NegativeConfig(Section):
    """A loss that prefers the right pair to a wrong one. Weight 0 costs nothing."""

    weight: float = Field(0.0, ge=0, le=10, description="Weight of the preference loss; 0: none.")
    kind: Literal["item", "user"] = Field(
        "item",
        description="`item`: another user's picture and caption with the same soft tokens; `user`: the same picture "
        "and noise with another user's soft tokens.",
    )
    form: Literal["logistic", "subtract"] = Field(
        "logistic",
        description="`logistic`: softplus(beta (right - wrong)); `subtract`: right - weight * min(wrong, cap).",
    )
    beta: float = Field(1.0, gt=0, le=10_000, description="Steepness of `logistic`.")
    cap: float = Field(1.0, gt=0, le=100, description="Largest loss of a wrong pair that `subtract` rewards.")


class ModelConfig(Section):
    """Defaults are the guide's model: Llama 2 7B and Stable Diffusion 1.5, frozen, two soft and two prefix tokens."""

    llm: str = Field(
        "meta-llama/Llama-2-7b-chat-hf",
        min_length=1,
        description="The language model: a hub name, a local folder, or `random:tiny`.",
    )
    stable_diffusion: str = Field(
        MOVED,
        min_length=1,
        description="Stable Diffusion 1.x or 2.x: a hub name, a local folder of diffusers, or `random:tiny`.",
    )
    clip: str = Field(
        "openai/clip-vit-base-patch32",
        min_length=1,
        description="CLIP that chooses among pictures, opened only where it is needed: a hub name, a local folder, or "
        "`random:tiny`.",
    )
    num_image_prompt: int = Field(2, ge=0, le=32, description="Soft tokens that become part of the conditioning.")
    num_prefix_prompt: int = Field(2, ge=0, le=128, description="Prefix tokens before the prompt, in every layer.")
    max_sequence_length: int = Field(
        600, ge=16, le=32_768, description="Longest prompt in tokens, the soft ones included; captions are cut to fit."
    )
    pad_to: Literal["longest", "max"] = Field(
        "longest", description="Pad prompts to the longest of the batch, or all to `max_sequence_length`."
    )
    conditioning: Mode = Field(
        "target_soft",
        description="What Stable Diffusion is told: soft tokens alone; caption and soft tokens; style text besides; "
        "`keywords`: caption and style text without soft tokens, which trains nothing.",
    )
    init: Literal["activations", "embedding_std", "normal"] = Field(
        "activations",
        description="First values of soft and prefix tokens: the language model's own activations, noise of its "
        "embeddings' size, or N(0, 1) as published.",
    )
    standardise: int = Field(
        0,
        ge=0,
        le=4096,
        description="Training histories whose states give a mean and a spread, in which the mapping, zero at first, "
        "learns; it is exported as if it never had; 0: the states as they are, as published.",
    )
    weights: WeightsConfig = WeightsConfig()
    prompt_template: str | None = Field(
        None, min_length=1, description="Question about the history, with {captions}; null: that of `data.name`."
    )
    gradient_checkpointing: bool = resumable(
        False, "Compute activations of both networks anew in the backward pass instead of keeping them."
    )
    start_from: str | None = Field(
        None, min_length=1, description="A trained adapter, or the run of one, to begin a new run with; null: none."
    )
    snr_gamma: float | None = Field(
        None, gt=0, le=1000, description="Weight timesteps by min(SNR, gamma) (arXiv 2303.09556); null: all alike."
    )
    noise_offset: float = Field(0.0, ge=0, le=1, description="Noise that all pixels of a channel share.")
    soft_dropout: float = Field(0.0, ge=0, lt=1, description="Share of training samples without soft tokens.")
    style_dropout: float = Field(0.0, ge=0, lt=1, description="Share of training samples with an empty style text.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Moving average of the adapter, used in evaluation and export; 0: none."
    )
    negative: NegativeConfig = NegativeConfig()

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if self.prompt_template is not None and self.prompt_template.count("{captions}") != 1:
            raise ValueError("prompt_template must hold {captions} once")
        if self.soft_dropout and self.conditioning == "soft_only":
            raise ValueError("soft_dropout leaves nothing of conditioning soft_only; set it to 0")
        if self.style_dropout and self.conditioning != "target_soft_style":
            raise ValueError(f"style_dropout needs conditioning target_soft_style, not {self.conditioning}")
        if self.num_image_prompt + 16 > self.max_sequence_length:
            raise ValueError(f"max_sequence_length {self.max_sequence_length} leaves no room for a prompt")
        return self

    @property
    def uses_style(self) -> bool:
        """Whether the text of the user's style is part of what Stable Diffusion is told."""
        return self.conditioning in ("target_soft_style", "keywords")


class ToyConfig(Section):
    """A made-up world: users love a colour, captions of their history name it, the target's caption does not."""

    train_users: int = Field(12, ge=2, le=10_000, description="Users of the training split.")
    held_users: int = Field(4, ge=2, le=10_000, description="Users of validation and of test, each.")
    samples: int = Field(3, ge=1, le=1000, description="Samples of each user.")
    history: int = Field(3, ge=1, le=32, description="Pictures that a user liked before.")
    side: int = Field(64, ge=16, le=1024, description="Pixels of a picture.")
    seed: int = Field(0, ge=0, description="Of the world.")


class DataConfig(Section):
    """Where users' histories and targets come from. Paths of pictures are relative to `image_dir`."""

    name: str = Field("FLICKR", min_length=1, description="FLICKR, POG, SER or another: chooses the question.")
    train_json: str | None = Field(None, min_length=1, description="Processed samples to train on.")
    val_json: str | None = Field(None, min_length=1, description="Likewise for validation; null: none.")
    test_json: str | None = Field(None, min_length=1, description="Likewise for a test after training; null: none.")
    manifest: str | None = Field(
        None,
        min_length=1,
        description="Instead of processed samples: a folder with manifest.jsonl, where `group` is the user and `time` "
        "the order of what they chose; its splits are those of the run.",
    )
    history: int | None = Field(
        None,
        ge=1,
        le=32,
        description="With a manifest: pictures before a target; null: as its dataset.json says, or 3.",
    )
    image_dir: str | None = Field(
        None, min_length=1, description="Put before relative paths of pictures; null: the folder of the JSON file."
    )
    path_prefix: dict[str, str] = Field({}, description="Beginnings of absolute paths, and what to put instead.")
    user_preferences: str | None = Field(None, min_length=1, description="JSON with the style text of users.")
    limit_train: int | None = Field(None, ge=1, description="Train on so many samples, drawn by the seed; null: all.")
    image_size: int = Field(512, ge=64, le=4096, description="Pixels a side; a multiple of 64.")
    resize: Literal["squash", "crop"] = Field("squash", description="How a picture becomes square.")
    toy: ToyConfig | None = Field(None, description="Make a small world instead of reading files.")
    grid_users: int = Field(4, ge=0, le=64, description="Users whose pictures the report shows.")
    grid_steps: int = Field(20, ge=1, le=1000, description="Denoising steps of those pictures.")
    negative_prompt: str | None = Field(
        None, description="What generated pictures shall not be; null: that of `data.name`."
    )

    @model_validator(mode="after")
    def _somewhere(self) -> DataConfig:
        if self.image_size % 64:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 64")
        given = [name for name in ("train_json", "val_json", "test_json") if getattr(self, name) is not None]
        if self.toy is not None and (given or self.manifest is not None):
            raise ValueError(f"toy makes its own data, but {(*given, 'manifest')[0]} is given; leave one of them out")
        if self.manifest is not None and (given or self.image_dir is not None or self.path_prefix):
            lost = (*given, *(["image_dir"] if self.image_dir is not None else ["path_prefix"]))[0]
            raise ValueError(f"{lost} has no effect with manifest, which says where its pictures are; leave it out")
        if self.history is not None and self.manifest is None:
            raise ValueError("history has no effect without manifest: processed samples have their own")
        return self
