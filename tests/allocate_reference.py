"""MadaKV's allocation once more, slowly: loops over rows, layers, heads and tokens, Python floats only.

`madakv.allocate` decides the same for all rows and heads at once; tests hold the two together. Nothing here is
shared with that code, so that a mistake in one shows as a difference between both. Ours and the paper's are one here:
what differs between them is what `Rules` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import Any

from torch import Tensor

from madakv import MadaKV
from madakv.methods.madakv_paper import HCC, MPA, MadaKVPaper

PADDING = -1
TEXT = 0
MODALITIES = range(4)


@dataclass(frozen=True)
class Rules:
    """What a method's options come to.

    Attributes:
        between_layers: "shared", "none", "capped", "demand" or "signal": what layers hand on to each other.
        safeguard: share of its even part that a head is sure of.
        one_kind: whether modalities do not count.
        heads_even: whether the heads of a layer share evenly what competition leaves it.
    """

    budget: float | int
    between_layers: str
    proxies: str | int
    max_proxies: int
    protected: float
    theta: float = 1.0
    safeguard: float = 1.0
    text_pooling: int = 1
    one_kind: bool = False
    heads_even: bool = False

    @classmethod
    def of(cls, method: MadaKV | MPA) -> Rules:
        alike = ("budget", "proxies", "max_proxies", "protected")
        own: dict[str, Any] = {name: method.options[name] for name in alike}
        if isinstance(method, MadaKV):
            between = "shared" if method.shape in ("ragged", "heads-even") else "none"
            sure = 1.0 if method.shape == "rectangular" else method.safeguard
            pooling, even = method.weights.text_pooling, method.shape == "heads-even"
            return cls(between_layers=between, safeguard=sure, text_pooling=pooling, heads_even=even, **own)
        if not isinstance(method, MadaKVPaper):
            return cls(between_layers="none", **own)
        one_kind = isinstance(method, HCC)
        return cls(between_layers=method.compensation, theta=method.theta, one_kind=one_kind, **own)


@dataclass(frozen=True)
class _Head:
    """What one head sees of one layer's allotment, before compensation.

    Attributes:
        protected: tokens kept whatever their score, sorted.
        ranked: per modality, the candidates from the highest ranking score down.
        share: per modality, how many of them the allotment pays for.
        demand: per modality, how many of them hold theta of its weight.
    """

    protected: list[int]
    ranked: list[list[int]]
    share: list[int]
    demand: list[int]

    def keep(self, counts: Sequence[int]) -> list[int]:
        """The sorted token indices that stay when `counts[m]` candidates of each modality m do."""
        kept = list(self.protected)
        for candidates, count in zip(self.ranked, counts, strict=True):
            kept += candidates[:count]
        return sorted(kept)


def allocate_reference(psi: Sequence[Tensor], modality: Tensor, method: MadaKV | MPA) -> list[list[list[list[int]]]]:
    """Decide which prompt entries stay, one row, layer and head at a time.

    Args:
        psi: per layer, [B, H, N] float scores.
        modality: [B, N] of `Modality` values, -1 for padding.
        method: its scores play no part, its budget and its options do.

    Returns:
        The sorted kept token indices, indexed by layer, row and head.
    """
    rules = Rules.of(method)
    scores: list[list[list[list[float]]]] = [layer.tolist() for layer in psi]
    rows = [_allocate_row([layer[b] for layer in scores], kinds, rules) for b, kinds in enumerate(modality.tolist())]
    return [[row[number] for row in rows] for number in range(len(scores))]


def _allocate_row(
    psi: Sequence[Sequence[Sequence[float]]], kinds: Sequence[int], rules: Rules
) -> list[list[list[int]]]:
    """All layers of one row: the kept indices per layer and head."""
    L, H, N = len(psi), len(psi[0]), sum(kind != PADDING for kind in kinds)
    average = entries_reference(rules.budget, N)
    proxies = proxies_reference(kinds, rules.proxies, rules.max_proxies)
    if rules.one_kind:
        kinds = [min(kind, TEXT) for kind in kinds]
    if rules.between_layers == "shared":
        return _share(psi, kinds, proxies, average, rules)
    pot = average * H * L
    reserve = average * H // 2
    steered = 0
    plan = []
    for number, layer in enumerate(psi, start=1):
        left = L - number + 1
        even = min(pot // left, N * H)
        most = min(max(pot - reserve * (left - 1), even), N * H)
        ample = pot >= N * H * left
        last = left == 1

        allotment = even
        if rules.between_layers == "signal" and number > 1:
            if last:
                allotment = most
            elif not ample:
                allotment = max(min(steered, most), reserve)

        heads = []
        for h, scores in enumerate(layer):
            entries = allotment // H + (1 if h < allotment % H else 0)
            heads.append(_consider(scores, kinds, proxies, entries, rules))

        if rules.safeguard < 1:
            heads = _compete(heads, layer, kinds, rules)
        protected = sum(len(head.protected) for head in heads)
        demanded = sum(sum(head.demand) for head in heads)
        if rules.between_layers in ("none", "signal") or ample or last:
            counts = [head.share for head in heads]
        elif rules.between_layers == "capped":
            counts = [[min(pair) for pair in zip(head.demand, head.share, strict=True)] for head in heads]
        else:
            wanted = [sum(head.demand) for head in heads]
            granted = apportion_reference(max(most - protected, 0), wanted, wanted)
            counts = [
                apportion_reference(entries, head.demand, head.demand)
                for entries, head in zip(granted, heads, strict=True)
            ]

        kept = [head.keep(count) for head, count in zip(heads, counts, strict=True)]
        plan.append(kept)
        pot -= sum(len(indices) for indices in kept)
        surplus = protected + demanded - allotment
        steered = allotment - surplus // max(1, left - 1)
    return plan


def _share(
    psi: Sequence[Sequence[Sequence[float]]],
    kinds: Sequence[int],
    proxies: Sequence[int],
    average: int,
    rules: Rules,
) -> list[list[list[int]]]:
    """All layers of one row, where what no head is sure of goes to the best of all, known from the first."""
    L, H = len(psi), len(psi[0])
    kept: list[list[list[int]]] = [[[] for _ in range(H)] for _ in range(L)]
    others = []
    for number, layer in enumerate(psi):
        for h, scores in enumerate(layer):
            head = _consider(scores, kinds, proxies, int(average * rules.safeguard), rules)
            kept[number][h] = head.keep(head.share)
            for i, kind in enumerate(kinds):
                if kind != PADDING and i not in kept[number][h]:
                    others.append((-_ranking_score(scores, kinds, i, rules.text_pooling), number, h, i))
    free = average * H * L - sum(len(indices) for heads in kept for indices in heads)
    won = sorted(others)[:free]
    if rules.heads_even:
        for number, heads in enumerate(kept):
            total = sum(len(indices) for indices in heads) + sum(1 for _, of, _, _ in won if of == number)
            for h, indices in enumerate(heads):
                more = total // H + (1 if h < total % H else 0) - len(indices)
                own = sorted(entry for entry in others if entry[1:3] == (number, h))
                indices += [i for _, _, _, i in own[:more]]
    else:
        for _, number, h, i in won:
            kept[number][h].append(i)
    return [[sorted(indices) for indices in heads] for heads in kept]


def _consider(
    psi: Sequence[float], kinds: Sequence[int], proxies: Sequence[int], entries: int, rules: Rules
) -> _Head:
    """Rank one head's candidates and split its entries among the modalities."""
    protect = min(int(entries * rules.protected), len(proxies))
    protected = list(proxies[len(proxies) - protect :])
    ranked: list[list[int]] = []
    weight: list[float] = []
    demand: list[int] = []
    for modality in MODALITIES:
        candidates = [i for i, kind in enumerate(kinds) if kind == modality and i not in protected]
        ranked.append(sorted(candidates, key=lambda i: (-_ranking_score(psi, kinds, i, rules.text_pooling), i)))
        values = sorted((psi[i] for i in candidates), reverse=True)
        weight.append(_plain_sum(values))
        demand.append(_fewest(values, rules.theta * weight[-1]))
    share = apportion_reference(entries - protect, weight, [len(candidates) for candidates in ranked])
    return _Head(protected=protected, ranked=ranked, share=share, demand=demand)


def _compete(
    heads: Sequence[_Head], psi: Sequence[Sequence[float]], kinds: Sequence[int], rules: Rules
) -> list[_Head]:
    """The heads once they have competed for what lies above their safeguard, with new shares."""
    sure = rules.safeguard
    even = [sum(head.share) for head in heads]
    entries = [
        (-_ranking_score(psi[h], kinds, i, rules.text_pooling), h, i, m)
        for h, head in enumerate(heads)
        for m, candidates in enumerate(head.ranked)
        for i in candidates
    ]
    best = [(h, m) for _, h, _, m in sorted(entries)[: sum(even)]]
    counts = [[best.count((h, m)) for m in MODALITIES] for h in range(len(heads))]
    wanted = [
        [sure * own + (1 - sure) * c for own, c in zip(head.share, count, strict=True)]
        for head, count in zip(heads, counts, strict=True)
    ]
    rooms = [[len(candidates) for candidates in head.ranked] for head in heads]
    free = apportion_reference(sum(even), [_plain_sum(parts) for parts in wanted], [sum(room) for room in rooms])
    return [
        replace(head, share=apportion_reference(own, parts, room))
        for head, own, parts, room in zip(heads, free, wanted, rooms, strict=True)
    ]


def _plain_sum(values: Sequence[float]) -> float:
    """Add up from left to right, rounding at each step (the built-in `sum` compensates)."""
    total = 0.0
    for value in values:
        total += value
    return total


def _fewest(values: Sequence[float], target: float) -> int:
    """How many of `values`, from the first on, sum to at least `target`; 0 for a target of 0."""
    total = 0.0
    for count, value in enumerate(values):
        if total >= target:
            return count
        total += value
    return len(values)


def _ranking_score(psi: Sequence[float], kinds: Sequence[int], i: int, text_pooling: int) -> float:
    """The score that orders candidate i: psi, for text the maximum over the text tokens around it."""
    if kinds[i] != TEXT:
        return psi[i]
    reach = text_pooling // 2
    window = range(max(i - reach, 0), min(i + reach + 1, len(kinds)))
    return max(psi[j] for j in window if kinds[j] == TEXT)


def entries_reference(budget: float | int, N: int) -> int:
    """Entries per head and layer on average: no more than the share of N tokens, as close as floats can tell."""
    return min(budget, N) if isinstance(budget, int) else floor((Fraction(budget) + Fraction(1, 10**12)) * N)


def proxies_reference(kinds: Sequence[int], rule: str | int, at_most: int) -> list[int]:
    """The tokens of one row whose queries score all others, sorted."""
    valid = [i for i, kind in enumerate(kinds) if kind != PADDING]
    if not isinstance(rule, str):
        return valid[max(len(valid) - rule, 0) :]
    question: list[int] = []
    for i in valid:
        question = [*question, i] if kinds[i] == TEXT else []
    chosen = question or valid
    return chosen[max(len(chosen) - at_most, 0) :]


def apportion_reference(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights` by largest remainder, no part above its cap.

    Parts that reach their cap leave the rest to the others; where no weight is left, room decides.
    """
    parts = [0] * len(caps)
    rest = min(total, sum(caps))
    active = [m for m, cap in enumerate(caps) if cap > 0]
    while rest > 0:
        mass = [float(weights[m]) for m in active]
        if not any(mass):
            mass = [float(caps[m]) for m in active]
        whole = _plain_sum(mass)
        exact = {m: rest * (part / whole) for m, part in zip(active, mass, strict=True)}
        full = [m for m in active if exact[m] >= caps[m]]
        if full:
            for m in full:
                parts[m] = caps[m]
                rest -= caps[m]
            active = [m for m in active if m not in full]
            continue
        remainder = {}
        for m in active:
            parts[m] = int(exact[m])
            remainder[m] = exact[m] - parts[m]
            rest -= parts[m]
        for _ in range(rest):
            largest = max(remainder.values())
            m = min(m for m, fraction in remainder.items() if fraction >= largest - 1e-9)
            parts[m] += 1
            del remainder[m]
        rest = 0
    return parts
