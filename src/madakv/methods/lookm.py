"""LOOK-M (Findings of EMNLP 2024, arXiv 2406.18139): text first, and evicted pictures merged into what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.merge import Merge
from madakv.methods.base import Allocator
from madakv.methods.grouped import GroupedMethod
from madakv.methods.options import check_choice
from madakv.modality import Modality
from madakv.plan import KeepPlan


@dataclass(frozen=True, kw_only=True)
class LookM(GroupedMethod):
    """Every head keeps its newest tokens, then text, then the pictures that all queries attended to most.

    Half of a share goes to the newest tokens (the paper's split). Of the others, the score is the attention summed
    over all queries, and text outranks the rest by the largest score of its head (equations 4 and 5). Evicted
    picture tokens are merged into the kept entries of the most similar keys (equations 9 to 12).

    Ours differs in keeping to the budget: where text alone exceeds it, the authors keep all text all the same, and
    ours the best of it. The authors merge evicted text too, of which there is none in theirs.

    Attributes:
        merging: `"pivot"` (the paper's best), `"mean"` or `"weighted"`, see `Merge`; `"none"` drops what is evicted.
    """

    name: ClassVar[str] = "lookm"
    merging: str = "pivot"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merging != "none":
            check_choice("merging", self.merging, Merge)

    @property
    def merge(self) -> Merge | None:
        """The merging, if any."""
        return None if self.merging == "none" else self.merging  # type: ignore[return-value]

    def heard(self, modality: Tensor) -> Tensor:
        """All queries."""
        return modality != Modality.PADDING

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares, text first."""
        protect = modality != Modality.PADDING
        return TextFirst(RankedPlans(modality, heads=heads, layers=layers, budget=self.budget, protect=protect))


class TextFirst(Allocator):
    """Ranks text above everything else."""

    def __init__(self, plans: RankedPlans) -> None:
        self._plans = plans

    def decide(self, psi: Tensor) -> KeepPlan:
        """See `Allocator`."""
        text = (self._plans.modality == Modality.TEXT)[:, None]
        rank = psi.to(torch.float64)
        return self._plans.keep(rank + text * rank.amax(-1, keepdim=True))
