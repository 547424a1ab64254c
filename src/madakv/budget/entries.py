"""How many entries a budget allows, per head and layer on average, and per head of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.errors import ConfigurationError

_SLACK = 1e-12
"""What a share may be off by, as floats reckon: 0.29 * 100 is 28.999999999999996, and means 29."""


def prompt_entries(budget: float | int, tokens: Tensor) -> Tensor:
    """Entries per head and layer that a budget allows on average.

    Args:
        budget: share of the prompt in (0, 1] if a float, entries per head and layer if an int.
        tokens: [B] int64, prompt tokens of each row without padding.

    Returns:
        [B] int64, `budget * N` rounded down, or `min(budget, N)`.

    Raises:
        ConfigurationError: a budget of another kind or out of range.
    """
    check_budget(budget)
    if isinstance(budget, int):
        return tokens.clamp_max(min(budget, torch.iinfo(torch.int64).max))
    return (tokens.to(torch.float64) * (budget + _SLACK)).floor().to(torch.int64)


def check_budget(budget: float | int) -> None:
    """Raise ConfigurationError unless the budget is a share in (0, 1] or a positive whole number."""
    hint = "a share of the prompt in (0, 1], such as 0.2, or a whole number of entries per head and layer"
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ConfigurationError(f"budget must be {hint}; got {budget!r}")
    if budget <= 0 or (isinstance(budget, float) and not budget <= 1):
        raise ConfigurationError(f"budget must be {hint}; got {budget!r}")


def per_head(total: Tensor, heads: int) -> Tensor:
    """[B] -> [B, H] int64: an even split that sums to the whole; the first heads take the remainder."""
    head = torch.arange(heads, device=total.device)
    return total[:, None] // heads + (head < (total % heads)[:, None]).to(torch.int64)
