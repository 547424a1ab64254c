"""Attention over a part of the keys, in a form that parts can be put together from.

A part is its own softmax-weighted mean of values and the log of its softmax denominator; parts combine as
their means weighted by their denominators, which is the attention over all keys at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention of R query rows over some keys.

    Attributes:
        out: [..., R, Dv] fp32, zero where no key was visible.
        lse: [..., R] fp32, log of the sum of exponentiated logits, -inf where no key was visible.
    """

    out: Tensor
    lse: Tensor

    def blind(self, rows: Tensor) -> Partial:
        """The same with the given rows, bool broadcastable to [..., R], marked as having seen no key."""
        return Partial(out=self.out, lse=self.lse.masked_fill(rows, float("-inf")))


def partial_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Partial:
    """Attention over one rectangle of keys; on a CPU in one fused pass over the keys and values.

    Args:
        query: [X, H, R, Dk].
        key: [X, H, t, Dk], t at least 1; a stride of 0 over X or H is fine.
        value: [X, H, t, Dv].
        scaling: factor on the logits.
        mask: broadcastable to [X, H, R, t], bool (true = visible) or additive float; None = all visible. Where a
            row may see nothing, the caller has to say so with `Partial.blind`.
        softcap: see `LayerView`.
    """
    # Under autocast, keys and values can have been stored in other dtypes than later queries come in.
    key, value = key.to(query.dtype), value.to(query.dtype)
    fused = query.device.type == "cpu" and softcap is None and key.shape[-1] == value.shape[-1]
    return (
        _fused_cpu(query, key, value, scaling, mask) if fused else _matmul(query, key, value, scaling, mask, softcap)
    )


def merge(a: Partial, b: Partial) -> Partial:
    """The attention over the keys of both parts together."""
    # Where neither part sees a key the share is undefined, and both means are zero.
    share = torch.sigmoid(a.lse - b.lse).nan_to_num(0.0)
    return Partial(out=torch.lerp(b.out, a.out, share[..., None]), lse=torch.logaddexp(a.lse, b.lse))


def merge_sinks(part: Partial, sinks: Tensor | None) -> Partial:
    """With the logits of attention sinks, which take weight and add nothing.

    Args:
        part: out [B, H, G * Q, Dv], the rows of each query head beside each other.
        sinks: [H * G]; None = there are none.
    """
    if sinks is None:
        return part
    B, H, R = part.lse.shape
    lse = sinks.float().view(1, H, -1, 1).expand(B, H, -1, R * H // len(sinks)).reshape(B, H, R)
    return merge(part, Partial(out=torch.zeros_like(part.out), lse=lse))


def merge_scattered(out: Tensor, lse: Tensor, owner: Tensor, owners: int) -> Partial:
    """Merge many parts of many owners at once.

    Args:
        out: [S, R, Dv] fp32, part s belongs to `owner[s]`.
        lse: [S, R] fp32, finite.
        owner: [S] int64 in [0, owners).
        owners: number of owners; one without a part has seen nothing.

    Returns:
        Partial with out [owners, R, Dv] and lse [owners, R].
    """
    R = lse.shape[1]
    top = lse.new_full((owners, R), float("-inf"))
    top = top.scatter_reduce(0, owner[:, None].expand(-1, R), lse, "amax")
    weight = torch.exp(lse - top[owner])
    den = lse.new_zeros(owners, R).index_add(0, owner, weight)
    num = out.new_zeros(owners, R, out.shape[-1]).index_add(0, owner, out * weight[..., None])
    return Partial(out=num / den.clamp_min(1e-38)[..., None], lse=top + den.log())


def _fused_cpu(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Partial:
    # The kernel behind scaled_dot_product_attention, whose public form drops the denominator and sees to strides.
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = additive(mask, query.dtype)
        mask = mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.contiguous(), key, value, 0.0, False, attn_mask=mask, scale=scaling
    )
    return Partial(out=out.float(), lse=lse.float().view(query.shape[:3]))


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as one to add to logits: 0 where visible, -inf elsewhere."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, float("-inf"))


def _matmul(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, softcap: float | None
) -> Partial:
    logits = query.float() @ key.float().transpose(-1, -2) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask.float()
    lse = torch.logsumexp(logits, dim=-1)
    weight = torch.exp(logits - lse.masked_fill(lse == float("-inf"), 0.0)[..., None])
    return Partial(out=weight @ value.float(), lse=lse)
