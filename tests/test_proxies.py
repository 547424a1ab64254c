"""Whose queries score: the question, or what stands in for it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madakv.scoring import proxy_mask, spread_mask
from madakv.scoring.proxies import newest
from tests.allocate_reference import proxies_reference


def marked(row: list[int], rule: str | int = "question", at_most: int = 32) -> list[int]:
    mask = proxy_mask(torch.tensor([row]), rule, at_most)  # type: ignore[arg-type]
    assert mask.shape == (1, len(row))
    assert mask.dtype == torch.bool
    found: list[int] = mask[0].nonzero().flatten().tolist()
    return found


@pytest.mark.parametrize(
    ("row", "at_most", "expected"),
    [
        pytest.param([0, 1, 1, 0, 0], 32, [3, 4], id="the text behind the image"),
        pytest.param([0, 1, 0, 2, 0, 3, 0], 32, [6], id="behind the last of several"),
        pytest.param([0, 1, 1, 0, 0], 1, [4], id="the newest of it"),
        pytest.param([0, 0, 0], 2, [1, 2], id="text alone"),
        pytest.param([0, 1, 1], 2, [1, 2], id="no question: the last tokens of any kind"),
        pytest.param([3], 32, [0], id="a single token"),
        pytest.param([-1, 1, 0, -1, 0, -1], 32, [2, 4], id="padding anywhere"),
        pytest.param([0, 0, 1, -1, -1], 2, [1, 2], id="no question, and padding behind it"),
        pytest.param([-1, -1], 32, [], id="nothing but padding"),
    ],
)
def test_question(row: list[int], at_most: int, expected: list[int]) -> None:
    assert marked(row, "question", at_most) == expected


@pytest.mark.parametrize(
    ("row", "count", "expected"),
    [
        pytest.param([0, 1, 1, 0, 1], 3, [2, 3, 4], id="of any kind"),
        pytest.param([0, 1, -1, 0, -1], 2, [1, 3], id="padding does not count"),
        pytest.param([0, 1], 9, [0, 1], id="fewer tokens than that"),
        pytest.param([0] * 40, 40, list(range(40)), id="no other limit"),
    ],
)
def test_fixed_count(row: list[int], count: int, expected: list[int]) -> None:
    assert marked(row, count) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(-1, 3), min_size=7, max_size=7), min_size=1, max_size=3),
    st.one_of(st.just("question"), st.integers(1, 9)),
    st.integers(1, 9),
)
def test_every_row_as_a_loop_marks_it(rows: list[list[int]], rule: str | int, at_most: int) -> None:
    mask = proxy_mask(torch.tensor(rows), rule, at_most)  # type: ignore[arg-type]
    for row, marks in zip(rows, mask, strict=True):
        found = marks.nonzero().flatten().tolist()
        assert found == proxies_reference(row, rule, at_most)
        assert bool(found) == any(kind >= 0 for kind in row)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 40])
def test_a_spread_is_even_and_ends_with_the_last(count: int) -> None:
    modality = torch.tensor([[-1] * 3 + [0, 1, 1, 0, 0, 1, 0], [0] * 10, [-1] * 10])
    chosen = spread_mask(modality, count)
    assert not chosen[modality < 0].any()
    for row, tokens in ((0, 7), (1, 10), (2, 0)):
        places = [i - (10 - tokens) for i in chosen[row].nonzero()[:, 0].tolist()]
        assert len(places) == min(count, tokens)
        assert not places or places[-1] == tokens - 1
        steps = {b - a for a, b in pairwise(places)}
        assert len(steps) <= 2
        assert not steps or max(steps) - min(steps) <= 1


def test_newest_takes_a_count_per_row() -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], dtype=torch.bool)
    kept = newest(mask, torch.tensor([[3], [0]]))
    assert kept.tolist() == [[False, True, False, True, True], [False] * 5]
    assert newest(mask, 1).tolist() == [[False] * 4 + [True], [False] * 3 + [True, False]]
