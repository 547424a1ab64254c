"""KeyDiff (arXiv 2504.15364): keys that are unlike the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator, Method
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


@dataclass(frozen=True, kw_only=True)
class KeyDiff(Method):
    """Every head keeps the tokens whose keys point away from where its keys point on average.

    The anchor of a head is the mean of its unit keys, and a token's score is the cosine distance of its key from it;
    attention plays no part. Ours differs in deciding once over the whole prompt, where the paper
    evicts after every block of it. What a draft or a lookahead attends to is added in units of these distances, from
    0 to 2.
    """

    name: ClassVar[str] = "keydiff"

    def score(self, view: LayerView) -> Tensor:
        """One minus the cosine of each key and the anchor."""
        valid = (view.modality != Modality.PADDING)[:, None]
        key = normalize(view.key.float(), dim=-1)
        anchor = normalize((key * valid[..., None]).sum(2, keepdim=True), dim=-1)
        return torch.where(valid, 1 - (key * anchor).sum(-1), 0.0)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares."""
        return _Unlike(RankedPlans(modality, heads=heads, layers=layers, budget=self.budget))


class _Unlike(Allocator):
    def __init__(self, plans: RankedPlans) -> None:
        self._plans = plans

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(psi)
