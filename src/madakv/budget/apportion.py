"""Integer shares that sum to the whole: largest remainder, with spill over full recipients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    # Remainders that only rounding noise tells apart form one tier, which is served in index order.
    order = remainder.argsort(dim=-1, descending=True, stable=True)
    drop = remainder.gather(-1, order).diff(dim=-1) < -_SNAP
    tier = torch.zeros_like(order).scatter(-1, order, pad(drop.cumsum(-1), (1, 0)))
    rank = tier.argsort(dim=-1, stable=True).argsort(dim=-1)
    return share + (rank < left[..., None]).to(torch.int64)


def _quota(left: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """Proportional real-valued shares of `left` among recipients that still have room."""
    open_weights = torch.where(room > 0, weights, 0.0)
    top = open_weights.amax(-1, keepdim=True)
    open_weights = torch.where(top > 0, open_weights, room.to(torch.float64))
    # Relative to the largest, so that no sum leaves the range of numbers, however large or small the weights are.
    open_weights = open_weights / torch.where(top > 0, top, 1.0)
    return (
        left[..., None] * open_weights / open_weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    )
