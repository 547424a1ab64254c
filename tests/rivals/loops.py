"""What the plain loops of the rivals share: one row of a batch, Python floats.

Nothing here is shared with `madakv.methods`, `madakv.scoring` or `madakv.budget.ranked`; only the split of whole
numbers by largest remainder is `madakv.budget.apportion`, which has tests of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from madakv.budget import apportion
from madakv.scoring import LayerView
from tests.allocate_reference import entries_reference

PADDING, TEXT = -1, 0

Layer = list[list[float]]
"""[H][N]"""
Keeps = list[list[list[int]]]
"""[L][H], sorted positions"""


@dataclass(frozen=True)
class Row:
    """One row of a `LayerView` as lists: query [Hq][N][D], key and value [H][N][D], kinds [N], mask [N][N]."""

    query: list[list[list[float]]]
    key: list[list[list[float]]]
    value: list[list[list[float]]]
    kinds: list[int]
    scaling: float
    mask: list[list[bool]] | None = None

    @classmethod
    def of(cls, view: LayerView, b: int) -> Row:
        mask = None if view.mask is None else view.mask[b if len(view.mask) > 1 else 0, 0].tolist()
        query, key, value = (states[b].double().tolist() for states in (view.query, view.key, view.value))
        return cls(query, key, value, view.modality[b].tolist(), view.scaling, mask)


# --- What methods share --------------------------------------------------------------------------------------


def tokens_of(kinds: Sequence[int]) -> list[int]:
    return [i for i, kind in enumerate(kinds) if kind != PADDING]


def account(kinds: Sequence[int], budget: float | int) -> int:
    """C, entries per head and layer on average."""
    return entries_reference(budget, len(tokens_of(kinds)))


def observers(kinds: Sequence[int], rule: str | int) -> list[int]:
    """The last `rule` tokens; or "question", the text behind the last picture, else the last tokens: 32 at most."""
    tokens = tokens_of(kinds)
    if rule != "question":
        return tokens[-int(rule) :]
    pictures = [i for i in tokens if kinds[i] != TEXT]
    question = [i for i in tokens if not pictures or i > pictures[-1]]
    return (question or tokens)[-32:]


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    weight = {i: math.exp(logit - top) for i, logit in logits.items()}
    whole = sum(weight.values())
    return {i: w / whole for i, w in weight.items()}


def paid(row: Row, queries: Sequence[int], groups: str = "mean") -> Layer:
    """Attention that queries pay to each token, summed over queries; a group's heads give their mean or maximum."""
    H, G, N = len(row.key), len(row.query) // len(row.key), len(row.kinds)
    layer = []
    for h in range(H):
        sums = [[0.0] * N for _ in range(G)]
        for g in range(G):
            for j in queries:
                seen = [i for i in tokens_of(row.kinds) if (i <= j if row.mask is None else row.mask[j][i])]
                logits = {i: dot(row.query[h * G + g][j], row.key[h][i]) * row.scaling for i in seen}
                for i, alpha in softmax(logits).items():
                    sums[g][i] += alpha
        per_token = [[sums[g][i] for g in range(G)] for i in range(N)]
        layer.append([max(x) if groups == "max" else sum(x) / G for x in per_token])
    return layer


def pooled(
    scores: Sequence[float],
    kinds: Sequence[int],
    window: Sequence[int],
    *,
    width: int = 7,
    how: str = "max",
    scope: str = "all",
) -> list[float]:
    """Each score before the window becomes the maximum or mean of those of `width` places around, of its scope."""
    out = list(scores)
    before = [i for i in tokens_of(kinds) if i not in window and (scope != "text" or kinds[i] == TEXT)]
    for i in before:
        near = []
        for j in range(i - width // 2, i + width // 2 + 1):
            if j in before and (scope == "all" or kinds[j] == kinds[i]):
                near.append(scores[j])
        out[i] = max(near) if how == "max" else sum(near) / len(near)
    return out


def best(candidates: Sequence[int], rank: Sequence[float], count: int) -> list[int]:
    """The `count` highest, ties to the earlier."""
    return sorted(candidates, key=lambda i: (-rank[i], i))[:count]


def split(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    shares = apportion(torch.tensor(total), torch.tensor(weights, dtype=torch.float64), torch.tensor(caps))
    return [int(x) for x in shares]


def of_heads(total: int, H: int) -> list[int]:
    """A layer's entries over its heads; the first heads take the remainder."""
    return [total // H + (1 if h < total % H else 0) for h in range(H)]


def of_layers(kinds: Sequence[int], budget: float | int, H: int, weights: Sequence[float]) -> list[int]:
    """C * H * L entries over the layers in proportion to weights."""
    L, N = len(weights), len(tokens_of(kinds))
    return split(account(kinds, budget) * H * L, weights, [N * H] * L)


def keep_one(rank: Sequence[float], kinds: Sequence[int], protect: Sequence[int], share: int, most: int) -> list[int]:
    """A head's newest protected tokens, `most` at most, and the best of all others."""
    sure = list(protect)[max(0, len(protect) - most) :]
    others = [i for i in tokens_of(kinds) if i not in sure]
    return sorted(sure + best(others, rank, share - len(sure)))


def frequencies(D: int) -> list[float]:
    """RoPE's, of the pairs of dimensions i and i + D / 2; low ones, so that few positions differ."""
    return [1.0 / 30 ** (2 * i / D) for i in range(D // 2)]


def turned(x: Sequence[float], position: int, *, back: bool = False) -> list[float]:
    """A query or key under RoPE."""
    half, out = len(x) // 2, list(x)
    for i, frequency in enumerate(frequencies(len(x))):
        angle = -position * frequency if back else position * frequency
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out
