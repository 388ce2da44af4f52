"""What the words of an answer look at: the gated cross attention of a model, as a map.

Legend: N climate tokens, h w windows of the field, row after row from the south.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from sensorium.families.climate_text.encoders import Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sensorium.families.climate_text.model import ClimateTextFusion


def with_tokens(model: ClimateTextFusion, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the encoder's tokens beside its field, so that several passes encode it once."""
    if "climate_tokens" in batch:
        return dict(batch)
    tokens, lat, lon = cast("Encoder", model.encoder).encode(batch)
    return {**batch, "climate_tokens": tokens, "token_lat": lat, "token_lon": lon}


@torch.no_grad()
def looked_at(model: ClimateTextFusion, batch: Mapping[str, Tensor]) -> NDArray[np.float32] | None:
    """How much the target's words of a batch of one row look at each window, ``[h, w]``, which sums to 1: the mean over
    words, blocks and heads. None where nothing can be shown: without blocks of cross attention, with a resampler
    between, and where several fields share the tokens."""
    if not model.blocks or model.resampler is not None:
        return None
    batch = with_tokens(model, batch)
    lat_N, lon_N = batch["token_lat"][0], batch["token_lon"][0]
    rows, columns = len(lat_N.unique()), len(lon_N.unique())
    if rows * columns != len(lat_N):
        return None
    found: NDArray[np.float32] = model.attention(batch)[0].reshape(rows, columns).float().cpu().numpy()
    return found
