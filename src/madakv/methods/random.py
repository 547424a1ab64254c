"""Random eviction: the floor that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator, Method
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

    def score(self, view: LayerView) -> Tensor:
        """Zeros: nothing is compared."""
        B, H, N, _ = view.key.shape
        return torch.zeros(B, H, N, dtype=torch.float32, device=view.key.device)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares, random ranks."""
        protect = proxy_mask(modality, self.proxies)
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget, protect=protect)
        return _Shuffled(plans, self.seed)


class _Shuffled(Allocator):
    def __init__(self, plans: RankedPlans, seed: int) -> None:
        self._plans = plans
        # On the CPU, so that plans do not depend on the device.
        self._generator = torch.Generator().manual_seed(seed)

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(torch.rand(psi.shape, generator=self._generator).to(psi.device))
