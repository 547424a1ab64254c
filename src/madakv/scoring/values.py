"""What an entry can add to a head's output, or to what becomes of that."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.scoring.scratch import scratch_elements
from madakv.scoring.view import LayerView


def value_norms(value: Tensor) -> Tensor:
    """L2 norms over the last axis, of a few tokens at a time: those lie together, whether heads do or not.

    Args:
        value: [B, H, N, Dv].

    Returns:
        [B, H, N] fp32.
    """
    return torch.cat([torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32) for tokens in _few(value)], dim=2)


def output_norms(view: LayerView) -> Tensor:
    """How far each value can move the residual stream: the root mean square of |W_g v| over the query heads g.

    An RMSNorm between o_proj and the stream divides by what all values together make; so does this.

    Args:
        view: the layer's prefill; where its o_proj is not known, W_g is taken to be the identity.

    Returns:
        [B, H, N] fp32.
    """
    value, projection = view.value, view.projection
    if projection is None:
        return value_norms(value)
    metric = projection.metric(value, view.query.shape[1])
    squares = [((tokens.to(metric.dtype) @ metric).float() * tokens).sum(-1) for tokens in _few(value)]
    norms = torch.cat(squares, dim=2).clamp_min(0).sqrt()
    return norms if view.divisor is None else norms / view.divisor[:, None, None].clamp_min(1e-20)


def _few(value: Tensor) -> tuple[Tensor, ...]:
    B, H, _, D = value.shape
    few: tuple[Tensor, ...] = value.split(max(1, scratch_elements(value.device) // (B * H * D)), dim=2)
    return few
