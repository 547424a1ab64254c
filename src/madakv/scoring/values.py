"""What an entry can add to a head's output: the norm of its value."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.scoring.attention import scratch_elements


def value_norms(value: Tensor) -> Tensor:
    """L2 norms over the last axis, of a few tokens at a time: those lie together, whether heads do or not.

    Args:
        value: [B, H, N, Dv].

    Returns:
        [B, H, N] fp32.
    """
    B, H, _, D = value.shape
    few = value.split(max(1, scratch_elements(value.device) // (B * H * D)), dim=2)
    return torch.cat([torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32) for tokens in few], dim=2)
