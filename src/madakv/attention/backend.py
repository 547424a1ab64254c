"""Which code attends to one new token: Triton's kernel where there is a GPU, PyTorch's operations elsewhere.

`MADAKV_BACKEND` asks for one: `auto` (the default), `torch` or `triton`. What is asked for and missing is an error,
never a silent fallback.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from madakv.cache import RaggedEntries, Tail
from madakv.errors import ConfigurationError

VARIABLE = "MADAKV_BACKEND"
BACKENDS = ("auto", "torch", "triton")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

logger = logging.getLogger(__name__)


def decode_attention(
    query: Tensor,
    entries: RaggedEntries,
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
    """
    fits = (
        query.shape[2] == 1
        and query.dtype in _DTYPES
        and query.dtype == entries.keys.dtype == tail.keys.dtype
        and (mask is None or mask.shape[1:3] == (1, 1))
        and not (torch.is_grad_enabled() and query.requires_grad)
    )
    if not fits or chosen(query.device.type) != "triton":
        return None
    from madakv.attention.triton import ragged_decode

    keys, values = tail.buffers
    last = tail.length - 1
    return ragged_decode(
        query,
        # The tail holds them already; the kernel writes the same bytes to the same place.
        tail.keys[:, :, last:],
        tail.values[:, :, last:],
        entries,
        keys,
        values,
        # Filled on the device: nothing is copied, and nothing waits.
        torch.full((1,), last, dtype=torch.int32, device=query.device),
        entries.decode_schedule,
        scaling=scaling,
        mask=mask,
        softcap=softcap,
        sinks=sinks,
    )


@cache
def chosen(device: str) -> str:
    """The backend for tensors on a kind of device, `torch` or `triton`; logged when it is first asked for.

    Raises:
        ConfigurationError: `MADAKV_BACKEND` names no backend, or one that cannot run here.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in BACKENDS:
        raise ConfigurationError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}; got {wanted!r}")
    runs_triton = find_spec("triton") is not None and (device == "cuda" or bool(os.environ.get("TRITON_INTERPRET")))
    if wanted == "triton" and not runs_triton:
        raise ConfigurationError(
            f"{VARIABLE}=triton needs a GPU and the package triton; tensors are on {device!r}, and triton is "
            f"{'here' if find_spec('triton') else 'missing'}"
        )
    name = "triton" if wanted == "triton" or (wanted == "auto" and device == "cuda" and runs_triton) else "torch"
    logger.info("decode attention on %s: %s", device, name)
    return name
