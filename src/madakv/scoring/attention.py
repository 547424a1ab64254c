"""psi: the attention that the proxies pay to every prompt token (MadaKV, importance score).

Costs P x N per head and never N x N: only the proxies' rows of the attention matrix are computed, and keys are read
once for all that is asked of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from madakv.scoring.scratch import scratch_elements
from madakv.scoring.view import LayerView

GroupReduction = Literal["mean", "max"]
"""How the G query heads that share a KV head (GQA) agree on one score."""

_PRODUCT_ROWS = 64
"""Query rows that a CPU multiplies with keys at a time, over the heads of a group: with fewer, fewer keys are read
in vain that lie behind all of them; with more, keys are read less often."""


def proxy_attention(view: LayerView, proxies: Tensor, groups: GroupReduction = "mean") -> Tensor:
    """psi(i) = sum over proxies j of alpha(j -> i), with the softmax in fp32.

    Args:
        view: the layer's prefill.
        proxies: [B, N] bool.
        groups: how query heads of a group combine.

    Returns:
        [B, H, N] fp32, zero at padding.
    """
    return over_groups(attention_paid(view, proxies), groups)


def over_groups(paid: Tensor, groups: GroupReduction) -> Tensor:
    """[..., H, G, N] -> [..., H, N]: what the query heads that share a KV head agree on."""
    return paid.mean(-2) if groups == "mean" else paid.amax(-2)


def attention_paid(view: LayerView, queries: Tensor) -> Tensor:
    """What each query head attends to, summed over the queries of each set.

    All sets are told in one pass over the keys; a query that is in several is computed once.

    Args:
        view: the layer's prefill.
        queries: [..., B, N] bool, or how much each query counts, fp32; leading axes are sets.

    Returns:
        [..., B, H, G, N] fp32, zero at padding.
    """
    B, H, N, _ = view.key.shape
    G = view.query.shape[1] // H
    sets = queries.reshape(-1, B, N)
    paid = torch.zeros(len(sets), B, H, G, N, dtype=torch.float32, device=view.key.device)
    for b, heads, rows, alpha in pieces(view, (sets != 0).any(0)):
        paid[:, b, heads, :, : alpha.shape[-1]] += (sets[:, b, rows].float() @ alpha).permute(2, 0, 1, 3)
    return paid.view(*queries.shape[:-2], B, H, G, N)


def pieces(view: LayerView, queries: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """What the queries attend to, in pieces that fit the scratch memory.

    Args:
        view: the layer's prefill.
        queries: [B, N] bool.

    Yields:
        The batch row; the KV heads; the queries' places [P] int64; alpha [h, G, P, n] over the first n tokens, behind
        which they see nothing.
    """
    _, H, N, D = view.key.shape
    G = view.query.shape[1] // H
    room = scratch_elements(view.key.device)
    padded = (view.modality < 0).any(-1).tolist()
    # On the host, so that the device is waited for once and not for every chunk.
    for b, heard in enumerate(queries.cpu()):
        places = heard.nonzero()[:, 0]
        if not len(places):
            continue
        most = _PRODUCT_ROWS // G if view.key.device.type == "cpu" else N
        P = max(1, min(len(places), most, room // (G * N)))
        step = max(1, min(H, room // (G * P * N), room // (N * D)))
        for start in range(0, H, step):
            heads = slice(start, min(start + step, H))
            key = view.key[b, heads].float()
            for chunk in places.split(P):
                rows = chunk.to(key.device)
                # Behind its last query, a causal chunk sees nothing.
                end = N if view.mask is not None else int(chunk[-1]) + 1
                alpha = _attention(view, b, heads, key[:, :end], rows, first=int(chunk[0]), padded=padded[b])
                yield b, heads, rows, alpha


def _attention(
    view: LayerView, b: int, heads: slice, key: Tensor, rows: Tensor, *, first: int, padded: bool
) -> Tensor:
    """alpha [h, G, P, n] of the queries at `rows` ([P] int64) of batch row b, for a slice of h KV heads.

    Args:
        key: [h, n, D], those heads' first keys in fp32.
        first: the least of `rows`.
        padded: whether the batch row has padding.
    """
    h, n, D = key.shape
    H = view.key.shape[1]
    G, earlier = view.query.shape[1] // H, view.key.shape[2] - view.query.shape[2]
    query = view.query[b, heads.start * G : heads.stop * G, rows - earlier].float().view(h, -1, D).mul_(view.scaling)
    logits = (query @ key.transpose(-1, -2)).view(h, G, -1, n)
    if view.softcap is not None:
        logits = logits.div_(view.softcap).tanh_().mul_(view.softcap)
    # Masks are added and not filled in: on a CPU, that is ten times as fast.
    if padded:
        logits += _bias(view.modality[b, :n] < 0, like=logits)
    blind = None
    if view.mask is None:
        later = torch.arange(first + 1, n, device=rows.device) > rows[:, None]
        logits[..., first + 1 :] += _bias(later, like=logits)
    else:
        # [1 or Hq, P, N] -> [1 or h, 1 or G, P, N]
        mask = view.mask[b if view.mask.shape[0] > 1 else 0][:, rows - earlier]
        mask = mask.view(H, G, -1, n)[heads] if len(mask) > 1 else mask[None]
        logits += _bias(~mask, like=logits) if mask.dtype == torch.bool else mask
        blind = logits.amax(-1, keepdim=True) == float("-inf")
    alpha = logits.softmax(-1)
    if view.sinks is not None:
        # A sink takes its share of what the softmax hands out.
        sinks = view.sinks.float().view(H, G, 1, 1)[heads]
        alpha *= torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)
    return alpha if blind is None else alpha.masked_fill_(blind, 0.0)


def _bias(hidden: Tensor, *, like: Tensor) -> Tensor:
    """-inf where `hidden`, else zero, fp32."""
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def proxy_attention_reference(view: LayerView, proxies: Tensor, groups: GroupReduction = "mean") -> Tensor:
    """The same psi in plain loops over float64, from the full rows of the attention matrix.

    Args, returns: as `proxy_attention`, but [B, H, N] fp64.
    """
    B, H, N, _ = view.key.shape
    G = view.query.shape[1] // H
    psi = torch.zeros(B, H, N, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            per_head = torch.zeros(G, N, dtype=torch.float64)
            for g in range(G):
                for j in proxies[b].nonzero()[:, 0].tolist():
                    row = view.key[b, h].double() @ view.query[b, h * G + g, j].double() * view.scaling
                    if view.softcap is not None:
                        row = torch.tanh(row / view.softcap) * view.softcap
                    if view.mask is None:
                        seen = torch.arange(N) <= j
                    else:
                        rows = view.mask.expand(B, H * G, N, N)[b, h * G + g, j]
                        seen = rows if rows.dtype == torch.bool else torch.ones(N, dtype=torch.bool)
                        row = row if rows.dtype == torch.bool else row + rows.double()
                    row[~(seen & (view.modality[b] >= 0))] = float("-inf")
                    if view.sinks is not None:
                        row = torch.cat([row, view.sinks[h * G + g].double().view(1)])
                    per_head[g] += row.softmax(0)[:N]
            psi[b, h] = per_head.mean(0) if groups == "mean" else per_head.amax(0)
    return psi
