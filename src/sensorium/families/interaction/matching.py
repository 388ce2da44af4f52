"""How well things of two modalities belong together, by a closer look than their embeddings take: the match head.

Legend: K items.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sensorium.data.items import Modality
from sensorium.families.interaction.model import InteractionModel
from sensorium.families.interaction.towers import Encoding


def match_logits(
    model: InteractionModel, query: Mapping[Modality, Encoding], items: Mapping[Modality, Encoding]
) -> Tensor:
    """Logits ``[K]``, float32, of one query with each of K items; each side is of one modality, not of the same."""
    [(asked, one)], [(found, many)] = query.items(), items.items()
    keys = model.fusion.keys({asked: one, found: many})
    rows = torch.zeros(len(many.mask), dtype=torch.int64, device=many.mask.device)
    keys[asked] = tuple(layer.take(rows, torch.ones_like(rows, dtype=torch.bool)) for layer in keys[asked])
    logits: Tensor = model.match(model.read(model.fusion(keys)))
    return logits.squeeze(1).float()
