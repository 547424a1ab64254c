"""Decode attention over pages: a launch that reads them, each head in equal splits, and one that merges."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from madakv.attention.pages import Pages
from madakv.attention.programs import programs_of
from madakv.attention.triton.chunks import take_in, write_part
from madakv.attention.triton.decode import DOT as DOTS
from madakv.attention.triton.decode import INTERPRETED, LEAST_TILE
from madakv.attention.triton.join import add_parts
from madakv.attention.triton.tuning import Tuning

_LEAST_SPLIT = 128
"""Entries: fewer do not pay for writing and merging a part."""


def triton_paged(
    query: Tensor,
    rows: Tensor,
    pages: Pages,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    splits: int | None = None,
) -> Tensor:
    """Attention of one token of each sequence; see `paged_attention`.

    Nothing waits for the device, and launches depend on the sizes of tensors alone.

    Args:
        query, rows, pages, scaling, softcap, sinks: as there.
        splits: into how many equal parts each head is cut; None = what keeps the device busy.
    """
    S, Hq, D = query.shape
    H = pages.counts.shape[1]
    G = Hq // H
    if query.dtype not in DOTS:
        raise ValueError(f"no kernel for queries of {query.dtype}; there is one for {', '.join(map(str, DOTS))}")
    if splits is None:
        most = pages.longest + pages.tail_capacity * pages.tail_size
        splits = max(1, min(-(-programs_of(query.device) // (S * H)), -(-most // _LEAST_SPLIT)))
    query = query.contiguous()
    width = max(LEAST_TILE, triton.next_power_of_2(D))
    tuning = Tuning.of(2 * width * rows.element_size())
    parts_out = torch.empty(S * H * splits, G, D, dtype=torch.float32, device=query.device)
    parts_lse = torch.empty(S * H * splits, G, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)
    with torch.cuda.device_of(query):
        attend_pages[(S * H, splits)](
            query,
            rows,
            pages.pages,
            pages.first,
            pages.counts,
            pages.tail_pages,
            pages.tail_begin,
            pages.tail_counts,
            parts_out,
            parts_lse,
            pages.tail_capacity,
            pages.tail_row,
            pages.head_rows,
            scaling,
            1.0 if softcap is None else softcap,
            H=H,
            G=G,
            D=D,
            SIZE=pages.size,
            TAIL_SIZE=pages.tail_size,
            BLOCK_G=max(LEAST_TILE, triton.next_power_of_2(G)),
            BLOCK_D=width,
            BLOCK=tuning.block,
            STAGES=tuning.stages,
            SOFTCAP=softcap is not None,
            DOT=tl.float32 if INTERPRETED else DOTS[query.dtype],
            num_warps=tuning.warps,
        )
        join_splits[(S * Hq,)](
            query if sinks is None else sinks.contiguous(),
            parts_out,
            parts_lse,
            out,
            splits,
            HQ=Hq,
            G=G,
            D=D,
            BLOCK_D=width,
            BLOCK=32,
            SINKS=sinks is not None,
            num_warps=4,
        )
    return out


@triton.jit(do_not_specialize=["capacity", "tail_row", "head_rows"])
def attend_pages(
    query,
    rows,
    pages,
    first,
    counts,
    tail_pages,
    tail_begin,
    tail_counts,
    out,
    lse,
    capacity,
    tail_row,
    head_rows,
    scaling,
    softcap,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    TAIL_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program per sequence and KV head, and split of its entries: kept ones, then the tail.

    Args:
        query: [S, H * G, D].
        rows: [R, D].
        pages, first, counts, tail_pages, tail_begin, tail_counts, tail_row, head_rows: see `Pages`.
        out: [S * H * splits, G, D] fp32, `Partial.out` of each part.
        lse: [S * H * splits, G] fp32, `Partial.lse`; -inf of a split without an entry.
        capacity: pages of a tail.
        DOT: see `take_in`.
    """
    owner = tl.program_id(0)
    sequence, head = owner // H, owner % H
    kept = tl.load(counts + owner)
    count = kept + tl.load(tail_counts + sequence)
    mine = pages + tl.load(first + owner)
    tail = tail_pages + sequence.to(tl.int64) * capacity
    skipped = tl.load(tail_begin + sequence)
    base = tl.cast(tail_row, tl.int64) + head.to(tl.int64) * head_rows

    chunk = tl.cdiv(count, tl.num_programs(1))
    begin = tl.program_id(1) * chunk
    end = tl.minimum(count, begin + chunk)

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    q = tl.load(query + (owner.to(tl.int64) * G + g)[:, None] * D + d, mask=(g < G)[:, None] & (d < D), other=0.0)
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    den = tl.zeros([BLOCK_G], tl.float32)
    mean = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in tl.range(begin, end, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        inside = n < end
        old = n < kept
        m = n - kept + skipped
        page = tl.load(mine + n // SIZE, mask=inside & old, other=0)
        new = tl.load(tail + m // TAIL_SIZE, mask=inside & (n >= kept), other=0)
        row = tl.where(old, page + n % SIZE, new + base + m % TAIL_SIZE)
        at = rows + row[:, None] * D + d
        there = inside[:, None] & (d < D)
        key = tl.load(at, mask=there, other=0.0)
        value = tl.load(at + tl.where(old, SIZE, TAIL_SIZE)[:, None] * D, mask=there, other=0.0)
        top, den, mean = take_in(q, key, value, inside, 0.0, top, den, mean, scaling, softcap, SOFTCAP, DOT)
    part = owner.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    write_part(out + part * G * D, lse + part * G, top, den, mean, G, D, BLOCK_G, BLOCK_D)


@triton.jit(do_not_specialize=["splits"])
def join_splits(
    sinks,
    parts_out,
    parts_lse,
    out,
    splits,
    HQ: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One program per sequence and query head.

    Args:
        sinks: [HQ], if SINKS.
        parts_out, parts_lse: as `attend_pages` wrote them.
        out: [S, HQ, D], zero where nothing is visible.
        splits: of each head.
        BLOCK: parts merged at a time.
    """
    program = tl.program_id(0)
    owner, g = (program // G).to(tl.int64), program % G
    d = tl.arange(0, BLOCK_D)
    mean = tl.zeros([BLOCK_D], tl.float32)
    if SINKS:
        top = tl.load(sinks + program % HQ).to(tl.float32)
        den = top * 0.0 + 1.0
    else:
        top = tl.full([], float("-inf"), tl.float32)
        den = tl.zeros([], tl.float32)
    for start in tl.range(0, splits, BLOCK):
        n = start + tl.arange(0, BLOCK)
        part = (owner * splits + n) * G + g
        top, den, mean = add_parts(part, n < splits, parts_out, parts_lse, top, den, mean, D, BLOCK_D)
    tl.store(out + program.to(tl.int64) * D + d, mean / tl.where(den == 0.0, 1.0, den), mask=d < D)
