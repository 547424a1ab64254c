"""Scores shared with neighbours: what is copied as a span is needed as a span."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from madakv.modality import KINDS, Modality

Pooling = Literal["max", "mean"]
PoolingScope = Literal["all", "text", "modality"]
"""Which tokens pool with which: all with all, as published for one modality; text with text, others not at all;
or every modality within itself."""


def pool(
    score: Tensor,
    modality: Tensor,
    width: int,
    how: Pooling = "max",
    scope: PoolingScope = "all",
    *,
    without: Tensor | None = None,
) -> Tensor:
    """The maximum or mean of the scores of neighbours; padding and tokens out of scope take no part.

    Args:
        score: [B, H, N] float, non-negative.
        modality: [B, N] of `Modality` values.
        width: neighbours in all, the token itself included; odd. 1 changes nothing.
        how: "max", or "mean" over as many neighbours as there are.
        scope: see `PoolingScope`.
        without: [B, N] bool, further tokens that take no part, such as an observation window; they keep their scores.

    Returns:
        [B, H, N], as `score` where nothing is pooled.

    Source: SnapKV, section 4.2, where the scope is "all"; the other scopes are ours.
    """
    if width == 1:
        return score
    members = modality != Modality.PADDING
    if without is not None:
        members = members & ~without
    if scope == "all":
        return _pooled(score, members, width, how)
    pooled = score
    for kind in KINDS if scope == "modality" else (Modality.TEXT,):
        own = members & (modality == kind)
        pooled = torch.where(own[:, None], _pooled(score, own, width, how), pooled)
    return pooled


def _pooled(score: Tensor, member: Tensor, width: int, how: Pooling) -> Tensor:
    member = member[:, None].expand_as(score)
    half = width // 2
    if how == "max":
        best = max_pool1d(score.masked_fill(~member, float("-inf")), width, stride=1, padding=half)
        return torch.where(member, best, score)
    total = avg_pool1d(torch.where(member, score, 0.0), width, stride=1, padding=half)
    share = avg_pool1d(member.to(score.dtype), width, stride=1, padding=half)
    return torch.where(member, total / share.clamp_min(1 / (2 * width)), score)
