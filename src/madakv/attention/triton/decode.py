"""The two launches of a decode step: read all chunks, then merge."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from madakv.attention.triton.chunks import attend_chunks
from madakv.attention.triton.join import join_parts
from madakv.attention.triton.schedule import DecodeSchedule
from madakv.attention.triton.tuning import Tuning
from madakv.cache import Entries

DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

INTERPRETED = not isinstance(attend_chunks, triton.JITFunction)
"""Whether kernels run in Triton's interpreter, which multiplies no matrices of bfloat16."""

LEAST_TILE = 16
"""Least side of a tile that the matrix units take."""


def ragged_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    entries: Entries,
    tail_keys: Tensor,
    tail_values: Tensor,
    tail_length: Tensor,
    schedule: DecodeSchedule,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    workspace: Tensor | None = None,
    tuning: Tuning | None = None,
) -> Tensor:
    """Append one new token per row to the tail and attend from it: to kept prompt entries, tail and itself.

    Nothing waits for the device, and neither launches nor addresses depend on what lies in tensors: captured in a
    CUDA graph, the step goes on being right while `tail_length` grows, up to the tail's capacity. Who calls advances
    `tail_length` after the step, on the device; all layers can share it. A tail that is full already is not written
    to.

    Args:
        query: [B, Hq, 1, Dk], fp32, bf16 or fp16; products are made in this dtype and summed in fp32.
        key: [B, H, 1, Dk], the new token's.
        value: [B, H, 1, Dv].
        entries: kept prompt entries, all visible.
        tail_keys: [B, H, capacity, Dk], contiguous; what lies at and behind `tail_length` is not read.
        tail_values: [B, H, capacity, Dv], likewise.
        tail_length: [1] int32 or int64 on the device, entries in the tail before this token.
        schedule: made from `entries.lengths`.
        scaling: factor on the logits.
        mask: [B or 1, 1, 1, W], bool or additive, W above the tail's length; the new token is at that length. None =
            all is visible.
        softcap, sinks: see `LayerView`.
        workspace: fp32, contiguous, of at least `schedule.workspace_size` elements; None = allocated.
        tuning: launch parameters; None = by the sizes.

    Returns:
        [B, Hq, 1, Dv] in the dtype of the query, zero where no key is visible.
    """
    B, Hq, _, Dk = query.shape
    H, capacity, Dv = tail_values.shape[1:]
    G = Hq // H
    _check(query, key, value, entries, tail_keys, tail_values, tail_length, schedule, mask)
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    tile = {name: max(LEAST_TILE, triton.next_power_of_2(n)) for name, n in (("BLOCK_DK", Dk), ("BLOCK_DV", Dv))}
    if tuning is None:
        sizes = zip(tile.values(), (entries.keys, entries.values), strict=True)
        tuning = Tuning.of(sum(width * x.element_size() for width, x in sizes))
    parts, size = schedule.parts(capacity), schedule.workspace_size(capacity, G, Dv)
    if workspace is None:
        workspace = torch.empty(size, dtype=torch.float32, device=query.device)
    elif workspace.dtype != torch.float32 or workspace.numel() < size or not workspace.is_contiguous():
        raise ValueError(f"the workspace has to be contiguous fp32 of {size} elements at least")
    parts_out, parts_lse = workspace.view(-1)[:size].split([parts * G * Dv, parts * G])
    out = torch.empty(B, Hq, 1, Dv, dtype=query.dtype, device=query.device)
    common: dict[str, Any] = {
        "tail_length": tail_length,
        "query_row_stride": query.stride(0),
        "query_head_stride": query.stride(1),
        "capacity": capacity,
        "tail_splits": schedule.tail_splits(capacity),
        "tail_chunk": schedule.tail_chunk(capacity),
        "prompt_parts": len(schedule.chunks),
        "scaling": scaling,
        "softcap": 1.0 if softcap is None else softcap,
        "SOFTCAP": softcap is not None,
        "H": H,
        "G": G,
        "DK": Dk,
        "DV": Dv,
        **tile,
        **_mask_arguments(mask, query),
    }
    with torch.cuda.device_of(query):
        attend_chunks[(parts,)](
            query,
            entries.keys,
            entries.values,
            tail_keys,
            tail_values,
            chunks=schedule.chunks,
            out=parts_out,
            lse=parts_lse,
            BLOCK_G=max(LEAST_TILE, triton.next_power_of_2(G)),
            BLOCK=tuning.block,
            STAGES=tuning.stages,
            DOT=tl.float32 if INTERPRETED else DOT[query.dtype],
            num_warps=tuning.warps,
            **common,
        )
        join_parts[(B * Hq,)](
            query,
            key,
            value,
            tail_keys,
            tail_values,
            sinks=query if sinks is None else sinks.contiguous(),
            first=schedule.first,
            parts_out=parts_out,
            parts_lse=parts_lse,
            out=out,
            key_row_stride=key.stride(0),
            key_head_stride=key.stride(1),
            value_row_stride=value.stride(0),
            value_head_stride=value.stride(1),
            BLOCK=32,
            STAGES=2,
            SINKS=sinks is not None,
            num_warps=4,
            **common,
        )
    return out


def _mask_arguments(mask: Tensor | None, query: Tensor) -> dict[str, Any]:
    if mask is None:
        return {"mask": query, "mask_row_stride": 0, "mask_stride": 0, "MASK": 0}
    is_bool = mask.dtype == torch.bool
    return {
        "mask": mask.view(torch.uint8) if is_bool else mask,
        "mask_row_stride": mask.stride(0) if mask.shape[0] > 1 else 0,
        "mask_stride": mask.stride(3),
        "MASK": 1 if is_bool else 2,
    }


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    entries: Entries,
    tail_keys: Tensor,
    tail_values: Tensor,
    tail_length: Tensor,
    schedule: DecodeSchedule,
    mask: Tensor | None,
) -> None:
    """Refuse what the kernels would read wrongly or out of bounds."""
    B, Hq, Q, Dk = query.shape
    H, capacity, Dv = tail_values.shape[1:]
    if query.dtype not in DOT:
        raise ValueError(f"no kernel for queries of {query.dtype}; there is one for {', '.join(map(str, DOT))}")
    if Q != 1 or Hq % H:
        raise ValueError(
            f"one query per row and whole groups of heads are needed, not {tuple(query.shape)} on {H} heads"
        )
    wanted = {
        "key": (key, (B, H, 1, Dk)),
        "value": (value, (B, H, 1, Dv)),
        "tail_keys": (tail_keys, (B, H, capacity, Dk)),
        "tail_values": (tail_values, (B, H, capacity, Dv)),
        "entries.keys": (entries.keys, (len(entries.keys), Dk)),
        "entries.values": (entries.values, (len(entries.keys), Dv)),
        "entries.counts": (entries.counts, (B, H)),
        "schedule.first": (schedule.first, (B * H + 1,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} where {shape} is needed")
    for tensor in (tail_keys, tail_values, entries.keys, entries.values):
        if not tensor.is_contiguous():
            raise ValueError("tail and entries have to be contiguous")
    if tail_length.numel() != 1 or tail_length.device != query.device or tail_length.is_floating_point():
        raise ValueError("tail_length has to be one integer on the device of the query")
    if mask is not None and (mask.dim() != 4 or mask.shape[0] not in (1, B) or mask.shape[1:3] != (1, 1)):
        raise ValueError(f"the mask has to be [B or 1, 1, 1, W], not {tuple(mask.shape)}")
