"""What every method is: a frozen, printable choice of scores and budgets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from madakv.budget.ledger import check_budget
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


class Allocator(ABC):
    """Decides one prompt's keep-plans, layer after layer; holds what one layer tells the next."""

    @abstractmethod
    def decide(self, psi: Tensor) -> KeepPlan:
        """The plan of the next layer.

        Args:
            psi: [B, H, N] float, that layer's scores.
        """


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to evict; its `repr` is its provenance in every result.

    Attributes:
        budget: share of the prompt that stays, a float in (0, 1], or entries per head and layer, an int.
    """

    name: ClassVar[str]
    budget: float | int = 0.2

    def __post_init__(self) -> None:
        check_budget(self.budget)

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """psi, [B, H, N] fp32, from one layer's prefill."""

    @abstractmethod
    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """The decision maker for one prompt.

        Args:
            modality: [B, N] of `Modality` values.
            heads: KV heads of every layer.
            layers: layers that are evicted.
        """
