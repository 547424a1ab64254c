"""Attention of the newest tokens over what a layer remembers."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.attention.step import captured_step, publish, step_attention
from madakv.cache import FixedTail, LayerMemory


def attend(
    query: Tensor,
    memory: LayerMemory,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention over kept entries and tail; see `ragged_attention`."""
    entries, tail = memory.kept, memory.tail
    if not isinstance(tail, FixedTail):
        return step_attention(query, entries, tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)
    mask = tail.visible(query.shape[2]) if mask is None else mask
    if tail.handle is not None and torch.compiler.is_compiling():
        return captured_step(query, tail.handle, tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)
    out = step_attention(query, entries, tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)
    if tail.handle is None and query.shape[2] == 1:
        # Only now: the step has made the tables that kernels read, which no capture may do.
        tail.handle = publish(entries)
    return out
