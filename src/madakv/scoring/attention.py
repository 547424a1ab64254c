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

_SCRATCH_ELEMENTS = 1 << 24
"""Most fp32 logits held at a time (64 MiB); more heads are scored one chunk after another."""


def proxy_attention(view: LayerView, proxies: Tensor, groups: GroupReduction = "mean") -> Tensor:
    """psi(i) = sum over proxies j of alpha(j -> i), with the softmax in fp32.

    Args:
        view: the layer's prefill.
        proxies: [B, N] bool.
        groups: how query heads of a group combine.

    Returns:
        [B, H, N] fp32, zero at padding.
    """
    B, H, N, D = view.key.shape
    G = view.query.shape[1] // H
    index, used = _proxy_rows(proxies)
    P = index.shape[1]
    q = view.query.gather(2, index[:, None, :, None].expand(-1, H * G, -1, D)).view(B, H, G, P, D)
    visible, bias = _proxy_mask_rows(view, index)
    psi = torch.empty(B, H, N, dtype=torch.float32, device=view.key.device)
    step = max(1, _SCRATCH_ELEMENTS // max(1, B * G * P * N))
    for start in range(0, H, step):
        heads = slice(start, start + step)
        logits = q[:, heads].flatten(2, 3).float() @ view.key[:, heads].float().transpose(-1, -2)
        logits = (logits * view.scaling).unflatten(2, (G, P))
        if view.softcap is not None:
            logits = torch.tanh(logits / view.softcap) * view.softcap
        if bias is not None:
            grouped = bias.unflatten(1, (H, G))[:, heads] if bias.shape[1] == H * G else bias[:, None]
            logits = logits + grouped
        grouped = visible.unflatten(1, (H, G))[:, heads] if visible.shape[1] == H * G else visible[:, None]
        alpha = _softmax(logits.masked_fill(~grouped, float("-inf")), _group_sinks(view, heads, G))
        alpha = alpha * used[:, None, None, :, None]
        per_query_head = alpha.sum(3)
        psi[:, heads] = per_query_head.mean(2) if groups == "mean" else per_query_head.amax(2)
    return psi


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


def _proxy_rows(proxies: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the proxies, [B, P] with P the most that a row has, and which of them are real."""
    count = proxies.sum(-1)
    P = max(1, int(count.max()))
    # A stable sort of "not a proxy" brings each row's proxies to the front, in order.
    index = (~proxies).to(torch.int8).argsort(dim=-1, stable=True)[:, :P]
    return index, torch.arange(P, device=proxies.device) < count[:, None]


def _proxy_mask_rows(view: LayerView, index: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the proxies may see, [B, 1 or Hq, P, N] bool, and the additive part of a float mask."""
    B, N = view.modality.shape
    valid = (view.modality >= 0)[:, None, None, :]
    if view.mask is None:
        causal = torch.arange(N, device=index.device) <= index[..., None]
        return causal[:, None] & valid, None
    rows = view.mask.expand(B, -1, -1, -1)
    rows = rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, N))
    if rows.dtype == torch.bool:
        return rows & valid, None
    return valid.expand_as(rows), rows.float()


def _group_sinks(view: LayerView, heads: slice, G: int) -> Tensor | None:
    if view.sinks is None:
        return None
    return view.sinks.float().view(1, -1, G, 1, 1)[:, heads]


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
