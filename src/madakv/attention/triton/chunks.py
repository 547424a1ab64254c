"""The kernel that reads: attention of one new token over each chunk, as parts to be merged."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def cap(logits, softcap):
    """Logits led smoothly into (-softcap, softcap)."""
    return (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0) * softcap


@triton.jit
def take_in(
    query,
    key,
    value,
    visible,
    more,
    top,
    den,
    mean,
    scaling,
    softcap,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Some more entries into the softmax of a tile of query heads.

    Args:
        query: [BLOCK_G, BLOCK_DK].
        key, value: [BLOCK, BLOCK_DK] and [BLOCK, BLOCK_DV].
        visible: [BLOCK] bool.
        more: is added to the logits, [BLOCK] or a number.
        top, den, mean: [BLOCK_G], [BLOCK_G] and [BLOCK_G, BLOCK_DV] fp32: the largest logit so far, the sum of
            weights relative to it, and that of weighted values.
        DOT: what the products' factors are converted to at last, after rounding to the query's dtype.

    Returns:
        top, den and mean with the entries.
    """
    key = key.to(query.dtype).to(DOT)
    logits = tl.dot(query.to(DOT), tl.trans(key), input_precision="ieee") * scaling
    if SOFTCAP:
        logits = cap(logits, softcap)
    logits = tl.where(visible, logits + more, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    # Where nothing has been visible yet, -inf minus -inf must not be taken.
    finite = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp(logits - finite[:, None])
    shrink = tl.exp(top - finite)
    value = value.to(query.dtype).to(DOT)
    weight_rounded = weight.to(query.dtype).to(DOT)
    mean = tl.dot(weight_rounded, value, mean * shrink[:, None], input_precision="ieee")
    return new_top, den * shrink + tl.sum(weight, 1), mean


@triton.jit
def write_part(
    out,
    lse,
    top,
    den,
    mean,
    G: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """A softmax as a part: `Partial.out` [G, DV] and `Partial.lse` [G]."""
    g = tl.arange(0, BLOCK_G)
    dv = tl.arange(0, BLOCK_DV)
    # Of nothing visible the mean is 0 / 1 and the log of the sum -inf + 0.
    some = tl.where(den == 0.0, 1.0, den)
    tl.store(out + g[:, None] * DV + dv, mean / some[:, None], mask=(g < G)[:, None] & (dv < DV))
    tl.store(lse + g, top + tl.log(some), mask=g < G)


@triton.jit
def _attend(
    query,
    keys,
    values,
    mask,
    mask_stride,
    count,
    out,
    lse,
    scaling,
    softcap,
    G: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """Attention of a tile of query heads over `count` entries from `keys` and `values` on, written as one part."""
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    den = tl.zeros([BLOCK_G], tl.float32)
    mean = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    for start in tl.range(0, count, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        inside = n < count
        key = tl.load(keys + n[:, None] * DK + dk, mask=inside[:, None] & (dk < DK), other=0.0)
        value = tl.load(values + n[:, None] * DV + dv, mask=inside[:, None] & (dv < DV), other=0.0)
        visible = inside
        more = 0.0
        if MASK == 1:
            visible = inside & (tl.load(mask + n * mask_stride, mask=inside, other=0) != 0)
        elif MASK == 2:
            more = tl.load(mask + n * mask_stride, mask=inside, other=0.0).to(tl.float32)
        top, den, mean = take_in(query, key, value, visible, more, top, den, mean, scaling, softcap, SOFTCAP, DOT)
    write_part(out, lse, top, den, mean, G, DV, BLOCK_G, BLOCK_DV)


@triton.jit(do_not_specialize=["mask_row_stride", "capacity", "tail_splits", "tail_chunk", "prompt_parts"])
def attend_chunks(
    query,
    keys,
    values,
    tail_keys,
    tail_values,
    tail_length,
    mask,
    chunks,
    out,
    lse,
    query_row_stride,
    query_head_stride,
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
    BLOCK_G: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program per part: first those of `chunks`, then `tail_splits` for the tail of each row and head.

    Args:
        query: [B, H * G, 1, DK].
        keys, values: [T, DK] and [T, DV].
        tail_keys, tail_values: [B, H, capacity, DK] and [..., DV].
        tail_length: [1] int, entries that the tail holds; programs for what lies behind them write nothing.
        mask: [B, W] over the tail, W above the tail's length: absent (MASK 0), bool (1) or additive (2).
        chunks: see `DecodeSchedule`.
        out: [parts, G, DV] fp32, `Partial.out` of each part.
        lse: [parts, G] fp32, `Partial.lse`.
        DOT: see `take_in`.
    """
    program = tl.program_id(0)
    is_tail = program >= prompt_parts
    # All that the program has to look up, at once, since these waits come before its first entries are asked for.
    if is_tail:
        owner = (program - prompt_parts) // tail_splits
        begin = (program - prompt_parts) % tail_splits * tail_chunk
        entry = owner.to(tl.int64) * capacity + begin
        count = tl.minimum(tl.load(tail_length).to(tl.int32) - begin, tail_chunk)
        part = program
    else:
        owner = tl.load(chunks + program * 4)
        begin = program * 0
        entry = tl.load(chunks + program * 4 + 1).to(tl.int64)
        count = tl.load(chunks + program * 4 + 2)
        part = tl.load(chunks + program * 4 + 3)
    row, head = owner // H, owner % H
    g = tl.arange(0, BLOCK_G)
    dk = tl.arange(0, BLOCK_DK)
    rows = query + row.to(tl.int64) * query_row_stride + (head * G + g)[:, None] * query_head_stride
    q = tl.load(rows + dk, mask=(g < G)[:, None] & (dk < DK), other=0.0)
    out += part.to(tl.int64) * G * DV
    lse += part.to(tl.int64) * G
    if is_tail:
        if count > 0:
            _attend(
                q,
                tail_keys + entry * DK,
                tail_values + entry * DV,
                mask + row.to(tl.int64) * mask_row_stride + begin * mask_stride,
                mask_stride,
                count,
                out,
                lse,
                scaling,
                softcap,
                G,
                DK,
                DV,
                BLOCK_G,
                BLOCK_DK,
                BLOCK_DV,
                BLOCK,
                STAGES,
                MASK,
                SOFTCAP,
                DOT,
            )
    else:
        _attend(
            q,
            keys + entry * DK,
            values + entry * DV,
            mask,
            mask_stride,
            count,
            out,
            lse,
            scaling,
            softcap,
            G,
            DK,
            DV,
            BLOCK_G,
            BLOCK_DK,
            BLOCK_DV,
            BLOCK,
            STAGES,
            0,
            SOFTCAP,
            DOT,
        )
