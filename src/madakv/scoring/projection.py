"""The matrix behind a layer's attention (o_proj): what a head's output does to the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from madakv.scoring.scratch import scratch_elements


class OutputProjection:
    """A module that takes the outputs of all query heads side by side, and adds its own to the residual stream.

    Args:
        module: o_proj, from [n, Hq * Dv] to [n, hidden]; affine.
        norm: the RMSNorm between it and the residual stream, if there is one (Gemma's post-attention norm).
    """

    def __init__(self, module: nn.Module, norm: nn.Module | None = None) -> None:
        self._module = module
        self._norm = norm

    def __repr__(self) -> str:
        return f"OutputProjection({type(self._module).__name__})"

    @torch.no_grad()
    def metric(self, value: Tensor, query_heads: int) -> Tensor:
        """What turns a value into the square of what it can add to the residual stream, at most attention.

        With W_g the columns of o_proj that query head g is multiplied with, a KV head's metric M is the mean of
        W_g^T W_g over its G query heads (GQA), so that v^T M v is the mean of |W_g v|^2.

        Args:
            value: [B, H, N, Dv]; gives shape, dtype and device.
            query_heads: Hq.

        Returns:
            [H, Dv, Dv]; bfloat16 for values of half precision, since squares overflow float16.
        """
        H, D = value.shape[1], value.shape[3]
        weight = self._weight(query_heads * D, value)
        if self._norm is not None:
            weight = weight * self._norm(weight.new_ones(1, len(weight))).T
        # A few heads at a time, as products are fastest with: whole, it would be a copy of the projection.
        weight = weight.view(-1, query_heads, D)
        wide = torch.bfloat16 if value.dtype.itemsize < 4 else weight.dtype
        few = weight.split(max(1, scratch_elements(value.device) // (len(weight) * D)), dim=1)
        columns = (some.to(wide).transpose(0, 1).contiguous() for some in few)
        squares = torch.cat([own.transpose(1, 2) @ own for own in columns])
        return squares.view(H, -1, D, D).mean(1)

    @property
    def module(self) -> nn.Module:
        """As given."""
        return self._module

    @property
    def is_normed(self) -> bool:
        """Whether an RMSNorm stands behind it."""
        return self._norm is not None

    @torch.no_grad()
    def typical(self, heads: Tensor, heard: Tensor) -> Tensor:
        """What an RMSNorm behind o_proj divides by: the root mean square of what comes out.

        Args:
            heads: [B, N, Hq, Dv], outputs of all heads.
            heard: [B, N] bool, the tokens that tell what is typical.

        Returns:
            [B] fp32, one for rows that hear nothing.
        """
        some = heard.any(0).nonzero()[:, 0]
        out = self._module(heads[:, some].flatten(2)).float().square().mean(-1)
        told = heard[:, some]
        mean = torch.where(told, out, 0.0).sum(-1) / told.sum(-1).clamp_min(1)
        return torch.where(told.any(-1), mean.sqrt(), 1.0)

    def _weight(self, width: int, like: Tensor) -> Tensor:
        """[hidden, Hq * Dv]."""
        weight = getattr(self._module, "weight", None)
        if type(self._module) is nn.Linear and type(weight) is nn.Parameter and not weight.is_meta:
            return weight.detach().to(like.device)
        # Quantised, adapted or offloaded: only the module itself knows.
        unit = torch.eye(width, dtype=like.dtype, device=like.device)
        out: Tensor = self._module(unit) - self._module(unit[:1] * 0)
        return out.T
