"""The kernels for GPUs, in Triton, which not every installation has: this module is imported where they run alone.

Products are made twice, once for the softmax' denominators and once for the largest weights, so that neither writes
more than one number per query or per token.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from madakv.scoring.view import LayerView

_DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_LEAST_TILE = 16
"""Least side of a tile that the matrix units take."""


@triton.jit
def _logits(
    query,
    key,
    place,
    n,
    hidden,
    mask,
    mask_query_stride,
    heard,
    N,
    scaling,
    softcap,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """[E, N] of a tile of queries [E, D] and one of keys [N, D]; -inf where nothing is seen."""
    logits = tl.dot(query.to(DOT), tl.trans(key.to(DOT)), input_precision="ieee") * scaling
    if SOFTCAP:
        logits = (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0) * softcap
    seen = heard[:, None] & (n < N)[None, :]
    if MASK == 0:
        seen = seen & (n[None, :] <= place[:, None])
    elif MASK == 1:
        seen = seen & (tl.load(mask + place[:, None] * mask_query_stride + n[None, :], mask=seen, other=0) != 0)
    else:
        told = tl.load(mask + place[:, None] * mask_query_stride + n[None, :], mask=seen, other=0.0)
        logits += told.to(tl.float32)
    seen = seen & (tl.load(hidden + n, mask=n < N, other=1) == 0)[None, :]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _denominators(
    query,
    key,
    places,
    counts,
    hidden,
    mask,
    sinks,
    lse,
    query_strides,
    key_strides,
    mask_strides,
    E,
    N,
    scaling,
    softcap,
    Hq: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    DOT: tl.constexpr,
):
    """lse [B, Hq, E]: the log of the softmax' denominator of a block of queries."""
    b = tl.program_id(0) // Hq
    head = tl.program_id(0) % Hq
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D)
    heard = e < tl.load(counts + b)
    place = tl.load(places + b * E + e, mask=e < E, other=0)
    at = query + b * query_strides[0] + head * query_strides[1]
    rows = tl.load(at + place[:, None] * query_strides[2] + d, mask=heard[:, None] & (d < D), other=0.0)
    keys = key + b * key_strides[0] + head // G * key_strides[1]
    top = tl.full([BLOCK_E], float("-inf"), tl.float32)
    if SINKS:
        top = tl.zeros([BLOCK_E], tl.float32) + tl.load(sinks + head).to(tl.float32)
    den = tl.where(top == float("-inf"), 0.0, 1.0)
    last = tl.max(tl.where(heard, place, -1), 0) + 1
    end = N if MASK else last
    for start in tl.range(0, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        block = tl.load(keys + n[:, None] * key_strides[2] + d, mask=(n < N)[:, None] & (d < D), other=0.0)
        logits = _logits(
            rows,
            block,
            place,
            n,
            hidden + b * N,
            mask + b * mask_strides[0] + head * mask_strides[1],
            mask_strides[2],
            heard,
            N,
            scaling,
            softcap,
            MASK,
            SOFTCAP,
            DOT,
        )
        new_top = tl.maximum(top, tl.max(logits, 1))
        # Where nothing has been visible yet, -inf minus -inf must not be taken.
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        den = den * tl.exp(top - finite) + tl.sum(tl.exp(logits - finite[:, None]), 1)
        top = new_top
    tl.store(lse + (b * Hq + head) * E + e, top + tl.log(tl.where(den == 0.0, 1.0, den)), mask=e < E)


@triton.jit
def _largest(
    query,
    key,
    places,
    counts,
    hidden,
    mask,
    lse,
    most,
    query_strides,
    key_strides,
    mask_strides,
    E,
    N,
    scaling,
    softcap,
    Hq: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """most [B, Hq, N]: the largest weight of a block of keys."""
    b = tl.program_id(0) // Hq
    head = tl.program_id(0) % Hq
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    keys = key + b * key_strides[0] + head // G * key_strides[1]
    block = tl.load(keys + n[:, None] * key_strides[2] + d, mask=(n < N)[:, None] & (d < D), other=0.0)
    at = query + b * query_strides[0] + head * query_strides[1]
    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    count = tl.load(counts + b)
    for start in tl.range(0, count, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        heard = e < count
        place = tl.load(places + b * E + e, mask=heard, other=0)
        rows = tl.load(at + place[:, None] * query_strides[2] + d, mask=heard[:, None] & (d < D), other=0.0)
        logits = _logits(
            rows,
            block,
            place,
            n,
            hidden + b * N,
            mask + b * mask_strides[0] + head * mask_strides[1],
            mask_strides[2],
            heard,
            N,
            scaling,
            softcap,
            MASK,
            SOFTCAP,
            DOT,
        )
        den = tl.load(lse + (b * Hq + head) * E + e, mask=heard, other=0.0)
        share = tl.where(den[:, None] == float("-inf"), float("-inf"), logits - den[:, None])
        best = tl.maximum(best, tl.max(share, 0))
    tl.store(most + (b * Hq + head) * N + n, tl.exp(best), mask=n < N)


_INTERPRETED = not isinstance(_largest, triton.JITFunction)
"""Whether kernels run in Triton's interpreter, which multiplies no matrices of bfloat16."""


def triton_most(view: LayerView, queries: Tensor) -> Tensor:
    """`most_attention` by the kernels for GPUs: [B, H, G, N] fp32.

    Args:
        view: in fp32, bf16 or fp16; products are made in this dtype and summed in fp32.
        queries: [B, N] bool.
    """
    B, H, N, D = view.key.shape
    Hq = view.query.shape[1]
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (view.query, view.key))
    counts = queries.sum(-1, dtype=torch.int64).to(key.device)
    E = int(counts.max())
    most = torch.zeros(B, Hq, N, dtype=torch.float32, device=key.device)
    if E == 0:
        return most.view(B, H, -1, N)
    places = queries.to(key.device, torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :E].contiguous()
    lse = torch.empty(B, Hq, E, dtype=torch.float32, device=key.device)
    hidden = (view.modality < 0).to(key.device, torch.uint8).contiguous()
    mask, strides, kind = key, (0, 0, 0), 0
    if view.mask is not None:
        mask = view.mask if view.mask.stride(-1) == 1 else view.mask.contiguous()
        strides = (
            mask.stride(0) if len(mask) > 1 else 0,
            mask.stride(1) if mask.shape[1] > 1 else 0,
            mask.stride(2),
        )
        kind = 1 if mask.dtype == torch.bool else 2
        mask = mask.view(torch.uint8) if kind == 1 else mask
    width = max(_LEAST_TILE, triton.next_power_of_2(D))
    block = 64 if width <= 128 else 32
    common: dict[str, Any] = {
        "query_strides": query.stride()[:3],
        "key_strides": key.stride()[:3],
        "mask_strides": strides,
        "E": E,
        "N": N,
        "scaling": view.scaling,
        "softcap": 1.0 if view.softcap is None else view.softcap,
        "Hq": Hq,
        "G": Hq // H,
        "D": D,
        "BLOCK_D": width,
        "BLOCK_E": block,
        "BLOCK_N": block,
        "MASK": kind,
        "SOFTCAP": view.softcap is not None,
        "DOT": tl.float32 if _INTERPRETED else _DOT[key.dtype],
    }
    sinks = key if view.sinks is None else view.sinks.contiguous()
    with torch.cuda.device_of(key):
        _denominators[(B * Hq, triton.cdiv(E, block))](
            query, key, places, counts, hidden, mask, sinks, lse, SINKS=view.sinks is not None, **common
        )
        _largest[(B * Hq, triton.cdiv(N, block))](query, key, places, counts, hidden, mask, lse, most, **common)
    return most.view(B, H, -1, N)
