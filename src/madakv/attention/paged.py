"""Decode attention of many sequences over pages that are read where they lie, by the kernel that is chosen."""

from __future__ import annotations

from torch import Tensor

from madakv.attention.cpu_paged import cpu_paged
from madakv.attention.pages import Pages
from madakv.attention.partial import merge_sinks, partial_attention
from madakv.backend import chosen
from madakv.errors import ConfigurationError


def paged_attention(
    query: Tensor,
    rows: Tensor,
    pages: Pages,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one token of each sequence.

    Several new tokens of one sequence are as many sequences, of the same pages and with tails of growing lengths.

    Args:
        query: [S, Hq, D], float32, bfloat16 or float16.
        rows: [R, D], contiguous, in the dtype of the query: the memory.
        pages: which of them are the sequences'.
        scaling: factor on the logits.
        softcap, sinks: see `LayerView`.

    Returns:
        [S, Hq, D] in the dtype of the query; zero where nothing is visible.

    Raises:
        ValueError: shapes or dtypes that do not belong together.
        ConfigurationError: `MADAKV_BACKEND` asks for a kernel that reads no pages, or that is missing.
    """
    S, Hq, D = query.shape
    H = pages.counts.shape[1]
    if len(pages.counts) != S or Hq % H or rows.shape[1:] != (D,) or rows.dtype != query.dtype:
        raise ValueError(
            f"queries {tuple(query.shape)} of {query.dtype} do not fit {len(pages.counts)} sequences of {H} heads in "
            f"rows {tuple(rows.shape)} of {rows.dtype}"
        )
    backend = chosen(query.device.type)
    if backend == "native":
        out = cpu_paged(query, rows, pages, scaling=scaling, softcap=softcap, sinks=sinks)
        if out is not None:
            return out
    elif backend == "triton":
        from madakv.attention.triton import triton_paged

        return triton_paged(query, rows, pages, scaling=scaling, softcap=softcap, sinks=sinks)
    elif backend != "torch":
        raise ConfigurationError(
            f"MADAKV_BACKEND={backend}: its kernels read no pages; leave it out, or ask for triton or torch"
        )
    return _padded(query, rows, pages, scaling, softcap, sinks)


def _padded(
    query: Tensor, rows: Tensor, pages: Pages, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """By PyTorch's operations, over a copy in which all heads are as long as the longest."""
    S, H = pages.counts.shape
    *at, there = pages.rows()
    # What lies where there is no entry may be no number, which a weight of nothing does not take out.
    key, value = (rows[own].masked_fill(~there[..., None], 0) for own in at)
    part = partial_attention(
        query.view(S, H, -1, query.shape[-1]), key, value, scaling=scaling, mask=there[:, :, None], softcap=softcap
    )
    part = merge_sinks(part.blind(~there.any(-1)[..., None]), sinks)
    return part.out.to(query.dtype).view(query.shape)
