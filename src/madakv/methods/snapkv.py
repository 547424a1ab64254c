"""SnapKV (NeurIPS 2024, arXiv 2404.14469): what the last tokens of the prompt attend to, pooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator
from madakv.methods.grouped import GroupedMethod
from madakv.methods.options import check_choice, check_proxies, check_width
from madakv.plan import KeepPlan
from madakv.scoring import ProxyRule, proxy_mask
from madakv.scoring.pooling import Pooling, PoolingScope, pool


@dataclass(frozen=True, kw_only=True)
class SnapKV(GroupedMethod):
    """Every head keeps the observation window and the best-scored tokens before it.

    A token's score is the attention that the window pays to it, pooled over neighbours so that spans survive
    (section 4); the window does not pool, and where it does not fit its tokens compete unpooled. Ours differs in that
    budgets count the window, of which at most the newest half of a head's share is kept; in averaging the query heads
    of a group, where the authors' code repeats the keys; and in pooling by mean over the neighbours that there are,
    where theirs counts missing ones as zeros.

    Attributes:
        window_size: the last tokens whose attention scores, and which are kept (32 in the authors' LongBench
            settings). `"question"` takes the text after the last picture, see `ProxyRule`.
        kernel_size: width of the pool (7 there).
        pooling: "max" (there), or "mean".
        pooling_scope: which tokens pool with which, see `PoolingScope`; published: all with all.
    """

    name: ClassVar[str] = "snapkv"
    renamed: ClassVar[Mapping[str, str]] = {"window": "window_size", "kernel": "kernel_size"}
    window_size: ProxyRule = 32
    kernel_size: int = 7
    pooling: Pooling = "max"
    pooling_scope: PoolingScope = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_proxies("window_size", self.window_size)
        check_width("kernel_size", self.kernel_size)
        check_choice("pooling", self.pooling, Pooling)
        check_choice("pooling_scope", self.pooling_scope, PoolingScope)

    def idle(self) -> dict[str, str]:
        """How neighbours pool, where there are none."""
        alone = "kernel_size=1"
        return super().idle() | ({"pooling": alone, "pooling_scope": alone} if self.kernel_size == 1 else {})

    def heard(self, modality: Tensor) -> Tensor:
        """The window."""
        return proxy_mask(modality, self.window_size)

    def rank(self, psi: Tensor, modality: Tensor) -> Tensor:
        """[B, H, N]: what is kept first, from summed scores."""
        return pool(psi, modality, self.kernel_size, self.pooling, self.pooling_scope, without=self.heard(modality))

    def layer_weights(self, layers: int) -> Tensor:
        """[L], how the budget beyond the window is shared by the layers: evenly."""
        return torch.ones(layers)

    @property
    def head_floor(self) -> float:
        """Share of its even part that each head is sure of: all of it."""
        return 1.0

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Shares of the layers and heads, ranked by pooled scores."""
        window = self.heard(modality)
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget, protect=window)
        plans.share_layers(self.layer_weights(layers), floor=window.sum(-1))
        return _Observed(self, plans)


class _Observed(Allocator):
    def __init__(self, method: SnapKV, plans: RankedPlans) -> None:
        self._method = method
        self._plans = plans

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(self._method.rank(psi, self._plans.modality), floor=self._method.head_floor)
