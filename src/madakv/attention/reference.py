"""The same attention, one head and one query at a time in float64: what every fast path is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.attention.pages import Pages
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
                more = torch.zeros(count + tail.length, dtype=torch.float64)
                if mask is not None:
                    row = mask[b, hq, q]
                    if row.dtype == torch.bool:
                        row = torch.zeros(tail.length).masked_fill(~row, float("-inf"))
                    more[count:] += row.double()
                sink = None if sinks is None else sinks[hq]
                out[b, hq, q] = _attended(query[b, hq, q], keys, values, more, scaling, softcap, sink)
    return out


def paged_attention_reference(
    query: Tensor,
    rows: Tensor,
    pages: Pages,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Plain loops in float64.

    Args, returns: as `paged_attention`, but [S, Hq, D] fp64; at least one entry has to be visible.
    """
    S, Hq, D = query.shape
    H, size, tail_size = pages.counts.shape[1], pages.size, pages.tail_size
    out = torch.zeros(S, Hq, D, dtype=torch.float64)
    for s in range(S):
        for hq in range(Hq):
            h, at, behind = hq // (Hq // H), [], []
            for n in range(int(pages.counts[s, h])):
                at.append(int(pages.pages[pages.first[s, h] + n // size]) + n % size)
                behind.append(at[-1] + size)
            for n in range(int(pages.tail_begin[s]), int(pages.tail_begin[s] + pages.tail_counts[s])):
                page = int(pages.tail_pages[s, n // tail_size]) + pages.tail_row + h * pages.head_rows
                at.append(page + n % tail_size)
                behind.append(at[-1] + tail_size)
            keys, values = rows[at].double(), rows[behind].double()
            sink = None if sinks is None else sinks[hq]
            out[s, hq] = _attended(query[s, hq], keys, values, torch.zeros(len(at)), scaling, softcap, sink)
    return out


def _attended(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    more: Tensor,
    scaling: float,
    softcap: float | None,
    sink: Tensor | None,
) -> Tensor:
    """[Dv] fp64 of one query [Dk] over t keys and values; `more` [t] is added to the logits."""
    logits = keys @ query.double() * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits + more
    if sink is not None:
        logits = torch.cat([logits, sink.double().view(1)])
    return logits.softmax(0)[: len(keys)] @ values
