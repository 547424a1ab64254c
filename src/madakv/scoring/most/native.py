"""The call into the CPU kernel, `native/most.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from madakv.backend import chosen
from madakv.native.build import kernels
from madakv.native.plain import is_plain_call
from madakv.scoring.view import LayerView

_KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


class _Asked(ctypes.Structure):
    """`Asked` of most.cpp."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("kind", "Hq", "H", "D")),
        *((name, ctypes.c_int64) for name in ("E", "N")),
        *((name, ctypes.c_void_p) for name in ("query", "key")),
        *((name, ctypes.c_int64) for name in ("head_stride", "key_stride")),
        *((name, ctypes.c_void_p) for name in ("places", "hidden", "mask")),
        *((name, ctypes.c_int64) for name in ("mask_head", "mask_query")),
        ("additive", ctypes.c_int),
        ("sinks", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("scaling", "softcap")),
        ("value", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("value_head_stride", "value_stride", "Dv")),
        ("attended", ctypes.c_void_p),
    )


def native_most(view: LayerView, queries: Tensor) -> Tensor | None:
    """`most_attention` by the kernel for CPUs; None where PyTorch's operations have to do it.

    These are other devices, dtypes than bfloat16, float16 and float32, traced or transformed calls, no compiler, and
    another backend.
    """
    found = _asked_of_the_kernel(view, queries, attend=False)
    return None if found is None else found[0]


def native_most_and_attended(view: LayerView, queries: Tensor) -> tuple[Tensor, Tensor] | None:
    """`most_and_attended` by the same kernel; None where it cannot, as above, or where gradients are asked for."""
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in (view.query, view.key, view.value))
    if graded or view.value.dtype is not view.key.dtype:
        return None
    return _asked_of_the_kernel(view, queries, attend=True)


def _asked_of_the_kernel(view: LayerView, queries: Tensor, *, attend: bool) -> tuple[Tensor, Tensor] | None:
    """The most [B, H, G, N] fp32, and what attention gives, [B, Hq, Q, Dv] in the view's dtype if `attend`."""
    key, value = view.key, view.value
    if (
        not key.is_cpu
        or key.dtype not in _KINDS
        or view.query.dtype is not key.dtype
        or not is_plain_call()
        or chosen("cpu") != "native"
        or (built := kernels()) is None
    ):
        return None
    B, H, N, D = key.shape
    Hq, Q, Dv = view.query.shape[1], view.query.shape[2], value.shape[-1]
    earlier = N - Q
    most = torch.zeros(B, H, Hq // H, N, dtype=torch.float32)
    out = value.new_zeros(B, Hq, Q if attend else 0, Dv)
    sinks = None if view.sinks is None else view.sinks.float().contiguous()
    mask = view.mask
    if mask is not None:
        mask = mask if mask.dtype == torch.bool else mask.float()
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    for b, heard in enumerate(queries):
        places = heard.nonzero()[:, 0]
        if not len(places):
            continue
        query = view.query[b, :, places - earlier].contiguous()
        row_key, row_value = (x[b] if x.stride(-1) == 1 else x[b].contiguous() for x in (key, value))
        hidden = view.modality[b] < 0
        row = None if mask is None else mask[b if len(mask) > 1 else 0]
        attended = torch.empty(Hq, len(places), Dv, dtype=torch.float32) if attend else None
        asked = _Asked(
            kind=_KINDS[key.dtype],
            Hq=Hq,
            H=H,
            D=D,
            E=len(places),
            N=N,
            query=query.data_ptr(),
            key=row_key.data_ptr(),
            head_stride=row_key.stride(0),
            key_stride=row_key.stride(1),
            places=places.data_ptr(),
            hidden=hidden.data_ptr() if bool(hidden.any()) else None,
            # Its first row is that of the first query.
            mask=None if row is None else row.data_ptr() - earlier * row.stride(1) * row.element_size(),
            mask_head=0 if row is None or len(row) == 1 else row.stride(0),
            mask_query=0 if row is None else row.stride(1),
            additive=row is not None and row.dtype != torch.bool,
            sinks=None if sinks is None else sinks.data_ptr(),
            scaling=view.scaling,
            softcap=view.softcap or 0.0,
            value=row_value.data_ptr(),
            value_head_stride=row_value.stride(0),
            value_stride=row_value.stride(1),
            Dv=Dv,
            attended=None if attended is None else attended.data_ptr(),
        )
        built.most(ctypes.byref(asked), torch.get_num_threads(), most[b].data_ptr())
        if attended is not None:
            out[b, :, places - earlier] = attended.to(out.dtype)
    return most, out
