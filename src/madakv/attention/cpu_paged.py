"""The call into the CPU kernel (`madakv.native`) over pages, and what it can serve."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from madakv.attention.cpu import KINDS, MOST_ROWS, is_dim
from madakv.attention.pages import Pages
from madakv.native.build import kernels
from madakv.native.plain import is_plain_call


class _Pages(ctypes.Structure):
    """`Pages` of attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("kind", "S", "H", "D", "size", "tail_size")),
        *((name, ctypes.c_void_p) for name in ("pages", "first", "counts")),
        *((name, ctypes.c_void_p) for name in ("tail_pages", "tail_begin", "tail_counts")),
        *((name, ctypes.c_int64) for name in ("capacity", "head_rows", "tail_row")),
    )


def cpu_paged(
    query: Tensor, rows: Tensor, pages: Pages, *, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor | None:
    """Attention of one token of each sequence; see `paged_attention` for the arguments.

    Returns:
        [S, Hq, D]; None where PyTorch's operations have to do it: other dtypes, dims that are no multiple of 8 up to
        512, more than 64 rows per KV head, gradients, traced or transformed calls, or no compiler.
    """
    S, H = pages.counts.shape
    Hq, D = query.shape[1:]
    if (
        query.dtype not in KINDS
        or not is_dim(D)
        or Hq > MOST_ROWS * H
        or not is_plain_call()
        or (query.requires_grad and torch.is_grad_enabled())
        or (built := kernels()) is None
    ):
        return None
    if not rows.is_contiguous():
        raise ValueError("the memory's rows have to be contiguous")
    query, out = query.contiguous(), torch.empty(S, Hq, D, dtype=query.dtype)
    sinks = None if sinks is None else sinks.float().contiguous()
    tables = (pages.pages, pages.first, pages.counts, pages.tail_pages, pages.tail_begin, pages.tail_counts)
    at = _Pages(
        KINDS[query.dtype],
        *(S, H, D, pages.size, pages.tail_size),
        *(table.data_ptr() for table in tables),
        *(pages.tail_capacity, pages.head_rows, pages.tail_row),
    )
    built.attend_pages(
        ctypes.byref(at),
        rows.data_ptr(),
        query.data_ptr(),
        Hq,
        scaling,
        softcap or 0.0,
        None if sinks is None else sinks.data_ptr(),
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out
