"""The pool that heads of all layers share: exact at the end, within the account all along, lazy in between."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madakv.budget import SharedPool
from madakv.plan import KeepPlan


def fill(pool: SharedPool, scores: list[torch.Tensor], sure: int) -> list[list[KeepPlan]]:
    """The plans after each layer; every head is sure of its first `sure` entries."""
    history = []
    for score in scores:
        first = torch.zeros_like(score, dtype=torch.bool)
        first[..., :sure] = True
        pool.add(score, torch.ones_like(first), first)
        history.append(list(pool.plans))
    return history


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    layers=st.integers(1, 6),
    rows=st.integers(1, 3),
    sure=st.integers(0, 2),
    levels=st.sampled_from([2, 1000]),
)
def test_the_last_pool_is_the_best_of_all_layers_and_no_pool_is_too_large(
    seed: int, layers: int, rows: int, sure: int, levels: int
) -> None:
    H, N = 2, 9
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(levels, (rows, H, N), generator=generator).float() for _ in range(layers)]
    average = torch.randint(sure, N + 1, (rows,), generator=generator)
    pool = SharedPool(average * H * layers, torch.full((rows,), sure * H), layers)
    history = fill(pool, scores, sure)
    total = int(average.sum()) * H * layers
    assert all(sum(len(plan.positions) for plan in plans) <= total for plans in history)
    for b in range(rows):
        order = []
        for layer, score in enumerate(scores):
            for h in range(H):
                for i in range(N):
                    order.append((-float("inf") if i < sure else -float(score[b, h, i]), layer, h, i))
        best = sorted(order)[: int(average[b]) * H * layers]
        for layer, plan in enumerate(pool.plans):
            for h in range(H):
                assert plan.indices[b][h].tolist() == sorted(i for _, at, g, i in best if (at, g) == (layer, h))


def test_layers_are_left_alone_while_there_is_room() -> None:
    """Each layer is better than those before it, and takes from all of them; not all are copied for it."""
    layers, N = 16, 100
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(1, 1, N, generator=generator) + layer / 8 for layer in range(layers)]
    history = fill(SharedPool(torch.tensor([layers * 20]), torch.tensor([8]), layers), scores, 8)
    copied = [
        sum(now is not before for now, before in zip(plans[:-1], earlier, strict=True))
        for earlier, plans in pairwise(history)
    ]
    assert copied[:2] == [0, 0], "nothing is let go of before the account is full"
    # 73 copies if all that lost something were narrowed at once, 58 if those that lost least came first.
    assert 0 < sum(copied) < 55
