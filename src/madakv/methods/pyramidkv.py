"""PyramidKV (arXiv 2406.02069): SnapKV with less and less for deeper layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from madakv.budget.layers import pyramid
from madakv.errors import ConfigurationError
from madakv.methods.snapkv import SnapKV
from madakv.scoring import ProxyRule


@dataclass(frozen=True, kw_only=True)
class PyramidKV(SnapKV):
    """SnapKV's scores; what the layers keep beyond the window falls in equal steps (equations 4 and 5).

    Ours differs in that the layers' budgets sum to the account exactly, where the authors' code rounds up, and in
    that the pyramid stands however large the budget is, where theirs turns flat.

    Attributes:
        window_size: see `SnapKV` (8 in the authors' LongBench settings).
        steepness: beta; beyond the window, the last layer gets 1 / beta of the average (code: 20).
    """

    name: ClassVar[str] = "pyramidkv"
    window_size: ProxyRule = 8
    steepness: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steepness, bool) or not isinstance(self.steepness, int | float) or self.steepness < 1:
            raise ConfigurationError(f"steepness must be 1 or more; got {self.steepness!r}")

    def layer_weights(self, layers: int) -> Tensor:
        """[L], falling from the first layer to the last."""
        return pyramid(layers, self.steepness)
