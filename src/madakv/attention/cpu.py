"""The call into the attention kernel, and what it can serve."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.attention.backend import chosen
from madakv.attention.partial import Partial
from madakv.cache import RaggedEntries, Tail
from madakv.native.build import kernels
from madakv.native.plain import is_plain_call

_DIM_STEP = 32
_MOST_DIM = 512
_MOST_ROWS = 16
"""Above this, products that are made at once win over reading memory at once."""


def native_partial(rows: Tensor, entries: RaggedEntries, tail: Tail | None, scaling: float) -> Partial | None:
    """Attention of every head's query rows over its kept entries and, where given, all of its tail.

    Args:
        rows: [B, H, R, D].
        entries: all visible.
        tail: all visible; None = left out.
        scaling: factor on the logits.

    Returns:
        out [B, H, R, D] and lse [B, H, R]; None where PyTorch's operations have to do it: devices other than a CPU,
        dtypes but bfloat16, many rows, gradients, traced or transformed calls, no compiler, or another backend.
    """
    B, H, R, D = rows.shape
    tail_keys, tail_values = (entries.keys, entries.values) if tail is None else tail.buffers
    tensors = (rows, entries.keys, entries.values, tail_keys, tail_values)
    if (
        type(rows) is not Tensor
        or rows.device.type != "cpu"
        or not is_plain_call()
        or (torch.is_grad_enabled() and rows.requires_grad)
        or not entries.counts.is_contiguous()
        or D % _DIM_STEP
        or D > _MOST_DIM
        or R > _MOST_ROWS
        or any(x.dtype != torch.bfloat16 or x.shape[-1] != D or not x.is_contiguous() for x in tensors)
        or chosen("cpu") != "native"
        or (built := kernels()) is None
    ):
        return None
    out, lse = rows.new_empty(B, H, R, D, dtype=torch.float32), rows.new_empty(B, H, R, dtype=torch.float32)
    capacity, length = (0, 0) if tail is None else (tail_keys.shape[2], tail.length)
    built.attention(
        rows.data_ptr(),
        entries.keys.data_ptr(),
        entries.values.data_ptr(),
        entries.counts.data_ptr(),
        B * H,
        tail_keys.data_ptr(),
        tail_values.data_ptr(),
        capacity,
        length,
        R,
        D,
        scaling,
        torch.get_num_threads(),
        out.data_ptr(),
        lse.data_ptr(),
    )
    return Partial(out=out, lse=lse)
