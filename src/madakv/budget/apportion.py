"""Integer shares that sum to the whole: largest remainder, with spill over full recipients."""

from __future__ import annotations

import torch
from torch import Tensor

_SNAP = 1e-9
"""Quotas closer than this count as equal, so that rounding noise never decides who gets an entry."""


def apportion(total: Tensor, weights: Tensor, caps: Tensor) -> Tensor:
    """Split whole numbers in proportion to weights, exactly.

    A recipient whose proportional share exceeds its cap gets its cap, and the excess goes to the others in
    proportion to their weights (to their remaining room, once only zero weights are left). What is then left of
    fractions goes to the largest remainders, ties to the lower index.

    Args:
        total: [...] int64, entries to hand out, at least 0.
        weights: [..., M] non-negative, any float dtype.
        caps: [..., M] int64, the most each recipient can take.

    Returns:
        [..., M] int64 with `0 <= share <= caps` and a sum of exactly `min(total, caps.sum(-1))`.
    """
    weights = weights.to(torch.float64)
    total = torch.minimum(total, caps.sum(-1))
    share = torch.zeros_like(caps)
    for _ in range(2 * caps.shape[-1]):
        room = caps - share
        left = total - share.sum(-1)
        quota = _quota(left, weights, room)
        full = (quota >= room - _SNAP) & (room > 0)
        if not bool((full & (left > 0)[..., None]).any()):
            break
        share = torch.where(full, caps, share)
    room = caps - share
    left = total - share.sum(-1)
    quota = _quota(left, weights, room)
    whole = torch.minimum((quota + _SNAP).floor().to(torch.int64), room)
    share = share + whole
    left = total - share.sum(-1)
    remainder = (quota - whole).masked_fill(share >= caps, -1.0)
    # Snapping before the stable sort keeps ties in index order whatever the order of summation was.
    order = (remainder / _SNAP).round().argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return share + (rank < left[..., None]).to(torch.int64)


def _quota(left: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """Proportional real-valued shares of `left` among recipients that still have room."""
    open_weights = torch.where(room > 0, weights, 0.0)
    none = open_weights.sum(-1, keepdim=True) <= 0
    open_weights = torch.where(none, room.to(torch.float64), open_weights)
    return left[..., None] * open_weights / open_weights.sum(-1, keepdim=True).clamp_min(1e-300)
