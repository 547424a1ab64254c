"""H2O (NeurIPS 2023, arXiv 2306.14048): heavy hitters by accumulated attention, and a recent window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator
from madakv.methods.grouped import GroupedMethod
from madakv.modality import Modality
from madakv.plan import KeepPlan


@dataclass(frozen=True, kw_only=True)
class H2O(GroupedMethod):
    """Every head keeps the tokens that all queries of the prompt attended to most, and the newest ones.

    Half of a head's share goes to the newest tokens, half to the heavy hitters among the others (the paper's
    split). The paper evicts one entry per step as it reads; ours evicts once, when the prompt is read, from the
    attention summed over all its queries. That sum is computed block by block, never N x N at once, but costs as
    much arithmetic as the prefill's own attention.
    """

    name: ClassVar[str] = "h2o"

    def heard(self, modality: Tensor) -> Tensor:
        """All queries."""
        return modality != Modality.PADDING

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares; the newest half of a share is protected."""
        protect = modality != Modality.PADDING
        return _Heaviest(RankedPlans(modality, heads=heads, layers=layers, budget=self.budget, protect=protect))


class _Heaviest(Allocator):
    def __init__(self, plans: RankedPlans) -> None:
        self._plans = plans

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(psi)
