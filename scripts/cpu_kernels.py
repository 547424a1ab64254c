"""Attention over uneven heads on a CPU, by all the ways that were considered: which of them reads how fast.

    python scripts/cpu_kernels.py --out results/speed/cpu-kernels     # with numba installed besides madakv

The rows are those of `madakv bench kernel`, and more:

    sdpa, buckets     heads padded to the longest of those that are about as long, stock SDPA per bucket; flattered,
                      for what pads them and masks are prepared, and the new tokens lie in them already
    torch tiles       madakv's PyTorch operations, which attend where there is no compiler
    torch.compile     the same tiles, multiplied and summed by element, as inductor fuses it
    numba             a plain loop over parts of heads
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import numba
import numpy as np
import torch
from torch import Tensor

from madakv import backend, ragged_attention
from madakv.attention.partial import Partial, additive, merge, merge_scattered, partial_attention
from madakv.attention.tiles import tiles_of
from madakv.bench.kernel import OPS, Layer, sdpa
from madakv.bench.session import Options, run_bench

BUCKETS = 4
"""At most: a bucket has two heads or more, so that no core waits."""
PART = 512
"""Entries of a head that one thread of numba's reads at a time."""

Bucket = tuple[Tensor, Tensor, Tensor, Tensor | None]


def grouped(layer: Layer) -> Tensor:
    """The queries of each KV head, [B, H, G, D]."""
    B, H = layer.entries.counts.shape
    return layer.query.reshape(B, H, -1, layer.query.shape[-1])


def per_layer(make: Callable[[Layer], Any]) -> Callable[[Layer], Any]:
    """Make what an op prepares once for each layer, for as long as that is there."""
    made: WeakKeyDictionary[Layer, Any] = WeakKeyDictionary()

    def prepared(layer: Layer) -> Any:
        if layer not in made:
            made[layer] = make(layer)
        return made[layer]

    return prepared


@per_layer
def buckets(layer: Layer) -> list[Bucket]:
    """Flat (row, head) indices [n], key and value [1, n, longest, D], and a mask [1, n, 1, longest] or None."""
    H, lengths = layer.entries.counts.shape[1], torch.tensor(layer.entries.lengths)
    keys = torch.split(layer.entries.keys, layer.entries.lengths)
    values = torch.split(layer.entries.values, layer.entries.lengths)
    made = []
    for heads in lengths.argsort().chunk(min(BUCKETS, max(1, len(lengths) // 2))):
        both = []
        for entries, tail in ((keys, layer.tail.keys), (values, layer.tail.values)):
            whole = [torch.cat([entries[i], tail[i // H, i % H]]) for i in heads.tolist()]
            both.append(torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)[None])
        longest = both[0].shape[2]
        there = torch.arange(longest) < (lengths[heads] + layer.tail.length)[:, None]
        mask = None if bool(there.all()) else additive(there, layer.query.dtype)[None, :, None]
        made.append((heads, *both, mask))
    return made


def bucketed(layer: Layer, scaling: float) -> Tensor:
    """Stock SDPA, bucket by bucket."""
    rows = grouped(layer).flatten(0, 1)
    D = rows.shape[-1]
    out = torch.empty_like(rows)
    for heads, key, value, mask in buckets(layer):
        out[heads] = sdpa(rows[heads].view(1, -1, 1, D), key, value, mask, scaling).view(len(heads), -1, D)
    return out.view(layer.query.shape)


def torch_tiles(layer: Layer, scaling: float) -> Tensor:
    """What runs with `MADAKV_BACKEND=torch`."""
    with patch.dict(os.environ, {backend.VARIABLE: "torch"}):
        backend.chosen.cache_clear()
        out = ragged_attention(layer.query, layer.entries, layer.tail, scaling=scaling)
    backend.chosen.cache_clear()
    return out


def with_tail(layer: Layer, prompt: Partial, scaling: float) -> Tensor:
    """Attention over the prompt, by owner, put together with that over the tail, by PyTorch's operations."""
    rows = grouped(layer)
    tail = partial_attention(rows, layer.tail.keys, layer.tail.values, scaling=scaling)
    merged = merge(tail, Partial(prompt.out.view(rows.shape), prompt.lse.view(rows.shape[:3])))
    return merged.out.to(layer.query.dtype).view(layer.query.shape)


@torch.compile(dynamic=True)
def tile_parts(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Query [S, R, D], key and value [S, n, D], mask [S, n]: out [S, R, D] and lse [S, R]."""
    logits = (query[:, :, None].float() * key[:, None].float()).sum(-1) * scaling + mask[:, None].float()
    top = logits.amax(-1, keepdim=True)
    weight = (logits - top).exp()
    den = weight.sum(-1, keepdim=True)
    out = (weight[..., None] * value[:, None].float()).sum(-2) / den
    return out, (top + den.log())[..., 0]


def compiled_tiles(layer: Layer, scaling: float) -> Tensor:
    """Tiles and windows by `tile_parts`, the tail by PyTorch's operations."""
    entries, tiles = layer.entries, layer.entries.once(tiles_of)
    rows = grouped(layer).flatten(0, 1)
    D, query = rows.shape[-1], rows[tiles.owner]
    T, size = len(tiles.mask), tiles.mask.shape[-1]
    read = [x[: T * size].view(T, size, D) for x in (entries.keys, entries.values)]
    out, lse = tile_parts(query[:T], *read, tiles.mask[:, 0, 0], scaling)
    if len(tiles.window_mask):
        width = tiles.window_mask.shape[-1]
        read = [x[tiles.window].view(-1, width, D) for x in (entries.keys, entries.values)]
        more = tile_parts(query[T:], *read, tiles.window_mask[:, 0, 0], scaling)
        out, lse = torch.cat([out, more[0]]), torch.cat([lse, more[1]])
    return with_tail(layer, merge_scattered(out, lse, tiles.owner, len(rows)), scaling)


def numba_parts(
    query: Any, keys: Any, values: Any, owner: Any, begin: Any, end: Any, scaling: Any, out: Any, lse: Any
) -> None:
    """Query fp32 [owners, R, D], its even dimensions before its odd ones, as in `out` [parts, R, D]; keys and values
    int32 [T, D / 2], two bfloat16 each."""
    R, half = query.shape[1], keys.shape[1]
    for part in numba.prange(len(owner)):
        bits = np.empty(2 * half, np.int32)
        row = bits.view(np.float32)
        logits = np.empty((R, PART), np.float32)
        rows = query[owner[part]]
        count = end[part] - begin[part]
        for i in range(count):
            pairs = keys[begin[part] + i]
            for d in range(half):
                bits[d] = pairs[d] << 16
                bits[half + d] = pairs[d] & -65536
            for r in range(R):
                product = np.float32(0)
                for d in range(2 * half):
                    product += row[d] * rows[r, d]
                logits[r, i] = product * scaling
        for r in range(R):
            top = logits[r, :count].max()
            den = np.float32(0)
            for i in range(count):
                logits[r, i] = np.exp(logits[r, i] - top)
                den += logits[r, i]
            for i in range(count):
                logits[r, i] /= den
            lse[part, r] = top + np.log(den)
            out[part, r] = 0
        for i in range(count):
            pairs = values[begin[part] + i]
            for d in range(half):
                bits[d] = pairs[d] << 16
                bits[half + d] = pairs[d] & -65536
            for r in range(R):
                weight = logits[r, i]
                for d in range(2 * half):
                    out[part, r, d] += weight * row[d]


compiled_parts: Callable[..., None] = numba.njit(parallel=True, fastmath=True)(numba_parts)


@per_layer
def parts_of(layer: Layer) -> tuple[Tensor, Any, Any, Any]:
    """Owner of each part, and where its entries begin and end."""
    count = torch.tensor(layer.entries.lengths)
    pieces = (count + PART - 1) // PART
    owner = torch.arange(len(count)).repeat_interleave(pieces)
    rank = torch.arange(len(owner)) - (pieces.cumsum(0) - pieces)[owner]
    begin = (count.cumsum(0) - count)[owner] + rank * PART
    end = torch.minimum(begin + PART, count.cumsum(0)[owner])
    return owner, owner.numpy(), begin.numpy(), end.numpy()


def numba_loop(layer: Layer, scaling: float) -> Tensor:
    """The prompt by `numba_parts`, the tail by PyTorch's operations."""
    rows = grouped(layer).flatten(0, 1)
    owners, G, D = rows.shape
    owner, *places = parts_of(layer)
    query = rows.float().view(owners, G, D // 2, 2).transpose(-1, -2).reshape(owners, G, D)
    out, lse = torch.empty(len(owner), G, D), torch.empty(len(owner), G)
    read = [x.view(torch.int32).numpy() for x in (layer.entries.keys, layer.entries.values)]
    compiled_parts(query.numpy(), *read, *places, np.float32(scaling), out.numpy(), lse.numpy())
    out = out.view(*out.shape[:2], 2, D // 2).transpose(-1, -2).reshape(out.shape)
    return with_tail(layer, merge_scattered(out, lse, owner, owners), scaling)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="llava-1.5-7b,qwen2.5-vl-7b")
    parser.add_argument("--entries", type=int, default=4000, help="per head")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    numba.set_num_threads(torch.get_num_threads())
    options = Options(
        shapes=tuple(arguments.shapes.split(",")),
        model=None,
        layers=None,
        contexts=(arguments.entries,),
        batches=(1,),
        methods=(),
        budgets=(arguments.entries,),
        device="cpu",
        dtype="bf16",
        tokens=1,
        repeats=arguments.repeats,
        fill="auto",
        shortest=1.0,
        rivals=False,
        seed=0,
        out=arguments.out,
    )
    more = {
        "sdpa, buckets": bucketed,
        "torch tiles": torch_tiles,
        "torch.compile": compiled_tiles,
        "numba": numba_loop,
    }
    results = run_bench("kernel", options, print, ops={**OPS, **more})
    results.note(numba=numba.__version__)
    for row in results.rows:
        share = row.figures.get("bandwidth_share")
        reached = f"{share:7.1%}" if share is not None else f"refused: {row.refused}"
        print(f"{row.case['shape']:14} {row.case['spread']:5} {row.contender:20} {reached}")


if __name__ == "__main__":
    main()
