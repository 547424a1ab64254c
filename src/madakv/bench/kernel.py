"""`madakv bench kernel`: attention of one new token over kept entries alone, heads of even and uneven lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from madakv.attention import ragged_attention, ragged_attention_reference
from madakv.bench.check import TOLERANCE, refusal, relative_rms
from madakv.bench.machine import in_turn, reading
from madakv.bench.results import Row
from madakv.bench.roofline import Cost, Rates, Work, attention_flops
from madakv.bench.timing import against_floor, seconds, speedup, take_turns
from madakv.cache import RaggedEntries, Tail
from madakv.plan import KeepPlan

WORKING_SET = {"cpu": 1 << 30, "cuda": 1 << 30}
"""Bytes that one round reads, several times any cache: a decode step meets each layer's entries only once."""

SPREADS = (1, 3, 10)
"""Longest head over shortest."""

_TAIL = 16
EVEN = "sdpa, even heads"


@dataclass(frozen=True, eq=False)
class Layer:
    """The same number of bytes in three forms; `even` holds other entries than the two others.

    Attributes:
        query: [B, Hq, 1, D].
        entries, tail: as an evicted cache holds them.
        padded: key and value [B, H, longest + tail, D], and which of them are there [B, H, 1, longest + tail] bool.
        even: key and value [B, H, mean + tail, D], and no mask.
    """

    query: Tensor
    entries: RaggedEntries
    tail: Tail
    padded: tuple[Tensor, Tensor, Tensor]
    even: tuple[Tensor, Tensor, None]

    def again(self) -> Layer:
        """A copy in other memory."""
        tail = Tail()
        tail.append(self.tail.keys, self.tail.values, self.entries.keys.shape[0])
        key, value, mask = self.padded
        return Layer(
            query=self.query.clone(),
            entries=self.entries.replaced(self.entries.keys.clone(), self.entries.values.clone()),
            tail=tail,
            padded=(key.clone(), value.clone(), mask.clone()),
            even=(self.even[0].clone(), self.even[1].clone(), None),
        )


def head_lengths(heads: int, mean: int, spread: int) -> list[int]:
    """Lengths of `heads` heads, evenly from short to long, `spread` times as long, of `mean` entries on average.

    What rounding leaves over goes to the longest.
    """
    weights = [1 + (spread - 1) * head / max(1, heads - 1) for head in range(heads)]
    lengths = [int(heads * mean * weight / sum(weights)) for weight in weights]
    lengths[-1] += heads * mean - sum(lengths)
    return lengths


Op = Callable[[Layer, float], Tensor]
"""Attention of one new token over a layer, at a factor on the logits: [B, Hq, 1, D]."""

OPS: Mapping[str, Op] = {
    EVEN: lambda x, scaling: sdpa(x.query, *x.even, scaling),
    "sdpa, padded heads": lambda x, scaling: sdpa(x.query, *x.padded, scaling),
    "madakv": lambda x, scaling: ragged_attention(x.query, x.entries, x.tail, scaling=scaling),
}


@torch.no_grad()
def measure_kernel(
    cost: Cost,
    *,
    mean: int,
    spread: int,
    batch: int,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
    rates: Rates,
    case: Mapping[str, Any],
    ops: Mapping[str, Op] = OPS,
) -> list[Row]:
    """Time one op over entries of uneven heads, by several ways; one of them is stock SDPA over even heads.

    Args:
        cost: gives heads and head dim.
        mean: entries per head, new tokens not counted.
        spread: see `head_lengths`.
        batch: rows, all of the same lengths in another order.
        repeats: rounds; each reads `WORKING_SET` bytes, or one layer if that is more.
        device, dtype: of the data, drawn from torch's generator.
        rates: of the machine.
        case: see `Row`.
        ops: by name.
    """
    layer = _layer(cost, mean, spread, batch, device, dtype)
    live = batch * cost.kv_heads * (mean + _TAIL) * cost.entry_bytes
    layers = [layer] + [layer.again() for _ in range(max(1, WORKING_SET[device.type] // live) - 1)]
    scaling = cost.head_dim**-0.5
    wanted, even = _reference(layer, scaling), _even_reference(layer, scaling)
    rows: dict[str, Row] = {}
    rounds: dict[str, Callable[[], float]] = {}
    for name, op in ops.items():
        want = even if name == EVEN else wanted
        error = relative_rms(op(layer, scaling), want)
        rows[name] = Row(case, name, {"error": error}, refused=refusal(error, TOLERANCE[dtype], "the reference"))
        if rows[name].refused is None:
            rounds[name] = _round(op, scaling, layers, device)
            rounds[name]()
    *turns, reads = take_turns([*rounds.values(), reading(device)], repeats)
    rates = in_turn(rates, reads)
    times = dict(zip(rounds, turns, strict=True))
    floor = Work(live, attention_flops(cost, live / cost.entry_bytes)).floor(rates)
    for name, own in times.items():
        middle = median(own)
        figures = {
            **rows[name].figures,
            **against_floor(own, floor),
            "bytes_per_s": live / middle,
            "bandwidth": rates.bandwidth,
            "bandwidth_share": live / middle / rates.bandwidth,
        }
        if EVEN in times:
            figures["speedup"] = speedup(times[EVEN], own)
        rows[name] = replace(rows[name], figures=figures)
    return list(rows.values())


def _layer(cost: Cost, mean: int, spread: int, batch: int, device: torch.device, dtype: torch.dtype) -> Layer:
    H, D = cost.kv_heads, cost.head_dim
    lengths = torch.tensor(head_lengths(H, mean, spread))
    counts = torch.stack([lengths[torch.randperm(H)] for _ in range(batch)]).to(device)
    longest = int(lengths.max())

    def draw(heads: int, tokens: int) -> Tensor:
        return torch.randn(batch, heads, tokens, D, device=device).to(dtype)

    key, value = draw(H, longest), draw(H, longest)
    kept = torch.arange(longest, device=device) < counts[..., None]
    entries = RaggedEntries.gather(key, value, KeepPlan.from_mask(kept))
    tail = Tail()
    tail.append(draw(H, _TAIL), draw(H, _TAIL), mean)
    mask = torch.cat([kept, kept.new_ones(batch, H, _TAIL)], -1)[:, :, None]
    return Layer(
        query=draw(cost.query_heads, 1),
        entries=entries,
        tail=tail,
        padded=(torch.cat([key, tail.keys], 2), torch.cat([value, tail.values], 2), mask),
        even=(draw(H, mean + _TAIL), draw(H, mean + _TAIL), None),
    )


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Stock attention, the query heads of a group packed as rows: [B, Hq, 1, D]."""
    B, Hq, Q, D = query.shape
    packed = query.view(B, key.shape[1], -1, D)
    out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return out.view(B, Hq, Q, D)


def _reference(layer: Layer, scaling: float) -> Tensor:
    tail = Tail()
    tail.append(layer.tail.keys.cpu(), layer.tail.values.cpu(), 0)
    return ragged_attention_reference(layer.query.cpu(), layer.entries.to("cpu"), tail, scaling=scaling)


def _even_reference(layer: Layer, scaling: float) -> Tensor:
    key, value, _ = layer.even
    B, Hq, Q, D = layer.query.shape
    query = layer.query.double().view(B, key.shape[1], -1, D)
    weight = (query @ key.double().mT * scaling).softmax(-1)
    return (weight @ value.double()).view(B, Hq, Q, D)


def _round(op: Op, scaling: float, layers: list[Layer], device: torch.device) -> Callable[[], float]:
    """Seconds per layer."""

    def sweep() -> None:
        for layer in layers:
            op(layer, scaling)

    return lambda: seconds(sweep, device) / len(layers)
