"""What a model has to read and compute, and how fast a machine could do it: the floor under every measured time.

Floor of a step = max(bytes / read bandwidth, FLOPs / matrix rate). Bytes are those that cannot be avoided: every
weight once and every kept KV entry once. Activations, masks and second readings are left out, so that time / floor
shows what these cost, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What a machine does at best.

    Attributes:
        bandwidth: bytes per second of one large sequential read with all threads.
        matrix: FLOP per second of one large matrix product.
    """

    bandwidth: float
    matrix: float


@dataclass(frozen=True)
class Work:
    """What has to be done, whoever does it.

    Attributes:
        bytes: that have to be read.
        flops: a multiplication with an addition counts as two.
    """

    bytes: float
    flops: float

    def floor(self, rates: Rates) -> float:
        """Least seconds: the slower of reading and computing, which overlap at best."""
        return max(self.bytes / rates.bandwidth, self.flops / rates.matrix)


@dataclass(frozen=True)
class Cost:
    """The sizes of a decoder that decide what a step costs.

    Attributes:
        layers, query_heads, kv_heads, head_dim: of the attention; all layers alike.
        body: weight elements of the layers and norms, the token embedding left out: of it, a step reads one row.
        head: weight elements that turn a hidden state into logits; 0 if the model has no such head.
        itemsize: bytes per element, of weights and cache.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    body: int
    head: int
    itemsize: int

    @property
    def entry_bytes(self) -> int:
        """Bytes of one KV entry: the key and the value of one token in one head of one layer."""
        return 2 * self.head_dim * self.itemsize

    def entries(self, tokens: int) -> int:
        """KV entries of so many tokens in a full cache, over all layers and heads."""
        return tokens * self.layers * self.kv_heads

    def decode(self, kv_bytes: float, batch: int) -> Work:
        """One new token for each of `batch` rows.

        Args:
            kv_bytes: of the entries that it attends to, over all layers, heads and rows.
            batch: rows.
        """
        weights = self.body + self.head
        return Work(
            bytes=weights * self.itemsize + kv_bytes,
            flops=2.0 * weights * batch + attention_flops(self, kv_bytes / self.entry_bytes),
        )

    def prefill(self, lengths: Sequence[int]) -> Work:
        """Reading prompts, causally, with logits for the last token alone.

        Args:
            lengths: tokens of each row, padding left out.
        """
        seen = sum(n * (n + 1) // 2 for n in lengths) * self.layers * self.kv_heads
        return Work(
            bytes=(self.body + self.head) * self.itemsize,
            flops=2.0 * self.body * sum(lengths) + 2.0 * self.head * len(lengths) + attention_flops(self, seen),
        )


def attention_flops(cost: Cost, entries: float) -> float:
    """FLOPs of attending once to so many KV entries: 2 D for the logit, 2 D for the value, per query head."""
    return 4.0 * cost.head_dim * (cost.query_heads // cost.kv_heads) * entries
