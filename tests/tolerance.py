"""One way to say "the same numbers", everywhere: relative RMS error, and NaN never passes."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_rms(got: Tensor, want: Tensor) -> float:
    """RMS of the error over RMS of what is wanted; NaN anywhere gives NaN, which compares false."""
    assert got.shape == want.shape, f"shapes differ: {tuple(got.shape)} and {tuple(want.shape)}"
    got, want = got.double(), want.double()
    assert want.abs().max() > 0, "nothing to compare: all zeros are wanted"
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


def assert_same(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Fail unless the relative RMS error is at most `tolerance`."""
    error = relative_rms(got, want)
    assert error <= tolerance, f"relative RMS error {error:.3g} is above {tolerance:.3g}"


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""What each dtype's rounding allows."""
