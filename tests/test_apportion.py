"""Whole-number shares: their sum is exact, whatever the weights and the caps."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madakv.budget import apportion
from tests.allocate_reference import apportion_reference


def split(total: int, weights: list[float], caps: list[int]) -> list[int]:
    parts: list[int] = apportion(
        torch.tensor(total), torch.tensor(weights, dtype=torch.float64), torch.tensor(caps)
    ).tolist()
    return parts


@pytest.mark.parametrize(
    ("total", "weights", "caps", "expected"),
    [
        pytest.param(10, [1, 1], [9, 9], [5, 5], id="proportional"),
        pytest.param(10, [3, 1], [9, 9], [8, 2], id="half goes to the lower index"),
        pytest.param(10, [1, 3], [9, 9], [3, 7], id="half goes to the lower index, mirrored"),
        pytest.param(7, [0.5, 0.3, 0.2], [9, 9, 9], [4, 2, 1], id="largest remainder is 0.5"),
        pytest.param(2, [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], id="ties to the lower index"),
        pytest.param(10, [8, 1, 1], [3, 9, 9], [3, 4, 3], id="spill"),
        pytest.param(10, [8, 3, 1], [3, 9, 9], [3, 5, 2], id="spill in proportion: 5.25 and 1.75"),
        pytest.param(12, [8, 2, 1, 1], [3, 3, 9, 9], [3, 3, 3, 3], id="spill that fills the next"),
        pytest.param(6, [1, 0, 0], [2, 2, 6], [2, 1, 3], id="no weight left: by remaining room"),
        pytest.param(4, [0, 0], [2, 6], [1, 3], id="no weight at all: by room"),
        pytest.param(3, [0, 1], [9, 9], [0, 3], id="no weight, no entry"),
        pytest.param(99, [1, 0, 5], [2, 3, 4], [2, 3, 4], id="more than there is room"),
        pytest.param(5, [1, 1], [0, 9], [0, 5], id="empty recipient"),
        pytest.param(0, [1, 1], [9, 9], [0, 0], id="nothing to hand out"),
        pytest.param(5, [1, 1], [0, 0], [0, 0], id="no room"),
        pytest.param(5, [2], [9], [5], id="one recipient"),
        pytest.param(8, [1e300, 1e-300], [5, 5], [5, 3], id="far apart"),
        pytest.param(5, [3e-310, 2e-310], [9, 9], [3, 2], id="below the normal range"),
        pytest.param(5, [1.2e308, 0.8e308], [9, 9], [3, 2], id="sum above the range"),
    ],
)
def test_known_splits(total: int, weights: list[float], caps: list[int], expected: list[int]) -> None:
    assert split(total, weights, caps) == expected


def test_rounding_noise_does_not_break_ties() -> None:
    # 5075/5120 of 3489, 417 and 1214: the first two remainders are 225/5120 + 1/2 and the same, but for noise.
    weights = [3489 * 0.7, 417 * 0.7, 1214 * 0.7]
    assert split(5075, weights, [5120] * 3) == [3459, 413, 1203]


weight = st.one_of(
    st.sampled_from([0.0, 0.1, 0.25, 1.0, 1.0, 3.0]), st.integers(0, 40).map(float), st.floats(0, 1e30)
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[list[float]], list[list[int]]]:
    """Some splits over the same number of recipients."""
    size = draw(st.integers(1, 6))
    caps = draw(st.lists(st.lists(st.integers(0, 40), min_size=size, max_size=size), min_size=1, max_size=4))
    weights = [draw(st.lists(weight, min_size=size, max_size=size)) for _ in caps]
    totals = [draw(st.integers(0, 2 * sum(row) // 2 + 5)) for row in caps]
    return totals, weights, caps


@settings(max_examples=400, deadline=None, derandomize=True)
@given(problems())
def test_sum_caps_and_quotas(problem: tuple[list[int], list[list[float]], list[list[int]]]) -> None:
    totals, weights, caps = problem
    shares = apportion(torch.tensor(totals), torch.tensor(weights, dtype=torch.float64), torch.tensor(caps)).tolist()
    for total, mass, cap, share in zip(totals, weights, caps, shares, strict=True):
        assert sum(share) == min(total, sum(cap))
        assert all(0 <= part <= most for part, most in zip(share, cap, strict=True))
        assert share == apportion_reference(total, mass, cap)
        whole = sum(map(Fraction, mass))
        quotas = [total * Fraction(part) / whole for part in mass] if whole else []
        if all(quota <= most for quota, most in zip(quotas, cap, strict=False)):
            assert all(abs(part - quota) < 1 for part, quota in zip(share, quotas, strict=False))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems(), st.randoms(use_true_random=False))
def test_each_split_is_decided_alone(
    problem: tuple[list[int], list[list[float]], list[list[int]]], shuffler: object
) -> None:
    totals, weights, caps = problem
    together = apportion(
        torch.tensor(totals), torch.tensor(weights, dtype=torch.float64), torch.tensor(caps)
    ).tolist()
    assert together == [split(*one) for one in zip(totals, weights, caps, strict=True)]


def test_any_leading_shape() -> None:
    total = torch.arange(6).view(2, 3)
    caps = torch.full((2, 3, 4), 3)
    shares = apportion(total, torch.rand(2, 3, 4, dtype=torch.float32), caps)
    assert shares.shape == (2, 3, 4)
    assert shares.dtype == torch.int64
    assert torch.equal(shares.sum(-1), total)
    assert torch.equal(caps, torch.full((2, 3, 4), 3))
