"""Representations in chunks: losses over all rows of a large batch in the memory of a small one.

GradCache (Gao et al. 2021, arXiv 2101.06983) computes the representations of each chunk without gradient, then the
loss over all of them, and then each chunk once more with gradient. ``torch.utils.checkpoint`` around each chunk does
the same within one graph, whose backward pass reaches one chunk at a time. So whatever else takes part in the loss
(temperatures, gathering between processes, heads) has its usual gradient, and DDP sees one forward and one backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Rows = Tensor
"""Numbers of some rows ``[C]``, int64."""


def take(batch: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Some rows of a batch; scalars stay as they are."""
    return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in batch.items()}


def in_chunks(
    represent: Callable[[Rows], Mapping[str, Tensor]], rows: Rows, chunks: int, *, replay: bool = True
) -> dict[str, Tensor]:
    """``represent(rows)``, computed for about equal parts of ``rows`` one after another, as one result.

    ``represent`` gives tensors whose first axis is that of its rows. It runs a second time in the backward pass, with
    the random numbers of the first (``replay``; without it dropout makes the gradient wrong). ``rows`` must lie on the
    device of the model: the state of that device's random numbers is what is kept.
    """
    parts = [checkpoint(represent, part, use_reentrant=False, preserve_rng_state=replay) for part in rows.chunk(chunks)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
