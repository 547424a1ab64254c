"""psi: the attention that the proxies pay to every prompt token (MadaKV, importance score).

Costs P x N per head and never N x N: only the proxies' rows of the attention matrix are computed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from madakv.scoring.view import LayerView

GroupReduction = Literal["mean", "max"]
"""How the G query heads that share a KV head agree on one score."""

_SCRATCH_ELEMENTS = 1 << 22
"""Elements of fp32 logits computed at a time (16 MiB, and a few copies of that while the softmax runs). Rows of the
batch, heads and proxies go one chunk after another; the least chunk is one proxy of one head's group."""


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
    """[B, H, G, N] -> [B, H, N]: what the query heads that share a KV head agree on."""
    return paid.mean(2) if groups == "mean" else paid.amax(2)


def attention_paid(view: LayerView, proxies: Tensor) -> Tensor:
    """What each query head's proxies attend to, summed over proxies.

    Args:
        view: the layer's prefill.
        proxies: [B, N] bool.

    Returns:
        [B, H, G, N] fp32, zero at padding.
    """
    B, H, N, D = view.key.shape
    G = view.query.shape[1] // H
    paid = torch.zeros(B, H, G, N, dtype=torch.float32, device=view.key.device)
    for b, rows in enumerate(_proxy_rows(proxies)):
        if not len(rows):
            continue
        P = max(1, min(len(rows), _SCRATCH_ELEMENTS // (G * N)))
        step = max(1, min(H, _SCRATCH_ELEMENTS // (G * P * N), _SCRATCH_ELEMENTS // (N * D)))
        for start in range(0, H, step):
            heads = slice(start, min(start + step, H))
            key = view.key[b, heads].float()
            for chunk in rows.split(P):
                paid[b, heads] += _attention(view, b, heads, key, chunk).sum(2)
    return paid


def _attention(view: LayerView, b: int, heads: slice, key: Tensor, rows: Tensor) -> Tensor:
    """alpha [h, G, P, N] of the proxies at `rows` ([P] int64) of batch row b, for a slice of h KV heads.

    Args:
        key: [h, N, D], those heads' keys in fp32.
    """
    h, N, _ = key.shape
    H = view.key.shape[1]
    G = view.query.shape[1] // H
    query = view.query[b, heads.start * G : heads.stop * G, rows].float().view(h, -1, key.shape[-1])
    logits = (query @ key.transpose(-1, -2)).mul_(view.scaling).view(h, G, -1, N)
    if view.softcap is not None:
        logits = logits.div_(view.softcap).tanh_().mul_(view.softcap)
    hidden = ~(view.modality[b] >= 0)
    if view.mask is None:
        hidden = hidden | (torch.arange(N, device=rows.device) > rows[:, None])
    else:
        # [1 or Hq, P, N] -> [1 or h, 1 or G, P, N]
        mask = view.mask[b if view.mask.shape[0] > 1 else 0][:, rows]
        mask = mask.view(H, G, -1, N)[heads] if len(mask) > 1 else mask[None]
        if mask.dtype == torch.bool:
            hidden = hidden | ~mask
        else:
            logits = logits.add_(mask)
    logits = logits.masked_fill_(hidden, float("-inf"))
    sinks = None if view.sinks is None else view.sinks.float().view(H, G, 1, 1)[heads]
    return _softmax(logits, sinks)


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


def _proxy_rows(proxies: Tensor) -> list[Tensor]:
    """The proxies' positions in each row."""
    return [row.nonzero()[:, 0] for row in proxies]


def _softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last axis; a row that sees nothing gives zeros, a sink takes its share."""
    top = logits.amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks)
    weight = torch.exp(logits - top.masked_fill(top == float("-inf"), 0.0))
    total = weight.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks - top)
    return weight / total.masked_fill(total == 0, 1.0)
