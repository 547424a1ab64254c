"""The most that any of many queries attends to each token: what an echo hears.

As many queries may be heard as the prompt has tokens. So nothing of queries x tokens is written to memory where a
kernel runs: the softmax' denominator of each query comes first, then the largest weight per token, block by block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.backend import chosen
from madakv.scoring.attention import pieces
from madakv.scoring.most.native import native_most, native_most_and_attended
from madakv.scoring.view import LayerView


def most_attention(view: LayerView, queries: Tensor) -> Tensor:
    """The most that any of the queries attends to each token, of each query head.

    Args:
        view: the layer's prefill; or of a later pass, with the queries [B, Hq, Q, Dk] of its newest Q tokens alone,
            and as many rows of a mask.
        queries: [B, N] bool, among those that there are.

    Returns:
        [B, H, G, N] fp32, zero at padding; NaN somewhere in a head that computes NaN.
    """
    if chosen(view.key.device.type) == "triton":
        from madakv.scoring.most.gpu import triton_most

        return triton_most(view, queries)
    found = native_most(view, queries)
    return most_of_pieces(view, queries) if found is None else found


def most_and_attended(view: LayerView, queries: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same, and what the queries' attention gives; None where there is no kernel for both in one.

    Args:
        view, queries: as above.

    Returns:
        `most_attention`'s, and [B, Hq, Q, Dv] in the dtype of the values: zeros for queries that are not among those
        asked for, and for those that see nothing.
    """
    return native_most_and_attended(view, queries)


def most_of_pieces(view: LayerView, queries: Tensor) -> Tensor:
    """The same by PyTorch's operations, in pieces of [queries, N]."""
    B, H, N, _ = view.key.shape
    most = torch.zeros(B, H, view.query.shape[1] // H, N, dtype=torch.float32, device=view.key.device)
    for b, heads, _, alpha in pieces(view, queries):
        seen = most[b, heads, :, : alpha.shape[-1]]
        torch.maximum(seen, alpha.amax(2), out=seen)
    return most


def most_attention_reference(view: LayerView, queries: Tensor) -> Tensor:
    """The same, one query after another: [B, H, G, N] fp64."""
    B, H, N, _ = view.key.shape
    G, earlier = view.query.shape[1] // H, N - view.query.shape[2]
    most = torch.zeros(B, H, G, N, dtype=torch.float64)
    for b in range(B):
        for head in range(H * G):
            key = view.key[b, head // G].double()
            for j in queries[b].nonzero()[:, 0].tolist():
                row = key @ view.query[b, head, j - earlier].double() * view.scaling
                if view.softcap is not None:
                    row = torch.tanh(row / view.softcap) * view.softcap
                visible = view.modality[b] >= 0
                if view.mask is None:
                    visible = visible & (torch.arange(N) <= j)
                else:
                    told = view.mask.expand(B, H * G, -1, N)[b, head, j - earlier]
                    if told.dtype == torch.bool:
                        visible = visible & told
                    else:
                        row = row + told.double()
                row = row.masked_fill(~visible, float("-inf"))
                sink = float("-inf") if view.sinks is None else float(view.sinks[head])
                total = row.exp().sum() + torch.tensor(sink, dtype=torch.float64).exp()
                if total > 0:
                    most[b, head // G, head % G] = torch.maximum(most[b, head // G, head % G], row.exp() / total)
    return most
