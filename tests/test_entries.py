"""How many entries a budget is: never more than its share, and no fewer for the sake of a float's last bits."""

from __future__ import annotations

import pytest
import torch

import madakv
from madakv.budget import prompt_entries


def test_every_share_in_hundredths_of_every_prompt_rounds_down() -> None:
    tokens = torch.arange(10_001)
    for percent in range(1, 101):
        assert torch.equal(prompt_entries(percent / 100, tokens), tokens * percent // 100), percent


@pytest.mark.parametrize(
    ("budget", "tokens", "entries"),
    [
        (0.2, 3, 0),
        (0.5, 99, 49),
        (0.1, 30, 3),
        (0.7, 10, 7),
        # 28.999999999999996 as floats multiply.
        (0.29, 100, 29),
        # 0.19999999999999996.
        (1 - 0.8, 10, 2),
        (1 / 3, 9, 3),
        (0.1 + 0.2, 10, 3),
        (0.9999, 10_000_000, 9_999_000),
        (0.9999, 10_000_001, 9_999_000),
        (1.0, 10_000_001, 10_000_001),
        (7, 3, 3),
        (7, 30, 7),
    ],
)
def test_entries_of_a_budget(budget: float | int, tokens: int, entries: int) -> None:
    assert prompt_entries(budget, torch.tensor([tokens])).tolist() == [entries]


@pytest.mark.parametrize("method", sorted(set(madakv.list_methods()) - {"full", "meda", "tgv_kv"}))
def test_a_budget_of_less_than_one_entry_keeps_nothing(method: str) -> None:
    psi, modality = [torch.rand(1, 2, 4) for _ in range(3)], torch.tensor([[0, 1, 1, 0]])
    plans = madakv.allocate(psi, modality, method, budget=0.2)
    assert sum(int(plan.counts.sum()) for plan in plans) == 0
