"""The model of `interaction`: three towers that are aligned before they are fused, and heads.

Legend: B rows, L words, T mel frames, D width of the size, E width of the fused features (``embed_dim``).

    model = create_model("base")
    outputs = model(images=images, input_ids=ids, attention_mask=mask, audio=mel)

Embeddings come from the towers alone: whatever is passed for the other modalities, they are the same to the bit. Fused
features are for classification, matching and re-ranking, never for search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium import config as configuration
from sensorium.data.items import MODALITIES, Modality
from sensorium.errors import DataError
from sensorium.families.interaction.config import ModelConfig
from sensorium.families.interaction.towers import AudioTower, Encoding, Fusion, TextTower, VisionTower, shown
from sensorium.parts.attention import full_precision, init_weights
from sensorium.parts.contrastive import Temperature

START_SCALE = 1 / 0.07  # of similarities, as in CLIP
_OUTPUTS: dict[Modality, str] = {"image": "vision_embeds", "text": "text_embeds", "audio": "audio_embeds"}


class InteractionModel(nn.Module):
    """Towers, fusion and heads. ``temperatures``: one of each pair of modalities, for the losses that align them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision, self.text, self.audio = VisionTower(config), TextTower(config), AudioTower(config)
        self.fusion = Fusion(config)
        width, fused = config.dims.width, config.fused_width
        self.widen = nn.Linear(width, fused) if fused != width else nn.Identity()
        self.projections = nn.ModuleDict({m: nn.Linear(width, config.embedding, bias=False) for m in MODALITIES})
        self.classifier = nn.Linear(fused, config.num_classes)
        self.match = nn.Linear(fused, 1)
        self.temperatures = nn.ModuleDict(
            {f"{a}-{b}": Temperature(START_SCALE) for a, b in combinations(MODALITIES, 2)}
        )
        for head in (self.widen, self.classifier, self.match):
            init_weights(head)
        for projection in self.projections.values():
            nn.init.xavier_uniform_(projection.weight)

    def forward(
        self,
        *,
        images: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        present: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Everything the model says of some rows.

        ``images`` ``[B, 3, 224, 224]``: RGB from 0 to 1, less ImageNet's mean (0.485, 0.456, 0.406), over its standard
        deviation (0.229, 0.224, 0.225); the caller does this. ``input_ids`` ``[B, L]`` int64, L up to 128;
        ``attention_mask`` ``[B, L]``: true or 1 for real tokens. ``audio`` ``[B, T, 80]``: standardised log-mel frames;
        ``audio_mask`` ``[B, T]``: likewise. Masks may be left out: then all is real. Any modality may be None, not all.
        ``present`` ``[B, 3]`` bool: which rows have text, image, audio, in this order (the same as None for them).

        Gives ``fused_features`` ``[B, E]``, ``logits`` ``[B, num_classes]``, ``match_logits`` ``[B]``, and
        ``vision_embeds``, ``text_embeds``, ``audio_embeds`` ``[B, 256]``: unit length, float32; None for a modality
        that is None, zeros for rows that lack it. Raises DataError for shapes that the model does not read.
        """
        _check_rows([images, input_ids, audio], present)
        has = {m: None if present is None else present[:, i].bool() for i, m in enumerate(MODALITIES)}
        encodings: dict[Modality, Encoding] = {}
        if input_ids is not None:
            encodings["text"] = self.encode_text(input_ids, attention_mask, has["text"])
        if images is not None:
            encodings["image"] = self.encode_image(images, has["image"])
        if audio is not None:
            encodings["audio"] = self.encode_audio(audio, audio_mask, has["audio"])
        fused = self.fuse(encodings)
        embeds = {name: self.embed(m, encodings[m].pooled) if m in encodings else None for m, name in _OUTPUTS.items()}
        return {
            "fused_features": fused,
            "logits": self.classifier(fused),
            "match_logits": self.match(fused).squeeze(-1),
            **embeds,
        }

    def encode_image(self, images: Tensor, present: Tensor | None = None) -> Encoding:
        """Pictures as in ``forward``; ``present`` ``[B]`` bool."""
        encoding: Encoding = self.vision(images, present)
        return encoding

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, present: Tensor | None = None
    ) -> Encoding:
        """Texts as in ``forward``; ``present`` ``[B]`` bool."""
        encoding: Encoding = self.text(input_ids, _mask(input_ids, attention_mask, present))
        return encoding

    def encode_audio(self, audio: Tensor, audio_mask: Tensor | None = None, present: Tensor | None = None) -> Encoding:
        """Sound as in ``forward``; ``present`` ``[B]`` bool."""
        encoding: Encoding = self.audio(audio, _mask(audio, audio_mask, present))
        return encoding

    def embed(self, modality: Modality, pooled: Tensor) -> Tensor:
        """What retrieval compares: ``[B, D] -> [B, 256]``, unit length, float32; zeros stay zeros."""
        unit = functional.normalize(full_precision(self.projections[modality](pooled)), dim=-1)
        # Zeros stay zeros by themselves, but with a gradient of 1 / epsilon, which is infinite in half precision.
        return unit.masked_fill(~pooled.any(dim=-1, keepdim=True), 0.0)

    def fuse(self, encodings: Mapping[Modality, Encoding]) -> Tensor:
        """Fused features ``[B, E]`` of one or more modalities of the same rows.

        For several subsets or pairings of the same tokens call ``fusion.keys`` once, and ``read`` for each.
        """
        return self.read(self.fusion(self.fusion.keys(encodings)))

    def read(self, latents_BD: Tensor) -> Tensor:
        """``[B, D]`` of the fusion to fused features ``[B, E]``."""
        result: Tensor = self.widen(latents_BD)
        return result


def _check_rows(modalities: Sequence[Tensor | None], present: Tensor | None) -> None:
    """Raises DataError where there is nothing, or where numbers of rows differ."""
    given = [x for x in modalities if x is not None]
    if not given:
        raise DataError("nothing to look at; give at least one of images, input_ids and audio")
    if present is not None and (present.ndim != 2 or present.shape[1] != len(MODALITIES)):
        raise DataError(f"present has shape {shown(present)}; expected is [B, 3]: {', '.join(MODALITIES)}")
    rows = sorted({len(x) for x in (*given, *([] if present is None else [present]))})
    if len(rows) > 1:
        raise DataError(f"tensors of {' and '.join(map(str, rows))} rows; all of a batch have as many")


def _mask(values: Tensor, mask: Tensor | None, present: Tensor | None) -> Tensor:
    """``[B, N]`` bool: the given mask, or everything, in the rows that are present."""
    if mask is None:
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    elif mask.shape != values.shape[:2]:
        raise DataError(f"a mask of shape {shown(mask)} for {shown(values)}; it needs one value a token or frame")
    return mask.bool() if present is None else mask.bool() & present[:, None]


def create_model(
    size: str,
    num_classes: int = 1000,
    embed_dim: int | None = None,
    vocab_size: int = 30522,
    use_checkpoint: bool = False,
) -> InteractionModel:
    """A model with random weights: ``size`` tiny, small, base or large. Raises ConfigError for any other."""
    given = {
        "size": size,
        "num_classes": num_classes,
        "embed_dim": embed_dim,
        "vocab": vocab_size,
        "use_checkpoint": use_checkpoint,
    }
    return InteractionModel(configuration.build(ModelConfig, given, "create_model"))
