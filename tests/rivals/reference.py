"""Every rival once more, from the papers' equations: one row of a batch, plain loops, Python floats.

Nothing here is shared with `madakv.methods`, `madakv.scoring` or `madakv.budget.ranked`; only the split of whole
numbers by largest remainder is `madakv.budget.apportion`, which has tests of its own. `score_*` measures one layer
and gives [H][N]; `keep_*` decides all layers from such scores and gives the sorted kept positions, [L][H]. Where
the papers leave the prompt's account open, the methods' docstrings close it: C = floor(budget * N) entries per head
and layer on average, protected tokens counted, the newest of them first and at most half of a head's part.
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


# --- StreamingLLM (arXiv 2309.17453), section 3.2 -------------------------------------------------------------


def keep_streaming_llm(psi: list[Layer], kinds: list[int], budget: float | int, *, n_sink: int = 4) -> Keeps:
    """The first tokens, at most half of the part, and as many of the last ones as then fit."""
    tokens, C = tokens_of(kinds), account(kinds, budget)
    first = min(n_sink, C // 2)
    kept = tokens[:first] + tokens[len(tokens) - (C - first) :]
    return [[kept for _ in layer] for layer in psi]


# --- H2O (arXiv 2306.14048), algorithm 1 run once -------------------------------------------------------------


def score_h2o(row: Row, *, groups: str = "mean") -> Layer:
    """Accumulated attention: the sum of every column of the causal attention matrix."""
    return paid(row, tokens_of(row.kinds), groups)


def keep_h2o(psi: list[Layer], kinds: list[int], budget: float | int) -> Keeps:
    """The newest C / 2 and the heaviest of those before them."""
    tokens, C = tokens_of(kinds), account(kinds, budget)
    recent = tokens[len(tokens) - C // 2 :]
    before = tokens[: len(tokens) - C // 2]
    return [[sorted(recent + best(before, head, C - C // 2)) for head in layer] for layer in psi]


# --- SnapKV (arXiv 2404.14469), section 4 ---------------------------------------------------------------------


def score_snapkv(row: Row, *, window_size: str | int = 32, groups: str = "mean") -> Layer:
    """Voting: the attention of the observation window."""
    return paid(row, observers(row.kinds, window_size), groups)


def keep_snapkv(
    psi: list[Layer],
    kinds: list[int],
    budget: float | int,
    *,
    window_size: str | int = 32,
    kernel_size: int = 7,
    pooling: str = "max",
    scope: str = "all",
) -> Keeps:
    """The window, its newest half of the part at most, then the best by votes, which are pooled before the window."""
    C, watching = account(kinds, budget), observers(kinds, window_size)
    keeps = []
    for layer in psi:
        ranks = [pooled(head, kinds, watching, width=kernel_size, how=pooling, scope=scope) for head in layer]
        keeps.append([keep_one(rank, kinds, watching, C, C // 2) for rank in ranks])
    return keeps


# --- PyramidKV (arXiv 2406.02069), equations 4 and 5 -----------------------------------------------------------


def keep_pyramidkv(
    psi: list[Layer], kinds: list[int], budget: float | int, *, window_size: str | int = 8, steepness: float = 20.0
) -> Keeps:
    """k[L-1] = k_total / (beta L), k[0] = 2 k_total / L - k[L-1], a straight line between, and the window on top.

    The window is kept in all layers alike: half of an average part at most goes to it.
    """
    L, H, N, C = len(psi), len(psi[0]), len(tokens_of(kinds)), account(kinds, budget)
    watching, keeps = observers(kinds, window_size), []
    top = min(len(watching), C // 2)
    last = 1 / steepness
    first = 2 - last
    weights = [first - (first - last) * number / max(1, L - 1) for number in range(L)]
    beyond = split((C - top) * H * L, weights, [(N - top) * H] * L)
    for layer, more in zip(psi, beyond, strict=True):
        shares = of_heads(more + top * H, H)
        ranks = [pooled(head, kinds, watching) for head in layer]
        keeps.append(
            [
                keep_one(r, kinds, watching, share, max(share // 2, top))
                for r, share in zip(ranks, shares, strict=True)
            ]
        )
    return keeps


# --- AdaKV (arXiv 2407.11550), algorithm 1 --------------------------------------------------------------------


def keep_adakv(
    psi: list[Layer], kinds: list[int], budget: float | int, *, window_size: str | int = 32, safeguard: float = 0.2
) -> Keeps:
    """B_h = (1 - safeguard) B*_h + safeguard B / H, B*_h being how many of the layer's B best are of head h."""
    C, keeps = account(kinds, budget), []
    protect = observers(kinds, window_size)
    sure = protect[max(0, len(protect) - C // 2) :]
    others = [i for i in tokens_of(kinds) if i not in sure]
    for layer in psi:
        H, free = len(layer), C - len(sure)
        ranks = [pooled(head, kinds, protect) for head in layer]
        pool = sorted((-ranks[h][i], h, i) for h in range(H) for i in others)[: free * H]
        stars = [sum(1 for _, of, _ in pool if of == h) for h in range(H)]
        wanted = [(1 - safeguard) * star + safeguard * free for star in stars]
        parts = split(free * H, wanted, [len(others)] * H)
        keeps.append([sorted(sure + best(others, ranks[h], parts[h])) for h in range(H)])
    return keeps


# --- LOOK-M (arXiv 2406.18139), equations 4 to 8 --------------------------------------------------------------


def keep_lookm(psi: list[Layer], kinds: list[int], budget: float | int) -> Keeps:
    """The newest half, then A_s with T_p = max(A_s) added to text."""
    C = account(kinds, budget)
    return [[_text_first(head, kinds, C, C // 2) for head in layer] for layer in psi]


def _text_first(head: Sequence[float], kinds: Sequence[int], C: int, recent: int) -> list[int]:
    prior = max(head)
    rank = [s + prior if kind == TEXT else s for s, kind in zip(head, kinds, strict=True)]
    return keep_one(rank, kinds, tokens_of(kinds), C, recent)


# --- MEDA (arXiv 2502.17599), equations 5 to 10 ---------------------------------------------------------------


def entropy_meda(row: Row) -> float:
    """E_TV + E_VT in nats: softmax over the other modality alone, no causal mask, rows and heads averaged."""
    G = len(row.query) // len(row.key)
    text = [i for i, kind in enumerate(row.kinds) if kind == TEXT]
    other = [i for i, kind in enumerate(row.kinds) if kind > TEXT]
    if not text or not other:
        return 0.0
    total = 0.0
    for rows, columns in ((text, other), (other, text)):
        summed = 0.0
        for h, query in enumerate(row.query):
            for j in rows:
                weight = softmax({i: dot(query[j], row.key[h // G][i]) * row.scaling for i in columns})
                summed -= sum(w * math.log(w) for w in weight.values() if w > 0)
        total += summed / (len(row.query) * len(rows))
    return total


def keep_meda(psi: list[Layer], kinds: list[int], budget: float | int, *, entropies: list[float]) -> Keeps:
    """alpha = softmax over layers of the entropies; three quarters of a part are recent, the rest as LOOK-M."""
    weights, H, keeps = softmax(dict(enumerate(entropies))), len(psi[0]), []
    totals = of_layers(kinds, budget, H, [weights[number] for number in range(len(psi))])
    for layer, total in zip(psi, totals, strict=True):
        parts = zip(layer, of_heads(total, H), strict=True)
        keeps.append([_text_first(head, kinds, C, C * 3 // 4) for head, C in parts])
    return keeps


# --- PrefixKV (arXiv 2412.03409) ------------------------------------------------------------------------------


def score_prefixkv(row: Row) -> Layer:
    """Accumulated attention, averaged over heads: one importance per layer."""
    heads = paid(row, tokens_of(row.kinds))
    mean = [sum(column) / len(heads) for column in zip(*heads, strict=True)]
    return [mean for _ in heads]


def keep_prefixkv(psi: list[Layer], kinds: list[int], budget: float | int, *, n_sink: int = 4) -> Keeps:
    """R[l] = min{o: P[l](o) >= p} for the greatest p at which the layers fit; the ends are protected.

    P only changes at the layers' own cumulative priorities, so that trying these finds p without a search.
    """
    tokens, C, L, H = tokens_of(kinds), account(kinds, budget), len(psi), len(psi[0])
    priority = []
    for layer in psi:
        values = sorted((layer[0][i] for i in tokens), reverse=True)
        running = [sum(values[: o + 1]) for o in range(len(values))]
        priority.append([x / running[-1] for x in running])

    def sizes(p: float) -> list[int]:
        return [next(o for o, held in enumerate(layer, start=1) if held >= p) for layer in priority]

    fitting = [p for p in sorted(held for layer in priority for held in layer) if sum(sizes(p)) <= C * L]
    totals = of_layers(kinds, budget, H, sizes(fitting[-1]) if fitting else [1] * L)
    ends = sorted({*tokens[: min(n_sink, C // 4)], tokens[-1]})
    keeps = []
    for layer, total in zip(psi, totals, strict=True):
        parts = zip(layer, of_heads(total, H), strict=True)
        keeps.append([keep_one(head, kinds, ends, share, share // 2) for head, share in parts])
    return keeps


# --- MixKV (arXiv 2510.20707) ---------------------------------------------------------------------------------


def score_mixkv(row: Row, *, window_size: str | int = 32, kernel_size: int = 5) -> Layer:
    """(1 - r) (attention + value norm) + r diversity for the tokens before the window."""
    kinds, tokens = row.kinds, tokens_of(row.kinds)
    T, watching = len(tokens), observers(kinds, window_size)
    candidates = [i for i in tokens if i not in watching]
    layer = []
    for h, votes in enumerate(score_snapkv(row, window_size=window_size)):
        attention = pooled(votes, kinds, watching, width=kernel_size, how="mean")
        unit = {i: [x / math.sqrt(dot(row.key[h][i], row.key[h][i])) for x in row.key[h][i]] for i in tokens}
        mean = [sum(column) / T for column in zip(*unit.values(), strict=True)]
        pairs = [dot(unit[i], unit[j]) for i in tokens for j in tokens if i != j]
        r = min(1.0, max(0.0, sum(pairs) / len(pairs))) if pairs else 0.0
        typical = sum(attention[i] for i in candidates) / max(1, len(candidates))
        diversity = _scaled({i: -dot(unit[i], mean) for i in candidates}, typical)
        norm = _scaled({i: math.sqrt(dot(row.value[h][i], row.value[h][i])) for i in candidates}, typical)
        mixed = {i: (1 - r) * (attention[i] + norm[i]) + r * diversity[i] for i in candidates}
        layer.append([mixed.get(i, attention[i]) for i in range(len(kinds))])
    return layer


def _scaled(x: dict[int, float], typical: float) -> dict[int, float]:
    """Brought to 0..1, then to the mean of the attention."""
    if not x:
        return x
    low, high = min(x.values()), max(x.values())
    unit = {i: (value - low) / (high - low + 1e-8) for i, value in x.items()}
    mean = sum(unit.values()) / len(unit)
    return {i: value * typical / (mean + 1e-8) for i, value in unit.items()}


def keep_mixkv(psi: list[Layer], kinds: list[int], budget: float | int, *, window_size: str | int = 32) -> Keeps:
    """The window, then the best; attention was pooled before it was mixed."""
    return keep_snapkv(psi, kinds, budget, window_size=window_size, kernel_size=1)


# --- MadaKV as published (arXiv 2506.15724): w_m, phi_m, k_m, phi[l+1] ----------------------------------------


def score_madakv(row: Row) -> Layer:
    """psi(i) = sum of the proxies' attention to i."""
    return paid(row, observers(row.kinds, "question"))


def keep_madakv_paper(
    psi: list[Layer],
    kinds: list[int],
    budget: float | int,
    *,
    theta: float = 0.9,
    adapt: bool = True,
    compensate: bool = True,
) -> Keeps:
    """MPA: a head's part split by w_m. HCC: what a layer spares of min(k_m, phi_m) goes to the later layers.

    Args:
        adapt: off (`hcc`), all tokens are of one kind.
        compensate: off (`mpa`), every layer keeps its whole part.
    """
    L, H, N = len(psi), len(psi[0]), len(tokens_of(kinds))
    protect = observers(kinds, "question")
    left, keeps = account(kinds, budget) * H * L, []
    for number, layer in enumerate(psi):
        later = L - number - 1
        total = min(left // (later + 1), N * H)
        # Nobody can use what the last layer spares, nor what is spared of a budget for everything.
        spare = compensate and later > 0 and left < N * H * (later + 1)
        plan = []
        for head, share in zip(layer, of_heads(total, H), strict=True):
            sure = protect[max(0, len(protect) - share // 2) :]
            others = [i for i in tokens_of(kinds) if i not in sure]
            of_kind = [[i for i in others if not adapt or kinds[i] == m] for m in range(4 if adapt else 1)]
            weight = [sum(head[i] for i in members) for members in of_kind]
            parts = split(share - len(sure), weight, [len(members) for members in of_kind])
            if spare:
                demand = [_fewest([head[i] for i in members], theta) for members in of_kind]
                parts = [min(pair) for pair in zip(parts, demand, strict=True)]
            kept = list(sure)
            for members, count in zip(of_kind, parts, strict=True):
                kept += best(members, head, count)
            plan.append(sorted(kept))
        left -= sum(len(kept) for kept in plan)
        keeps.append(plan)
    return keeps


def _fewest(values: Sequence[float], theta: float) -> int:
    """How many of the largest sum to theta of the whole."""
    ordered = sorted(values, reverse=True)
    whole = 0.0
    for value in ordered:
        whole += value
    held, count = 0.0, 0
    while held < theta * whole:
        held += ordered[count]
        count += 1
    return count
