"""The best of a ranking, as a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def top(score: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` best-scored candidates along the last axis; ties to the earlier.

    Args:
        score: [..., N] float.
        candidates: [..., N] bool.
        count: [...] int64.

    Returns:
        [..., N] bool.
    """
    order = score.masked_fill(~candidates, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, rank)
    return candidates & (place < count[..., None])
