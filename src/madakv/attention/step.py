"""Attention of the newest tokens over a layer: by a kernel where one fits, else by PyTorch's operations.

`captured_step` is the same as one operation that torch.compile does not look into. Of the kept entries it is told a
number alone: how many they are, and how they are split between heads, would otherwise be part of what is compiled,
which then would have to be compiled anew for every prompt.
"""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from madakv.attention.cpu import cpu_attention
from madakv.attention.decode import decode_attention
from madakv.attention.ragged import ragged_attention
from madakv.cache import Entries, FixedTail, Tail

# Beginning at 2: torch.compile takes sizes of 0 and 1 for constants.
_numbers = count(2)
_published: WeakValueDictionary[int, Entries] = WeakValueDictionary()


def publish(entries: Entries) -> Tensor:
    """Make entries known to `captured_step` for as long as they live.

    Returns:
        [number, 0]: their number is its length, the only integer that torch.compile lets vary from the start. No two
        entries ever have the same, so that a CUDA graph recorded for some is never replayed for others.
    """
    number = next(_numbers)
    _published[number] = entries
    handle = entries.counts.new_empty(number, 0)
    torch._dynamo.maybe_mark_dynamic(handle, 0)
    return handle


def step_attention(
    query: Tensor,
    entries: Entries,
    tail: Tail,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of the newest tokens; see `ragged_attention`."""
    if softcap is None and sinks is None:
        # First, since where a CPU attends to a small model, looking what else might serve takes as long.
        out = cpu_attention(query, entries, tail, scaling, mask)
        if out is not None:
            return out
    options = {"scaling": scaling, "mask": mask, "softcap": softcap, "sinks": sinks}
    other = decode_attention(query, entries, tail, **options)  # type: ignore[arg-type]
    return ragged_attention(query, entries, tail, **options) if other is None else other  # type: ignore[arg-type]


def captured_step(
    query: Tensor,
    handle: Tensor,
    tail: FixedTail,
    *,
    scaling: float,
    mask: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`step_attention` for torch.compile; the handle is that of the entries."""
    keys, values = tail.buffers
    out: Tensor = _captured(query, keys, values, tail.count, mask, sinks, handle.shape[0], scaling, softcap)
    return out


@torch.library.custom_op("madakv::step_attention", mutates_args=())
def _captured(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    written: Tensor,
    mask: Tensor,
    sinks: Tensor | None,
    number: int,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    tail = FixedTail(keys, values, written)
    return step_attention(query, _published[number], tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)


@_captured.register_fake
def _(
    query: Tensor,
    keys: Tensor,  # noqa: ARG001
    values: Tensor,
    written: Tensor,  # noqa: ARG001
    mask: Tensor,  # noqa: ARG001
    sinks: Tensor | None,  # noqa: ARG001
    number: int,  # noqa: ARG001
    scaling: float,  # noqa: ARG001
    softcap: float | None,  # noqa: ARG001
) -> Tensor:
    return query.new_empty(*query.shape[:3], values.shape[-1])
