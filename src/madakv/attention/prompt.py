"""Dense attention with what scaled_dot_product_attention lacks: softcaps, sinks, and queries of the newest tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_SCRATCH_ELEMENTS = 1 << 24
"""Most fp32 logits held at a time (64 MiB): queries go in chunks, so nothing of N x N is ever held."""

_ROWS = 256
"""Queries of the newest tokens that attend at a time: masks are as high."""


def attention_of_newest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    hidden: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of the newest E of T tokens.

    Args:
        query: [B, Hq, E, Dk].
        key: [B, H, T, Dk].
        value: [B, H, T, Dv].
        scaling: factor on the logits.
        hidden: [B, T] bool, what nobody sees.
        softcap, sinks: see `LayerView`.

    Returns:
        [B, Hq, E, Dv] in the dtype of the query; of a token that sees nothing, anything.
    """
    if softcap is not None or sinks is not None:
        return prompt_attention(
            query, key, value, scaling=scaling, mask=None, softcap=softcap, sinks=sinks, hidden=hidden
        )
    E, T = query.shape[2], key.shape[2]
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    seen = ~hidden[:, None, None] if bool(hidden.any()) else None
    for start in range(0, E, _ROWS):
        rows = slice(start, min(start + _ROWS, E))
        end = T - E + rows.stop
        mask = _causal(rows, E, T, query.device)[:, :end]
        if seen is not None:
            mask = mask & seen[..., :end]
        out[:, :, rows] = scaled_dot_product_attention(
            query[:, :, rows], key[:, :, :end], value[:, :, :end], attn_mask=mask, scale=scaling, enable_gqa=True
        )
    return out


def prompt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
    causal: bool = True,
    hidden: Tensor | None = None,
) -> Tensor:
    """Attention of N queries over T keys, chunk by chunk of queries, softmax in fp32.

    Args:
        query: [B, Hq, N, Dk].
        key: [B, H, T, Dk].
        value: [B, H, T, Dv].
        scaling: factor on the logits.
        mask: broadcastable to [B, Hq, N, T], bool or additive; None = see `causal`.
        softcap, sinks: see `LayerView`.
        causal: without a mask, query i sees keys up to T - N + i.
        hidden: [B, T] bool, keys that nobody sees besides.

    Returns:
        [B, Hq, N, Dv] in the dtype of the query.
    """
    B, Hq, N, _ = query.shape
    H, T = key.shape[1], key.shape[2]
    G = Hq // H
    keys, values = key[:, :, None].float(), value[:, :, None].float()
    out = torch.empty(B, Hq, N, value.shape[-1], dtype=query.dtype, device=query.device)
    step = max(1, _SCRATCH_ELEMENTS // (B * Hq * T))
    for start in range(0, N, step):
        rows = slice(start, start + step)
        logits = query[:, :, rows].float().unflatten(1, (H, G)) @ keys.transpose(-1, -2) * scaling
        logits = logits.flatten(1, 2)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        chunk = mask[:, :, rows] if mask is not None else _causal(rows, N, T, query.device) if causal else None
        if chunk is not None:
            logits = (
                logits.masked_fill(~chunk, float("-inf")) if chunk.dtype == torch.bool else logits + chunk.float()
            )
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None, None], float("-inf"))
        if sinks is not None:
            logits = torch.cat([logits, sinks.float().view(1, -1, 1, 1).expand(B, -1, logits.shape[2], 1)], -1)
        weight = logits.softmax(-1)[..., :T].nan_to_num(0.0)
        out[:, :, rows] = (weight.unflatten(1, (H, G)) @ values).flatten(1, 2).to(query.dtype)
    return out


def _causal(rows: slice, N: int, T: int, device: torch.device) -> Tensor:
    query = torch.arange(rows.start, min(rows.stop, N), device=device)
    return torch.arange(T, device=device) <= query[:, None] + (T - N)
