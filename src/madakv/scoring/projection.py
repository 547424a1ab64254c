"""The matrix behind a layer's attention: what a head's output does to the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OutputProjection:
    """A module that takes the outputs of all query heads side by side, and adds its own to the residual stream.

    Args:
        module: from [n, Hq * Dv] to [n, hidden]; affine.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __repr__(self) -> str:
        return f"OutputProjection({type(self._module).__name__})"

    @torch.no_grad()
    def metric(self, value: Tensor, query_heads: int) -> Tensor:
        """What turns a value into the square of what it can add to the residual stream, at most attention.

        With W_g the columns of the projection that query head g is multiplied with, a KV head's metric M is the mean
        of W_g^T W_g over its G query heads, so that v^T M v is the mean of |W_g v|^2.

        Args:
            value: [B, H, N, Dv]; gives shape, dtype and device.
            query_heads: Hq.

        Returns:
            [H, Dv, Dv] in the dtype of the values.
        """
        H, D = value.shape[1], value.shape[3]
        G = query_heads // H
        found = []
        for h in range(H):
            columns = [self._columns(h * G + g, D, query_heads, value) for g in range(G)]
            found.append(torch.stack([own.T @ own for own in columns]).mean(0))
        return torch.stack(found)

    def _columns(self, head: int, width: int, heads: int, like: Tensor) -> Tensor:
        """[hidden, Dv]: the columns of one query head."""
        own = slice(head * width, (head + 1) * width)
        weight = self._module.weight if type(self._module) is nn.Linear else None
        if isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta:
            return weight.detach()[:, own].to(like)
        # Quantised, adapted or offloaded: only the module itself knows.
        unit = like.new_zeros(width + 1, heads * width)
        unit[:width, own] = torch.eye(width, dtype=like.dtype, device=like.device)
        out: Tensor = self._module(unit)
        return (out[:width] - out[width]).T
