"""Attention of new tokens over a layer's kept prompt entries and its tail, without a loop over heads.

Uneven heads lie one behind another in memory. That memory is read as equal tiles, whoever they belong to: a
tile is attended by the heads whose entries it holds (one, or two and more where heads meet), and the parts are
merged per head. Every entry is read once, none is padded, and the split of long heads comes for free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.attention.partial import Partial, merge, merge_scattered, partial_attention
from madakv.cache import RaggedEntries, Tail


def ragged_attention(
    query: Tensor,
    entries: RaggedEntries,
    tail: Tail,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of the newest tokens, which are the last ones of the tail.

    Args:
        query: [B, Hq, Q, Dk].
        entries: kept prompt entries, all visible to every query.
        tail: what came after the prompt, the queries' own tokens included.
        scaling: factor on the logits.
        mask: broadcastable to [B, 1 or Hq, Q, tail.length], bool or additive; None = all of the tail is visible,
            which is causal for Q = 1 only.
        softcap, sinks: see `LayerView`.

    Returns:
        [B, Hq, Q, Dv] in the dtype of the query.
    """
    B, Hq, Q, _ = query.shape
    H = entries.counts.shape[1]
    G = Hq // H
    rows = query.reshape(B, H, G * Q, -1)
    part = _tail_part(rows, tail, mask, G, Q, scaling, softcap)
    if any(entries.lengths):
        part = merge(part, _prompt_part(rows, entries, scaling, softcap))
    if sinks is not None:
        lse = sinks.float().view(1, H, G, 1).expand(B, H, G, Q).reshape(B, H, G * Q)
        part = merge(part, Partial(out=torch.zeros_like(part.out), lse=lse))
    return part.out.to(query.dtype).view(B, Hq, Q, -1)


def _tail_part(
    rows: Tensor, tail: Tail, mask: Tensor | None, G: int, Q: int, scaling: float, softcap: float | None
) -> Partial:
    if mask is not None:
        B, H = rows.shape[:2]
        per_head = mask.unflatten(1, (H, G)) if mask.shape[1] == H * G else mask[:, :, None]
        mask = per_head.expand(B, -1, G, Q, -1).flatten(2, 3)
    return partial_attention(rows, tail.keys, tail.values, scaling=scaling, mask=mask, softcap=softcap)


def _prompt_part(rows: Tensor, entries: RaggedEntries, scaling: float, softcap: float | None) -> Partial:
    B, H, R, D = rows.shape
    if entries.even:
        key = entries.keys.view(B, H, -1, D)
        value = entries.values.view(B, H, key.shape[2], -1)
        return partial_attention(rows, key, value, scaling=scaling, softcap=softcap)
    schedule = entries.tiles
    tiles, slots = schedule.owner.shape
    key = entries.keys.view(tiles, 1, entries.tile, D).expand(-1, slots, -1, -1)
    value = entries.values.view(tiles, 1, entries.tile, -1).expand(-1, slots, -1, -1)
    query = rows.reshape(B * H, R, D)[schedule.query]
    part = partial_attention(query, key, value, scaling=scaling, mask=schedule.visible, softcap=softcap)
    merged = merge_scattered(part.out.flatten(0, 1), part.lse.flatten(0, 1), schedule.owner.flatten(), B * H)
    return Partial(out=merged.out.view(B, H, R, -1), lse=merged.lse.view(B, H, R))
