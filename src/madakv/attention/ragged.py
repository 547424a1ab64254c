"""Attention of new tokens over a layer's kept prompt entries and its tail, without a loop over heads.

On a CPU a kernel of its own does it where it can (`madakv.attention.cpu`). Elsewhere PyTorch's operations read uneven
heads, which lie one behind another, as equal tiles, whoever they belong to: a tile is attended by the head in its
middle, what other heads have in it is read through windows of half a tile, and the parts are merged per head. Nothing
is padded, and the split of long heads comes for free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.attention.cpu import cpu_attention, cpu_partial
from madakv.attention.partial import Partial, merge, merge_scattered, merge_sinks, partial_attention
from madakv.attention.tiles import tiles_of
from madakv.cache import Entries, Tail


def ragged_attention(
    query: Tensor,
    entries: Entries,
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
    if softcap is None and sinks is None:
        out = cpu_attention(query, entries, tail, scaling, mask)
        if out is not None:
            return out
    part = ragged_partial(query, entries, tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)
    B, Hq, Q, _ = query.shape
    return part.out.to(query.dtype).view(B, Hq, Q, -1)


def ragged_partial(
    query: Tensor,
    entries: Entries,
    tail: Tail,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Partial:
    """The same before it is rounded, with the softmax's denominator.

    Returns:
        out [B, H, G * Q, Dv] and lse [B, H, G * Q].
    """
    B, Hq, Q, _ = query.shape
    H = entries.counts.shape[1]
    G = Hq // H
    part = cpu_partial(query, entries, tail, scaling, mask) if softcap is None else None
    if part is None:
        rows = query.reshape(B, H, G * Q, -1)
        part = _tail_part(rows, tail, mask, G, Q, scaling, softcap)
        if any(entries.lengths):
            part = merge(part, _prompt_part(rows, entries, scaling, softcap))
    return merge_sinks(part, sinks)


def weights_on_prompt(
    query: Tensor, entries: Entries, lse: Tensor, *, scaling: float, softcap: float | None = None
) -> list[Tensor]:
    """What new tokens attend to among prompt entries of which all heads of a row hold equally many.

    Args:
        query: [B, Hq, Q, Dk].
        entries: heads of a row equally long.
        lse: [B, H, G * Q] fp32, from `ragged_partial` with the same query.
        scaling, softcap: as there.

    Returns:
        For each row [H, G, Q, t] fp32.
    """
    Hq, Q = query.shape[1:3]
    H = entries.counts.shape[1]
    lengths = entries.lengths[::H]
    weights = []
    for b, keys in enumerate(entries.keys.split([H * t for t in lengths])):
        rows = query[b].reshape(H, Hq // H * Q, -1).float()
        logits = rows @ keys.view(H, -1, keys.shape[-1]).float().transpose(1, 2) * scaling
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        weights.append(torch.exp(logits - lse[b][..., None]).view(H, Hq // H, Q, -1))
    return weights


def weights_on_entries(
    query: Tensor, entries: Entries, lse: Tensor, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """What new tokens attend to among entries of uneven heads.

    Args:
        query: [B, Hq, Q, Dk].
        entries: all visible.
        lse: [B, H, G * Q] fp32, from `ragged_partial` with the same query.
        scaling, softcap: as there.

    Returns:
        [T, G, Q] fp32, in the order of the entries.
    """
    B, Hq, Q, D = query.shape
    H = entries.counts.shape[1]
    rows = query.reshape(B * H, -1, D).float()
    owner = torch.arange(B * H, device=query.device).repeat_interleave(entries.counts.flatten())
    weights = []
    # A few at a time: each entry meets a copy of its head's queries.
    step = max(1, (1 << 20) // rows[0].numel())
    for head, keys in zip(owner.split(step), entries.keys.split(step), strict=True):
        logits = (rows[head] @ keys.float()[..., None])[..., 0] * scaling
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        weights.append(torch.exp(logits - lse.flatten(0, 1)[head]))
    return torch.cat(weights).view(len(owner), Hq // H, Q)


def weights_on_tail(
    query: Tensor, tail: Tail, lse: Tensor, *, scaling: float, mask: Tensor | None, softcap: float | None = None
) -> Tensor:
    """What new tokens attend to among those that came after the prompt.

    Args:
        query: [B, Hq, Q, Dk].
        tail: of n tokens, the new ones included.
        lse, scaling, mask, softcap: as of `ragged_partial`.

    Returns:
        [B, H, G, Q, n] fp32.
    """
    B, Hq, Q, D = query.shape
    H = tail.keys.shape[1]
    logits = query.reshape(B, H, -1, D).float() @ tail.keys.float().transpose(-1, -2) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    weights = torch.exp(logits - lse[..., None]).view(B, H, Hq // H, Q, -1)
    if mask is None:
        return weights
    mask = mask.expand(B, -1, Q, -1)
    mask = mask.unflatten(1, (H, Hq // H)) if mask.shape[1] == Hq else mask[:, :, None]
    return weights * (mask if mask.dtype == torch.bool else mask.float().exp())


def _tail_part(
    rows: Tensor, tail: Tail, mask: Tensor | None, G: int, Q: int, scaling: float, softcap: float | None
) -> Partial:
    if mask is None:
        return partial_attention(rows, tail.keys, tail.values, scaling=scaling, softcap=softcap)
    B, H = rows.shape[:2]
    per_head = mask.unflatten(1, (H, G)) if mask.shape[1] == H * G else mask[:, :, None]
    mask = per_head.expand(B, -1, G, Q, -1).flatten(2, 3)
    part = partial_attention(rows, tail.keys, tail.values, scaling=scaling, mask=mask, softcap=softcap)
    hidden = ~mask if mask.dtype == torch.bool else mask == float("-inf")
    return part.blind(hidden.all(-1))


def _prompt_part(rows: Tensor, entries: Entries, scaling: float, softcap: float | None) -> Partial:
    B, H, R, D = rows.shape
    if entries.even:
        key = entries.keys.view(B, H, -1, D)
        value = entries.values.view(B, H, key.shape[2], -1)
        return partial_attention(rows, key, value, scaling=scaling, softcap=softcap)
    schedule = entries.once(tiles_of)
    query = rows.reshape(B * H, R, D).index_select(0, schedule.owner)[:, None]
    tiles, _, _, size = schedule.mask.shape
    used = tiles * size
    first = partial_attention(
        query[:tiles],
        entries.keys[:used].view(tiles, 1, size, D),
        entries.values[:used].view(tiles, 1, size, -1),
        scaling=scaling,
        mask=schedule.mask,
        softcap=softcap,
    )
    out, lse = first.out[:, 0], first.lse[:, 0]
    windows, _, _, width = schedule.window_mask.shape
    if windows:
        extra = partial_attention(
            query[tiles:],
            entries.keys.index_select(0, schedule.window).view(windows, 1, width, D),
            entries.values.index_select(0, schedule.window).view(windows, 1, width, -1),
            scaling=scaling,
            mask=schedule.window_mask,
            softcap=softcap,
        )
        out, lse = torch.cat([out, extra.out[:, 0]]), torch.cat([lse, extra.lse[:, 0]])
    merged = merge_scattered(out, lse, schedule.owner, B * H)
    return Partial(out=merged.out.view(B, H, R, -1), lse=merged.lse.view(B, H, R))
