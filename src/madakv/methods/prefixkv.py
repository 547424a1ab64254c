"""PrefixKV (NeurIPS 2025, arXiv 2412.03409): one threshold of cumulative priority for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator, Method
from madakv.methods.options import check_number, check_positive
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, proxy_attention


@dataclass(frozen=True, kw_only=True)
class PrefixKV(Method):
    """Each layer keeps as many of its best tokens as it takes to hold the same share of its attention.

    Importance is the attention of all queries, averaged over heads, so that all heads of a layer keep the same
    tokens. The share is found by bisection, such that all layers together meet the budget. The first tokens and the
    newest are kept, as in the authors' code, as long as they fit in half of a layer's part. All layers must be read
    before the first can be evicted.

    Ours differs in that the search runs for every prompt (the paper reports equal quality), where the authors
    estimate the layers' shares on a few samples once.

    Attributes:
        n_sink: how many first tokens are always kept (code: 4), at most a quarter of an average share.
        answer_weight: how much a token of the answer (`draft`, `lookahead`) counts against one of the prompt.
    """

    name: ClassVar[str] = "prefixkv"
    sees_all_layers: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {"sinks": "n_sink"}
    n_sink: int = 4
    answer_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("n_sink", self.n_sink)
        check_positive("answer_weight", self.answer_weight)

    def idle(self) -> dict[str, str]:
        """The weight of an answer that nobody looks at."""
        heard = self.draft or self.lookahead
        return super().idle() | ({} if heard else {"answer_weight": "neither draft nor lookahead"})

    def score(self, view: LayerView) -> Tensor:
        """The attention of all queries, averaged over heads."""
        return _over_heads(proxy_attention(view, view.modality != Modality.PADDING))

    def later_score(self, attention: Tensor) -> Tensor:
        """The mean over the group."""
        return super().later_score(attention) * self.answer_weight

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Shares of the layers by cumulative priority."""
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget)
        plans.protect_ends(self.n_sink)
        return _ByPriority(plans)


class _ByPriority(Allocator):
    def __init__(self, plans: RankedPlans) -> None:
        self._plans = plans

    def foresee(self, psi: Sequence[Tensor]) -> None:
        # [B, L, N], descending: how much of a layer's attention its best o tokens hold.
        priority = torch.stack([scores.mean(1) for scores in psi], dim=1).to(torch.float64)
        held = priority.sort(dim=-1, descending=True).values.cumsum(-1)
        held = held / held[..., -1:].clamp_min(torch.finfo(torch.float64).tiny)
        self._plans.share_layers(_sizes_at_one_share(held, self._plans.average * len(psi)))

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(_over_heads(psi))


def _sizes_at_one_share(held: Tensor, target: Tensor) -> Tensor:
    """[B, L]: entries per layer at the largest share of attention for which they sum to at most `target` ([B])."""
    low, high = torch.zeros_like(target, dtype=torch.float64), torch.ones_like(target, dtype=torch.float64)
    for _ in range(50):
        middle = (low + high) / 2
        fits = _sizes(held, middle).sum(-1) <= target
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return _sizes(held, low)


def _sizes(held: Tensor, share: Tensor) -> Tensor:
    """The fewest tokens of each layer that hold a share of its attention."""
    return (held < share[:, None, None]).sum(-1) + 1


def _over_heads(psi: Tensor) -> Tensor:
    """[B, H, N], every head with the mean of all."""
    return psi.mean(1, keepdim=True).expand_as(psi)
