"""One new token per row by the kernel that is chosen, where it has one for the case."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.backend import chosen
from madakv.cache import Entries, Tail

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def decode_attention(
    query: Tensor,
    entries: Entries,
    tail: Tail,
    *,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor | None:
    """Attention of one new token per row by a kernel of its own; see `ragged_attention` for the arguments.

    Returns:
        [B, Hq, 1, Dv]; None where PyTorch's operations are to be used: other backends, several new tokens, masks that
        differ between heads, dtypes that were mixed by autocast, or gradients.

    Raises:
        ConfigurationError: `MADAKV_BACKEND` asks for what is missing, or cannot serve this model.
    """
    fits = (
        query.shape[2] == 1
        and query.dtype in _DTYPES
        and query.dtype == entries.keys.dtype == tail.keys.dtype
        and (mask is None or mask.shape[1:3] == (1, 1))
        and not (torch.is_grad_enabled() and query.requires_grad)
    )
    backend = chosen(query.device.type) if fits else "torch"
    if backend in ("torch", "native"):
        # `step_attention` and `ragged_attention` see to both.
        return None
    if backend != "triton":
        from madakv.attention.varlen import KERNELS, check_model, varlen_decode

        check_model(query, entries)
        return varlen_decode(
            query, entries, tail, KERNELS[backend], scaling=scaling, mask=mask, softcap=softcap, sinks=sinks
        )
    from madakv.attention.triton import decode_schedule, ragged_decode

    # The tail holds them already; the kernel writes the same bytes to the same place.
    key, value, before = tail.newest()
    return ragged_decode(
        query,
        key,
        value,
        entries,
        *tail.buffers,
        before,
        entries.once(decode_schedule),
        scaling=scaling,
        mask=mask,
        softcap=softcap,
        sinks=sinks,
    )
