"""Random eviction: the floor that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator, Method, no_scores
from madakv.methods.options import check_number, check_proxies
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, ProxyRule, proxy_mask


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Every head keeps the newest tokens of the question and a random choice of the others.

    Attributes:
        seed: of the choice; equal prompts get equal plans.
        proxies: which tokens are always kept, see `ProxyRule`.
    """

    name: ClassVar[str] = "random"
    seed: int = 0
    proxies: ProxyRule = "question"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("seed", self.seed)
        check_proxies("proxies", self.proxies)

    def idle(self) -> dict[str, str]:
        """A draft, whose attention nobody compares."""
        return super().idle() | {"draft": "chance alone deciding"}

    def score(self, view: LayerView) -> Tensor:
        """Zeros: nothing is compared."""
        return no_scores(view)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares, random ranks."""
        protect = proxy_mask(modality, self.proxies)
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget, protect=protect)
        return _Shuffled(plans, self.seed)


class _Shuffled(Allocator):
    def __init__(self, plans: RankedPlans, seed: int) -> None:
        self._plans = plans
        self._seed = seed
        self._layer = 0

    def decide(self, psi: Tensor) -> KeepPlan:
        rank = torch.zeros(psi.shape)
        for row, valid in zip(rank, self._plans.modality.cpu() != Modality.PADDING, strict=True):
            # On the CPU and row by row, so that plans depend neither on the device nor on other rows.
            generator = torch.Generator().manual_seed(self._seed * 10_007 + self._layer)
            row[:, valid] = torch.rand(len(row), int(valid.sum()), generator=generator)
        self._layer += 1
        return self._plans.keep(rank.to(psi.device))
