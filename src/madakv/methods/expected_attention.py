"""Expected Attention (arXiv 2510.00636): what later queries would attend to, were they normally distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.errors import ConfigurationError, UnsupportedModelError
from madakv.methods.base import Allocator, Method, no_scores
from madakv.methods.options import check_flag, check_number, check_share, is_count
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView
from madakv.scoring.values import value_norms


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Method):
    """Every head keeps what later queries are expected to attend to most, times the norms of values.

    The queries of the prompt before RoPE have a mean m and a covariance C. With R the mean rotation of the next
    positions, the expected logit of a key k is that of a log-normal, s (Rm) . k + s^2 / 2 k . (R C R^T) k, s being
    the scale of the logits; a softmax over all keys makes attention of it, and query heads of a group are averaged.
    This is kvpress' `ExpectedAttentionPress`, by the paper's authors. Where they project the hidden states once more
    to have queries before RoPE, ours turns back those that attended, which is the same; logit caps, attention sinks
    of the model and masks other than padding's play no part. Ours differs in that of a head's share at most half goes
    to the first tokens, and in weighing by |v| what a draft or a lookahead attends to as well.

    Attributes:
        n_future_positions: how many next positions R is averaged over (kvpress: 512).
        n_sink: first tokens that tell nothing of queries and are kept whatever their score (kvpress: 4).
        use_covariance: whether C counts, or m alone.
        use_vnorm: whether expected attention is multiplied by the norms of values.
        epsilon: added to it before (kvpress: 0).
        safeguard: share of its even part that each head is sure of, see `AdaKV`; 1: heads keep equally many, as in
            `ExpectedAttentionPress` alone. Less is as with `AdaKVPress` around it.
    """

    name: ClassVar[str] = "expected_attention"
    decides_once: ClassVar[bool] = True
    n_future_positions: int = 512
    n_sink: int = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0
    safeguard: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.n_future_positions):
            raise ConfigurationError(f"n_future_positions must be a positive int; got {self.n_future_positions!r}")
        check_number("n_sink", self.n_sink)
        check_flag("use_covariance", self.use_covariance)
        check_flag("use_vnorm", self.use_vnorm)
        check_share("epsilon", self.epsilon)
        check_share("safeguard", self.safeguard)

    def idle(self) -> dict[str, str]:
        """What is added to all scores alike and then multiplied by nothing."""
        return super().idle() | ({} if self.use_vnorm else {"epsilon": "use_vnorm=False"})

    def score(self, view: LayerView) -> Tensor:
        """The attention that is expected, and epsilon.

        Raises:
            UnsupportedModelError: nobody knows how the model turns queries by their positions.
        """
        if self.keeps_everything:
            return no_scores(view)
        if view.rotary is None:
            raise UnsupportedModelError(
                f"{self.name} turns queries back to before RoPE, and this engine does not say how: LayerView.rotary"
            )
        valid = view.modality != Modality.PADDING
        counted = valid & (valid.cumsum(-1) > self.n_sink)
        share = counted / counted.sum(-1, keepdim=True).clamp_min(1)
        expected = []
        groups = view.query.split(view.query.shape[1] // view.key.shape[1], dim=1)
        # One KV head after another: in fp32, all queries at once would be several times what the model holds.
        for query, key in zip(groups, view.key.split(1, dim=1), strict=True):
            query, key = view.rotary.turned_back(query), view.rotary.met_ahead(key, self.n_future_positions)
            mean = (share[:, None, None] @ query).squeeze(2)
            logits = (key @ mean[..., None]).squeeze(-1) * view.scaling
            if self.use_covariance:
                spread = (query - mean[:, :, None]) * share[:, None, :, None].sqrt()
                logits += ((key @ (spread.mT @ spread)) * key).sum(-1) * (view.scaling**2 / 2)
            attention = logits.masked_fill(~counted[:, None], float("-inf")).softmax(-1)
            expected.append(attention.mean(1) + self.epsilon)
        return torch.where(counted[:, None], torch.stack(expected, 1), 0.0)

    def worth(self, view: LayerView) -> Tensor | None:
        """The norms of values, if they count."""
        return value_norms(view.value) if self.use_vnorm and not self.keeps_everything else None

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares of the layers; the first tokens are protected."""
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget)
        plans.protect(plans.first(torch.clamp(plans.average // 2, max=self.n_sink)))
        return _Expected(plans, self.safeguard)


class _Expected(Allocator):
    def __init__(self, plans: RankedPlans, safeguard: float) -> None:
        self._plans = plans
        self._safeguard = safeguard

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(psi, floor=self._safeguard)
