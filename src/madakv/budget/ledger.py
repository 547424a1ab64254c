"""The account of a prompt's entries: what may be kept in all, what is spent, what each layer gets.

Hierarchical compression compensation is this account. With phi entries per head in layer l, of which the layer
keeps K more (or, K < 0, fewer) in sum over its H heads, the paper gives the next layer
`phi[l+1] = phi[l] - K[l] / (L - l)`; spread over heads and layers so that nothing is lost, that is
`phi[l+1] = phi[l] - K[l] / (H * (L - l))`, and that is exactly what is left over the layers that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.errors import ConfigurationError


def prompt_entries(budget: float | int, tokens: Tensor) -> Tensor:
    """Entries per head and layer that a budget allows on average.

    Args:
        budget: share of the prompt in (0, 1] if a float, entries per head and layer if an int.
        tokens: [B] int64, prompt tokens of each row without padding.

    Returns:
        [B] int64, `round(budget * N)` or `min(budget, N)`.

    Raises:
        ConfigurationError: a budget of another kind or out of range.
    """
    check_budget(budget)
    if isinstance(budget, int):
        return tokens.clamp_max(min(budget, torch.iinfo(torch.int64).max))
    return (tokens.to(torch.float64) * budget).round().to(torch.int64)


def check_budget(budget: float | int) -> None:
    """Raise ConfigurationError unless the budget is a share in (0, 1] or a positive whole number."""
    hint = "a share of the prompt in (0, 1], such as 0.2, or a whole number of entries per head and layer"
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ConfigurationError(f"budget must be {hint}; got {budget!r}")
    if budget <= 0 or (isinstance(budget, float) and not budget <= 1):
        raise ConfigurationError(f"budget must be {hint}; got {budget!r}")


class Ledger:
    """Entries left for the layers that are left, per batch row.

    Args:
        per_head: [B] int64, entries per head and layer on average, from `prompt_entries`.
        tokens: [B] int64, prompt tokens of each row without padding.
        heads: KV heads H of every layer.
        layers: evicted layers L.
    """

    def __init__(self, per_head: Tensor, tokens: Tensor, heads: int, layers: int) -> None:
        self.heads = heads
        self.layers_left = layers
        self.left = per_head * heads * layers
        self._everything = tokens * heads

    def even(self) -> Tensor:
        """[B] int64: what is left, spread evenly over the layers that are left; at most the whole prompt."""
        return torch.minimum(self.left // self.layers_left, self._everything)

    def most(self, reserve: Tensor) -> Tensor:
        """[B] int64: the most this layer can take and still leave `reserve` ([B]) to each later layer."""
        return torch.minimum(self.left - reserve * (self.layers_left - 1), self._everything)

    @property
    def ample(self) -> Tensor:
        """[B] bool: every layer that is left can keep the whole prompt."""
        return self.left >= self._everything * self.layers_left

    def spend(self, kept: Tensor) -> None:
        """Book what a layer really kept, [B] int64 summed over its heads, and move on to the next layer."""
        self.left = self.left - kept
        self.layers_left -= 1


def per_head(total: Tensor, heads: int) -> Tensor:
    """[B] -> [B, H] int64: an even split that sums to the whole; the first heads take the remainder."""
    head = torch.arange(heads, device=total.device)
    return total[:, None] // heads + (head < (total % heads)[:, None]).to(torch.int64)
