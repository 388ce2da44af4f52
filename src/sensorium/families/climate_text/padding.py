"""Where the tokens of a row stand: texts are trained with padding on the right, and continued with padding on the left.

Legend: B rows, S and L positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def prompt_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """``[B, S]`` bool: attended positions before the first target token. What stands behind it has seen the target."""
    target = batch["target_mask"]
    return batch["attention_mask"].bool() & (target.cumsum(dim=1) == 0)


def left_padded(ids_BS: Tensor, keep_BS: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """The kept tokens of each row moved to the right end, as texts are continued; and their mask."""
    length = int(keep_BS.sum(dim=1).max())
    return _moved(ids_BS, keep_BS, keep_BS.long().argsort(dim=1, stable=True)[:, -length:], pad_id)


def right_padded(ids_BS: Tensor, keep_BS: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """The kept tokens of each row moved to the left end, and their mask."""
    length = int(keep_BS.sum(dim=1).max())
    return _moved(ids_BS, keep_BS, (~keep_BS).long().argsort(dim=1, stable=True)[:, :length], pad_id)


def _moved(ids_BS: Tensor, keep_BS: Tensor, order_BL: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    mask = keep_BS.gather(1, order_BL)
    return ids_BS.gather(1, order_BL).masked_fill(~mask, pad_id), mask
