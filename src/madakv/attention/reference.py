"""The same attention, one head and one query at a time in float64: what every fast path is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.cache import Entries, Tail


def ragged_attention_reference(
    query: Tensor,
    entries: Entries,
    tail: Tail,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Plain loops in float64.

    Args, returns: as `ragged_attention`, but [B, Hq, Q, Dv] fp64.
    """
    B, Hq, Q, _ = query.shape
    H = entries.counts.shape[1]
    keys_of, values_of = (x.split(list(entries.lengths)) for x in (entries.keys, entries.values))
    out = torch.zeros(B, Hq, Q, entries.values.shape[-1], dtype=torch.float64)
    if mask is not None:
        mask = mask.expand(B, Hq, Q, tail.length)
    for b in range(B):
        for hq in range(Hq):
            h = hq // (Hq // H)
            count = entries.lengths[b * H + h]
            keys = torch.cat([keys_of[b * H + h], tail.keys[b, h]]).double()
            values = torch.cat([values_of[b * H + h], tail.values[b, h]]).double()
            for q in range(Q):
                logits = keys @ query[b, hq, q].double() * scaling
                if softcap is not None:
                    logits = torch.tanh(logits / softcap) * softcap
                if mask is not None:
                    row = mask[b, hq, q]
                    if row.dtype == torch.bool:
                        row = torch.zeros(tail.length).masked_fill(~row, float("-inf"))
                    logits[count:] += row.double()
                if sinks is not None:
                    logits = torch.cat([logits, sinks[hq].double().view(1)])
                weight = logits.softmax(0)[: count + tail.length]
                out[b, hq, q] = weight @ values
    return out
