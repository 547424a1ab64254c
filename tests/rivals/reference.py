"""Every rival once more, from the papers' equations: one row of a batch, plain loops, Python floats.

`score_*` measures one layer and gives [H][N]; `keep_*` decides all layers from such scores and gives the sorted
kept positions, [L][H]. Where the papers leave the prompt's account open, the methods' docstrings close it: C =
floor(budget * N) entries per head and layer on average, protected tokens counted, the newest of them first and at
most half of a head's part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.rivals.loops import (
    TEXT,
    Keeps,
    Layer,
    Row,
    account,
    best,
    dot,
    keep_one,
    observers,
    of_heads,
    of_layers,
    paid,
    pooled,
    softmax,
    split,
    tokens_of,
    turned,
)

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
    C, watching, keeps = account(kinds, budget), observers(kinds, window_size), []
    sure = watching[max(0, len(watching) - C // 2) :]
    for layer in psi:
        ranks = [pooled(head, kinds, watching) for head in layer]
        keeps.append(_adapted(ranks, kinds, C, sure, safeguard))
    return keeps


def _adapted(ranks: Layer, kinds: Sequence[int], C: int, sure: Sequence[int], safeguard: float) -> list[list[int]]:
    """One layer of C entries per head on average, of which all heads keep the sure ones."""
    others = [i for i in tokens_of(kinds) if i not in sure]
    H, free = len(ranks), C - len(sure)
    pool = sorted((-ranks[h][i], h, i) for h in range(H) for i in others)[: free * H]
    stars = [sum(1 for _, of, _ in pool if of == h) for h in range(H)]
    wanted = [(1 - safeguard) * star + safeguard * free for star in stars]
    parts = split(free * H, wanted, [len(others)] * H)
    return [sorted([*sure, *best(others, ranks[h], parts[h])]) for h in range(H)]


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


# --- KeyDiff (arXiv 2504.15364) --------------------------------------------------------------------------------


def score_keydiff(row: Row) -> Layer:
    """One less the cosine of a key and the mean of all unit keys."""
    tokens, layer = tokens_of(row.kinds), []
    for key in row.key:
        unit = {i: [x / math.sqrt(dot(key[i], key[i])) for x in key[i]] for i in tokens}
        anchor = [sum(column) / len(tokens) for column in zip(*unit.values(), strict=True)]
        length = math.sqrt(dot(anchor, anchor))
        layer.append([1 - dot(unit[i], anchor) / length if i in unit else 0.0 for i in range(len(row.kinds))])
    return layer


def keep_keydiff(psi: list[Layer], kinds: list[int], budget: float | int) -> Keeps:
    """The best of each head."""
    tokens, C = tokens_of(kinds), account(kinds, budget)
    return [[sorted(best(tokens, head, C)) for head in layer] for layer in psi]


# --- Expected Attention (arXiv 2510.00636) ---------------------------------------------------------------------


def score_expected_attention(
    row: Row,
    *,
    n_future_positions: int = 512,
    n_sink: int = 4,
    use_covariance: bool = True,
    epsilon: float = 0.0,
) -> Layer:
    """softmax over keys of E[exp(s q . k)] for q of normal distribution, turned by the mean rotation ahead."""
    tokens, D = tokens_of(row.kinds), len(row.key[0][0])
    H, G = len(row.key), len(row.query) // len(row.key)
    counted = tokens[n_sink:]
    ahead = [len(tokens) + step for step in range(n_future_positions)]
    basis = [[1.0 if i == j else 0.0 for j in range(D)] for i in range(D)]
    # Columns of the mean rotation: where each unit vector goes.
    images = [[turned(unit, position) for position in ahead] for unit in basis]
    columns = [[sum(x) / len(ahead) for x in zip(*image, strict=True)] for image in images]

    def rotated(x: Sequence[float]) -> list[float]:
        return [sum(x[j] * columns[j][i] for j in range(D)) for i in range(D)]

    layer = [[0.0] * len(row.kinds) for _ in range(H)]
    for h in range(H):
        for g in range(G):
            states = {i: turned(row.query[h * G + g][i], tokens.index(i), back=True) for i in counted}
            if not states:
                continue
            mean = [sum(x) / len(states) for x in zip(*states.values(), strict=True)]
            off = [rotated([a - b for a, b in zip(x, mean, strict=True)]) for x in states.values()]
            logits = {}
            for i in counted:
                key = row.key[h][i]
                variance = sum(dot(x, key) ** 2 for x in off) / len(off) if use_covariance else 0.0
                logits[i] = dot(rotated(mean), key) * row.scaling + variance * row.scaling**2 / 2
            for i, alpha in softmax(logits).items():
                layer[h][i] += (alpha + epsilon) / G
    return layer


def keep_expected_attention(
    psi: list[Layer], kinds: list[int], budget: float | int, *, n_sink: int = 4, safeguard: float = 1.0
) -> Keeps:
    """The first tokens, at most half of a part, and the best of all others, as AdaKV shares a layer out."""
    tokens, C = tokens_of(kinds), account(kinds, budget)
    return [_adapted(layer, kinds, C, tokens[: min(n_sink, C // 2)], safeguard) for layer in psi]


# --- KVzip (arXiv 2505.23416) and its two budgets -------------------------------------------------------------


def score_kvzip(
    attention: list[list[list[float]]], *, prompt: int, chunk_size: int, n_sink: int, heads: int
) -> Layer:
    """From one layer's attention over a prompt and its repetition, [Hq][2 N][2 N].

    The most that the repetition of a chunk pays to each of its tokens, of what goes to the first tokens, the chunk
    and any repetition.
    """
    layer = [[0.0] * prompt for _ in range(heads)]
    for number, rows in enumerate(attention):
        h = number * heads // len(attention)
        for j in range(prompt):
            start = j // chunk_size * chunk_size
            chunk = range(start, min(start + chunk_size, prompt))
            row = rows[prompt + j]
            whole = sum(row[i] for i in {*range(n_sink), *chunk}) + sum(row[prompt:])
            for i in chunk:
                layer[h][i] = max(layer[h][i], row[i] / whole)
    return layer


def keep_kvzip(
    psi: list[Layer], kinds: list[int], budget: float | int, *, budgets: str = "headwise", n_sink: int = 4
) -> Keeps:
    """The best of all heads of all layers, or of each head; the first tokens are protected."""
    tokens, C, L, H = tokens_of(kinds), account(kinds, budget), len(psi), len(psi[0])
    sure = tokens[: min(n_sink, C // 2)]
    others = [i for i in tokens if i not in sure]
    if budgets == "uniform":
        return [[sorted([*sure, *best(others, head, C - len(sure))]) for head in layer] for layer in psi]
    ranked = sorted(
        (-head[i], number, h, i) for number, layer in enumerate(psi) for h, head in enumerate(layer) for i in others
    )
    won = ranked[: (C - len(sure)) * H * L]
    return [
        [sorted([*sure, *(i for _, at, of, i in won if (at, of) == (number, h))]) for h in range(H)]
        for number in range(L)
    ]


# --- TGV-KV (arXiv 2606.03075): TVB, TWR, TPR ------------------------------------------------------------------


def looked_up_tgv_kv(row: Row) -> float:
    """What text pays to pictures, the mean over heads: the layer's weight."""
    heads = paid(row, _guides(row.kinds))
    return sum(head[i] for head in heads for i, kind in enumerate(row.kinds) if kind > TEXT) / len(heads)


def score_tgv_kv(row: Row) -> Layer:
    """Text: attention of all queries. Pictures: attention of text, weighted by what text on average pays to it."""
    kinds, guides, H = row.kinds, _guides(row.kinds), len(row.key)

    def mean(queries: list[int]) -> list[float]:
        return [sum(column) / H for column in zip(*paid(row, queries), strict=True)]

    heavy = mean(guides)
    score = mean(tokens_of(kinds))
    if guides:
        weighted = [0.0] * len(kinds)
        for number, j in enumerate(guides):
            weight = heavy[j] / (len(guides) - number)
            weighted = [have + weight * more for have, more in zip(weighted, mean([j]), strict=True)]
        score = [weighted[i] if kind > TEXT else score[i] for i, kind in enumerate(kinds)]
    return [score for _ in range(H)]


def _guides(kinds: Sequence[int]) -> list[int]:
    """Text behind the first token of another kind."""
    return [i for i, kind in enumerate(kinds) if kind == TEXT and any(k > TEXT for k in kinds[:i])]


def keep_tgv_kv(
    psi: list[Layer], kinds: list[int], budget: float | int, *, looked_up: list[float], n_sink: int = 4
) -> Keeps:
    """Layers by what text looks up, heads alike; the ends are protected, and text outranks pictures."""
    tokens, C, H, keeps = tokens_of(kinds), account(kinds, budget), len(psi[0]), []
    ends = sorted({*tokens[: min(n_sink, C // 4)], tokens[-1]})
    for layer, total in zip(psi, of_layers(kinds, budget, H, looked_up), strict=True):
        mean = [sum(column) / H for column in zip(*layer, strict=True)]
        rank = [s + 1 + max(mean) if kind == TEXT else s for s, kind in zip(mean, kinds, strict=True)]
        keeps.append([keep_one(rank, kinds, ends, share, share // 2) for share in of_heads(total, H)])
    return keeps


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
