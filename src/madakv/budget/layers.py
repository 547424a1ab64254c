"""How a prompt's entries are shared by its layers, where the shares are known before the first layer is read."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.budget.apportion import apportion


def layer_entries(per_head: Tensor, tokens: Tensor, heads: int, weights: Tensor) -> Tensor:
    """Entries of every layer over all its heads, in proportion to weights.

    Args:
        per_head: [B] int64, entries per head and layer on average, from `prompt_entries`.
        tokens: [B] int64, prompt tokens of each row: no head can hold more.
        heads: KV heads of every layer.
        weights: [B, L] or [L], non-negative.

    Returns:
        [B, L] int64 that sums to `per_head * heads * L`.
    """
    B, L = len(per_head), weights.shape[-1]
    caps = (tokens * heads)[:, None].expand(B, L)
    return apportion(per_head * heads * L, weights.to(per_head.device).expand(B, L), caps)


def pyramid(layers: int, steepness: float) -> Tensor:
    """Weights that fall in equal steps from the first layer to the last.

    Args:
        layers: L.
        steepness: beta; the last layer gets 1 / beta of the average, the first as much more as that is less.

    Returns:
        [L] fp64 of mean 1.

    Source: PyramidKV, arXiv 2406.02069, equations 4 and 5.
    """
    last = 1 / steepness
    return torch.linspace(2 - last, last, layers, dtype=torch.float64)
