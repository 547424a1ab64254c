"""The kernel that merges the parts of each query head, together with the new token, and appends that to the tail."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from madakv.attention.triton.chunks import cap


@triton.jit
def add_parts(part, inside, parts_out, parts_lse, top, den, mean, DV: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Some more parts into the softmax of one query head.

    Args:
        part: [BLOCK] int64, their rows of `parts_out` and `parts_lse`.
        inside: [BLOCK] bool, which of them there are.
        top, den, mean: the largest logarithm of a sum so far, the sum of weights relative to it, and that of
            weighted values [BLOCK_DV].

    Returns:
        top, den and mean with the parts.
    """
    dv = tl.arange(0, BLOCK_DV)
    lse = tl.load(parts_lse + part, mask=inside, other=float("-inf"))
    some = tl.load(parts_out + part[:, None] * DV + dv, mask=inside[:, None] & (dv < DV), other=0.0)
    new_top = tl.maximum(top, tl.max(lse, 0))
    finite = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink = tl.exp(top - finite)
    weight = tl.exp(lse - finite)
    return new_top, den * shrink + tl.sum(weight, 0), mean * shrink + tl.sum(some * weight[:, None], 0)


@triton.jit(do_not_specialize=["mask_row_stride", "capacity", "tail_splits", "tail_chunk", "prompt_parts"])
def join_parts(
    query,
    new_key,
    new_value,
    tail_keys,
    tail_values,
    tail_length,
    mask,
    sinks,
    first,
    parts_out,
    parts_lse,
    out,
    query_row_stride,
    query_head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    mask_row_stride,
    mask_stride,
    capacity,
    tail_splits,
    tail_chunk,
    prompt_parts,
    scaling,
    softcap,
    H: tl.constexpr,
    G: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One program per row and query head; the first of a KV head's group appends the new token.

    No other program reads the slot that is written: the new token is attended from where it comes from.

    Args:
        new_key, new_value: [B, H, 1, DK] and [B, H, 1, DV].
        sinks: [H * G], if SINKS.
        first: see `DecodeSchedule`.
        out: [B, H * G, 1, DV].
        BLOCK: parts merged at a time.
        others: as in `attend_chunks`.
    """
    # Rows times heads stay small; what is multiplied by a stride may not.
    program = tl.program_id(0)
    row = (program // (H * G)).to(tl.int64)
    query_head = program % (H * G)
    head, g = query_head // G, query_head % G
    owner = row * H + head
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    length = tl.load(tail_length).to(tl.int32)

    q = tl.load(query + row * query_row_stride + query_head * query_head_stride + dk, mask=dk < DK, other=0.0)
    key = tl.load(new_key + row * key_row_stride + head * key_head_stride + dk, mask=dk < DK, other=0.0)
    value = tl.load(new_value + row * value_row_stride + head * value_head_stride + dv, mask=dv < DV, other=0.0)
    # A full tail must not cost the neighbour's entries.
    appends = (g == 0) & (length < capacity)
    slot = owner * capacity + length
    tl.store(tail_keys + slot * DK + dk, key, mask=(dk < DK) & appends)
    tl.store(tail_values + slot * DV + dv, value, mask=(dv < DV) & appends)

    top = tl.sum(q.to(tl.float32) * key.to(tl.float32), 0) * scaling
    if SOFTCAP:
        top = cap(top, softcap)
    if MASK == 1:
        top = tl.where(tl.load(mask + row * mask_row_stride + length * mask_stride) != 0, top, float("-inf"))
    elif MASK == 2:
        top += tl.load(mask + row * mask_row_stride + length * mask_stride).to(tl.float32)
    seen = tl.where(top == float("-inf"), 0.0, 1.0)
    den = seen
    mean = value.to(tl.float32) * seen
    if SINKS:
        sink = tl.load(sinks + query_head).to(tl.float32)
        new_top = tl.maximum(top, sink)
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp(top - finite)
        mean = mean * shrink
        den = den * shrink + tl.exp(sink - finite)
        top = new_top

    begin = tl.load(first + owner)
    of_prompt = tl.load(first + owner + 1) - begin
    of_tail = (length + tail_chunk - 1) // tail_chunk
    tail_begin = prompt_parts + (program // G) * tail_splits
    for start in tl.range(0, of_prompt + of_tail, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        inside = n < of_prompt + of_tail
        part = tl.where(n < of_prompt, begin + n, tail_begin + n - of_prompt).to(tl.int64) * G + g
        top, den, mean = add_parts(part, inside, parts_out, parts_lse, top, den, mean, DV, BLOCK_DV)
    mean = mean / tl.where(den == 0.0, 1.0, den)
    tl.store(out + program.to(tl.int64) * DV + dv, mean, mask=dv < DV)
