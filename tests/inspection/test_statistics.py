"""How attention is spread, against plain loops from the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from madakv.inspection.statistics import (
    concentration,
    demand,
    interval_over_documents,
    per_token,
    preference,
    token_shares,
)

L, H, N = 2, 3, 23
MODALITY = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, -1, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0])


def attention(seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).gamma(0.3, size=(L, H, N)) * (MODALITY >= 0)
    return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_concentration_is_what_the_most_attended_hold(kind: int) -> None:
    paid, member = attention(), kind == MODALITY
    n = int(member.sum())
    shares = np.linspace(0, 1, 2 * n + 1)
    curve = concentration(paid, member, shares)
    for layer in range(L):
        for head in range(H):
            own = sorted((float(paid[layer, head, i]) for i in range(N) if member[i]), reverse=True)
            for k in range(n + 1):
                assert curve[layer, head, 2 * k] == pytest.approx(sum(own[:k]) / sum(own), abs=1e-9)
            # Between two tokens it is half way.
            for k in range(n):
                middle = (sum(own[:k]) + sum(own[: k + 1])) / 2 / sum(own)
                assert curve[layer, head, 2 * k + 1] == pytest.approx(middle, abs=1e-9)


def fewest(own: list[float], theta: float) -> int:
    own, held, count = sorted(own, reverse=True), 0.0, 0
    while held < theta * sum(own) - 1e-9:
        held += own[count]
        count += 1
    return count


@pytest.mark.parametrize("theta", [0.5, 0.9, 1.0])
def test_demand_is_the_fewest_tokens_that_hold_so_much(theta: float) -> None:
    paid = attention(1)
    for kind in (0, 1, 2):
        member = kind == MODALITY
        asked = demand(paid, member, theta)
        for layer in range(L):
            for head in range(H):
                own = [float(paid[layer, head, i]) for i in range(N) if member[i]]
                wanted = fewest(own, theta)
                # In sums of what is rounded, the very last tokens of a whole may be lost.
                assert asked[layer, head] == wanted or (theta == 1.0 and wanted - asked[layer, head] <= 2)


def test_rounding_asks_for_no_token_more() -> None:
    for count in (10, 60, 150):
        even = np.full((1, 1, count), 1 / count)
        assert demand(even, np.ones(count, bool)).item() == count * 9 // 10


def test_a_modality_that_gets_nothing_says_nothing() -> None:
    paid = attention()
    paid[0, 0, MODALITY == 1] = 0
    asked = demand(paid, MODALITY == 1)
    assert np.isnan(asked[0, 0])
    assert not np.isnan(asked).ravel()[1:].any()
    assert np.isnan(concentration(paid, MODALITY == 1, np.array([0.0, 1.0]))[0, 0]).all()
    nobody = np.zeros(N, bool)
    assert np.isnan(demand(paid, nobody)).all()
    assert concentration(paid, nobody, np.array([0.0, 0.5])).shape == (L, H, 2)
    assert np.isnan(concentration(paid, nobody, np.array([0.0, 0.5]))).all()


def test_one_token_holds_all_that_it_gets() -> None:
    paid, member = np.ones((1, 1, 1)), np.ones(1, bool)
    assert concentration(paid, member, np.array([0.0, 0.25, 1.0])).ravel().tolist() == [0.0, 0.25, 1.0]
    assert demand(paid, member).item() == 1


def test_preference_and_what_it_is_per_token() -> None:
    paid = attention(2)
    split, shares = preference(paid, MODALITY), token_shares(MODALITY)
    each = per_token(split, shares)
    counts = [sum(int(kind) == m for kind in MODALITY) for m in range(4)]
    assert shares.tolist() == [count / sum(counts) for count in counts]
    for layer in range(L):
        for head in range(H):
            weights = [sum(float(paid[layer, head, i]) for i in range(N) if MODALITY[i] == m) for m in range(4)]
            apiece = [weight / count if count else 0.0 for weight, count in zip(weights, counts, strict=True)]
            for m in range(4):
                assert split[layer, head, m] == pytest.approx(weights[m] / sum(weights))
                assert each[layer, head, m] == pytest.approx(apiece[m] / sum(apiece))


def test_even_attention_prefers_no_token() -> None:
    even = np.full((1, 1, N), 1 / N)
    each = per_token(preference(even, MODALITY), token_shares(MODALITY)).ravel()
    assert each.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_intervals_draw_whole_documents() -> None:
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(size=6), 50)
    documents = [str(i // 50) for i in range(300)]
    low, high = interval_over_documents(values, documents)
    means = values[::50]
    drawn = [rng.choice(means, 6).mean() for _ in range(4000)]
    wanted = np.percentile(drawn, [2.5, 97.5])
    assert [low, high] == pytest.approx(wanted.tolist(), abs=0.1)
    # Were values drawn one by one, the interval would be a seventh of that.
    assert high - low > 3 * (wanted[1] - wanted[0]) / 7
    assert interval_over_documents(values, documents).tolist() == [low, high]
    assert np.isnan(interval_over_documents(values[:50], documents[:50])).all()
