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
    most = min(int(count.max()), score.shape[-1])
    if most == 0:
        return torch.zeros_like(candidates)
    score = score.masked_fill(~candidates, float("-inf"))
    # Only the best are sorted, and the last of them is the threshold.
    best = score.topk(most, dim=-1).values
    least = best.gather(-1, (count - 1).clamp(0, most - 1)[..., None])
    above = candidates & (score > least)
    level = candidates & (score == least)
    return above | (level & (level.cumsum(-1) <= (count - above.sum(-1))[..., None]))
