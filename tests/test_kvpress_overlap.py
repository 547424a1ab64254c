"""The comparison with kvpress: its pure functions. Both libraries meet in scripts/kvpress_overlap.py itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from tests.scripts import load_script

H, G, N, L = 2, 2, 40, 3
overlap = load_script("kvpress_overlap")


def attention() -> list[Tensor]:
    hidden = torch.ones(N, N, dtype=torch.bool).triu(1)
    return [(torch.randn(H * G, N, N) * 3).masked_fill(hidden, float("-inf")).softmax(-1) for _ in range(L)]


def test_overlap_counts_what_kvpress_kept_and_jaccard_what_either_did() -> None:
    ours, theirs = [[[0, 1, 2, 3]], [[5, 6]]], [[[0, 1]], [[6, 7]]]
    found = overlap.compare(ours, theirs)
    assert found.overlap == pytest.approx((1 + 1 / 2) / 2)
    assert found.jaccard == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert (found.least_overlap, found.least_jaccard) == pytest.approx((1 / 2, 1 / 3))
    assert (found.ours, found.theirs) == (3, 2)


def test_empty_sets_agree_with_each_other_alone() -> None:
    assert overlap.compare([[[]]], [[[]]]).jaccard == 1
    assert overlap.compare([[[1]]], [[[]]]).jaccard == 0


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        overlap.compare([[[1], [2]]], [[[1]]])
    with pytest.raises(ValueError, match="cannot be compared"):
        overlap.compare([[[1]]], [[[1]], [[1]]])


@pytest.mark.parametrize("case", overlap.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("budget", [0.5, 0.2, 0.1])
def test_the_rules_are_those_of_madakv(case: Any, budget: float) -> None:
    scores = attention()
    if case.ours.scores in ("keys", "expected", "repeated"):
        scores = [layer[:H, -1] for layer in scores]
    window = case.ours.window
    psi = [
        layer[None]
        if layer.dim() == 2
        else (layer.sum(1) if case.ours.scores != "window" else layer[:, -window:].sum(1)).view(H, G, N).mean(1)[None]
        for layer in scores
    ]
    plans = madakv.allocate(psi, torch.zeros(1, N, dtype=torch.int64), case.method, budget=budget, **case.options)
    kept = [[head.tolist() for head in plan.indices[0]] for plan in plans]
    assert overlap.keep(scores, H, budget, case.ours) == kept


@pytest.mark.parametrize("budget", [0.5, 0.2, 0.1])
def test_every_step_of_a_ladder_keeps_an_account(budget: float) -> None:
    scores = attention()
    for case in overlap.CASES:
        if "same options" not in case.name:
            continue
        rules = case.ours
        for _, change in case.steps:
            rules = replace(rules, **change)
            kept = overlap.keep(scores, H, budget, rules)
            count = sum(len(head) for layer in kept for head in layer)
            assert abs(count - budget * N * H * L) <= H * L
            assert all(head == sorted(set(head)) for layer in kept for head in layer)


def test_our_pyramid_stands_on_the_window_and_that_of_kvpress_holds_it() -> None:
    ours = overlap.Rules("window", window=8, kernel=5, steepness=4.0)
    assert overlap._layer_totals(4, 4, 400, 0.1, 40, 8, ours) == [4 * n for n in (64, 48, 32, 16)]
    over = replace(ours, pyramid_over_window=True)
    assert overlap._layer_totals(4, 4, 400, 0.1, 40, 0, over) == [4 * n for n in (70, 50, 30, 10)]
    assert overlap.kvpress_pyramid(4, 400, 0.1, 8, 4) == [70, 50, 30, 10]


def test_the_window_takes_its_floor_in_every_layer() -> None:
    rules = overlap.Rules("window", window=8, kernel=5, steepness=20.0)
    last = overlap.keep(attention(), H, 0.25, rules)[-1]
    # The average is 10, so the floor is 5, and what the pyramid adds to it in the last layer is next to nothing.
    assert all(head[-5:] == [35, 36, 37, 38, 39] and len(head) <= 6 for head in last)


def test_the_pyramid_of_kvpress_falls_back_to_even_layers() -> None:
    assert overlap.kvpress_pyramid(4, 400, 0.5, 8, 20) == [390, 263, 137, 10]
    assert overlap.kvpress_pyramid(4, 400, 0.1, 8, 20) == [40, 40, 40, 40]
    assert overlap.kvpress_pyramid(4, 400, 0.5, 64, 20) == [336, 245, 155, 64]


def test_a_hard_floor_lets_heads_differ_more_than_a_mix_of_parts() -> None:
    low = torch.linspace(0, 0.5, N)
    # Of the 20 best of both heads, 15 are in the first.
    score = torch.stack([low + (torch.arange(N) < 15), low + (torch.arange(N) < 5)])
    assert overlap._hard_floor(score, 10, 0.2).sum(-1).tolist() == [15, 5]
    assert overlap._mixed(score, torch.tensor([10, 10]), 0.2).tolist() == [14, 6]
    # A floor above what the second head has among the best.
    assert overlap._hard_floor(score, 10, 0.8).sum(-1).tolist() == [12, 8]
