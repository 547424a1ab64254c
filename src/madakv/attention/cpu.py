"""The call into the CPU kernel (`madakv.native`), and what it can serve.

All that cannot change from step to step is looked at once per layer, since a step of a small model is mostly such
looking.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from madakv.attention.partial import Partial
from madakv.backend import chosen
from madakv.cache import Entries, Tail
from madakv.native.build import kernels
from madakv.native.plain import is_plain_call

KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_DIM_STEP = 8
_MOST_DIM = 512
MOST_ROWS = 64
"""Above this, products that are made at once win over reading memory at once."""


def is_dim(D: int) -> bool:
    """Whether the kernel takes keys or values of so many numbers."""
    return D % _DIM_STEP == 0 and 0 < D <= _MOST_DIM


class _Layer(ctypes.Structure):
    """`Layer` of attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("kind", "B", "H", "Dk", "Dv")),
        ("counts", ctypes.c_void_p),
    )


class _Mask(ctypes.Structure):
    """`Mask` of attention.cpp."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row", "head", "query")),
        ("additive", ctypes.c_int),
    )


class _Served(NamedTuple):
    """A layer that the kernel can read."""

    attend: Callable[..., None]
    layer: Any
    dtype: torch.dtype
    shape: tuple[int, int, int, int]


def cpu_attention(
    query: Tensor, entries: Entries, tail: Tail, scaling: float, mask: Tensor | None = None
) -> Tensor | None:
    """Attention of new tokens over a layer; see `ragged_attention` for the arguments.

    Returns:
        [B, Hq, Q, Dv] in the dtype of the query, its memory in the order [B, Q, Hq, Dv]; None where PyTorch's
        operations have to do it: devices other than a CPU, dtypes other than bfloat16, float16 and float32 or mixed
        ones, dims that are no multiple of 8 up to 512, more than 64 rows per KV head, gradients, traced or
        transformed calls, no compiler, or another backend.
    """
    served = _serving(query, entries)
    if served is None:
        return None
    B, _, _, Dv = served.shape
    Hq, Q = query.shape[1:3]
    out = torch.empty((B, Q, Hq, Dv), dtype=served.dtype)
    done = _call(served, query, entries, tail, scaling, mask, out.data_ptr(), None, None)
    return out.transpose(1, 2) if done else None


def cpu_partial(
    query: Tensor, entries: Entries, tail: Tail | None, scaling: float, mask: Tensor | None = None
) -> Partial | None:
    """The same before it is rounded, with the softmax's denominator.

    Args:
        query, entries, scaling, mask: see `cpu_attention`.
        tail: None = left out.

    Returns:
        out [B, H, G * Q, Dv] and lse [B, H, G * Q]; None as there.
    """
    served = _serving(query, entries)
    if served is None:
        return None
    B, H, _, Dv = served.shape
    R = query.shape[1] // H * query.shape[2]
    out, lse = torch.empty((B, H, R, Dv), dtype=torch.float32), torch.empty((B, H, R), dtype=torch.float32)
    done = _call(served, query, entries, tail, scaling, mask, None, out.data_ptr(), lse.data_ptr())
    return Partial(out=out, lse=lse) if done else None


def _serving(query: Tensor, entries: Entries) -> _Served | None:
    """The layer as the kernel reads it; None if it cannot serve this query over it."""
    if type(query) is not Tensor or not query.is_cpu or not is_plain_call() or chosen("cpu") != "native":
        return None
    served = entries.once(_served)
    if served is None or query.dtype is not served.dtype or (query.requires_grad and torch.is_grad_enabled()):
        return None
    return served


def _served(entries: Entries) -> _Served | None:
    """For `Entries.once`: so it holds no tensor, and addresses of none but the counts."""
    keys, values, counts = entries.keys, entries.values, entries.counts
    B, H = counts.shape
    Dk, Dv = keys.shape[-1], values.shape[-1]
    if (
        keys.dtype not in KINDS
        or keys.dtype != values.dtype
        or not is_dim(Dk)
        or not is_dim(Dv)
        or not all(x.is_cpu and x.is_contiguous() for x in (keys, values, counts))
        or (built := kernels()) is None
    ):
        return None
    layer = _Layer(KINDS[keys.dtype], B, H, Dk, Dv, counts.data_ptr())
    return _Served(built.attend, ctypes.byref(layer), keys.dtype, (B, H, Dk, Dv))


def _call(
    served: _Served,
    query: Tensor,
    entries: Entries,
    tail: Tail | None,
    scaling: float,
    mask: Tensor | None,
    *to: int | None,
) -> bool:
    """Call the kernel; returns whether it could serve this tail and so many rows."""
    B, H, Dk, Dv = served.shape
    rows, Hq, Q, D = query.shape
    if Hq * Q > MOST_ROWS * H or (rows, D) != (B, Dk):
        return False
    keys, values = entries.keys, entries.values
    tail_keys, tail_values, capacity, length = keys, values, 0, 0
    if tail is not None:
        tail_keys, tail_values = tail.buffers
        capacity, length = tail_keys.shape[2], tail.length
        if (
            tail_keys.dtype is not served.dtype
            or tail_values.dtype is not served.dtype
            or tail_keys.shape != (B, H, capacity, Dk)
            or tail_values.shape != (B, H, capacity, Dv)
        ):
            return False
    seen = None if mask is None else _mask(mask, query, length)
    query = query.contiguous()
    served.attend(
        served.layer,
        keys.data_ptr(),
        values.data_ptr(),
        query.data_ptr(),
        Hq,
        Q,
        tail_keys.data_ptr(),
        tail_values.data_ptr(),
        capacity,
        length,
        None if seen is None else ctypes.byref(seen[0]),
        scaling,
        torch.get_num_threads(),
        *to,
    )
    return True


def _mask(mask: Tensor, query: Tensor, length: int) -> tuple[_Mask, Tensor]:
    """The mask as the kernel reads it, and what holds its memory."""
    if mask.dtype != torch.bool:
        mask = mask.float()
    B, _, Q, _ = query.shape
    mask = mask.expand(B, -1, Q, length)
    if mask.stride(3) != 1:
        mask = mask.contiguous()
    row, head, step = mask.stride()[:3]
    return _Mask(mask.data_ptr(), row, 0 if mask.shape[1] == 1 else head, step, mask.dtype != torch.bool), mask
