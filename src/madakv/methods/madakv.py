"""MadaKV (ACL 2025, arXiv 2506.15724): modality preference adaptation and hierarchical compensation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from madakv.budget import (
    Ledger,
    apportion,
    best_of_all_heads,
    demand,
    per_head,
    preference,
    prompt_entries,
    top_of_each_modality,
)
from madakv.errors import ConfigurationError
from madakv.methods.base import Allocator, GroupedMethod
from madakv.methods.options import (
    check_choice,
    check_flag,
    check_proxies,
    check_share,
    check_width,
    is_count,
)
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, ProxyRule, proxy_mask
from madakv.scoring.pooling import pool
from madakv.scoring.proxies import newest
from madakv.scoring.values import value_norms

Compensation = Literal["none", "capped", "demand", "signal"]
"""What a layer keeps when its demand and its allotment differ; see `MadaKV.compensation`."""


@dataclass(frozen=True, kw_only=True)
class MadaKV(GroupedMethod):
    """Each head keeps, of each modality, the tokens its proxies attend to most.

    Of a head's even share of its layer's allotment the proxies come first, the newest that fit in half of it; the
    rest is split between modalities in proportion to the attention they get (MPA), and what a modality cannot use
    goes to the others. Heads can compete for what lies above a safeguard. What a layer spares or overdraws can be
    spread over the layers after it (HCC). Over the whole prompt at most `round(budget * N) * H * L` entries stay.

    Ours beyond the paper: `text_pooling`, `values`, `safeguard`, `context`, `echo`, `draft`, `lookahead` and their
    weights. `madakv-paper` is without.

    Attributes:
        budget: see `Method`.
        theta: share of a modality's attention that defines a head's demand for it (paper: theta).
        compensation: how HCC reads "demand against allotment". `"none"`: every layer keeps an even allotment
            (MPA alone). `"capped"`: keep the smaller of demand and allotment, hand the saving on.
            `"demand"`: keep the demand as long as half an average allotment is left for every later layer.
            `"signal"`: keep the allotment and let demand only steer the next layer's.
        proxies: whose queries score, see `ProxyRule`.
        max_proxies: the most proxies that `"question"` takes, the newest.
        text_pooling: width of the max-pool over neighbouring text tokens' scores, 1 = none; spans that are
            copied need their neighbours, patches do not.
        values: whether scores are multiplied by the norm of the token's value, so that they weigh what an entry adds
            to the head's output.
        safeguard: share of its even part, and of that part's split between modalities, that each head is sure of; the
            rest goes to the best-ranked of all heads of the layer together (as in AdaKV, arXiv 2407.11550); 1.0:
            heads keep equally many.
    """

    name: ClassVar[str] = "madakv"
    theta: float = 0.9
    compensation: Compensation = "none"
    proxies: ProxyRule = "question"
    max_proxies: int = 32
    text_pooling: int = 5
    values: bool = True
    safeguard: float = 1.0
    answer_weight: float = 16.0
    context: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.theta, int | float) or not 0 < self.theta <= 1:
            raise ConfigurationError(f"theta must be in (0, 1]; got {self.theta!r}")
        check_choice("compensation", self.compensation, Compensation)
        check_proxies("proxies", self.proxies)
        if not is_count(self.max_proxies):
            raise ConfigurationError(f"max_proxies must be a positive int; got {self.max_proxies!r}")
        check_width("text_pooling", self.text_pooling)
        check_flag("values", self.values)
        check_share("safeguard", self.safeguard)

    def worth(self, view: LayerView) -> Tensor | None:
        """The norms of the values, if they count."""
        return value_norms(view.value) if self.values else None

    def heard(self, modality: Tensor) -> Tensor:
        """The proxies."""
        return proxy_mask(modality, self.proxies, self.max_proxies)

    def kinds(self, modality: Tensor) -> Tensor:
        """[B, N]: between which kinds of token budgets are split."""
        return modality

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """MPA within layers, HCC across them."""
        return _MadaAllocator(self, modality, heads, layers)


class _MadaAllocator(Allocator):
    def __init__(self, method: MadaKV, modality: Tensor, heads: int, layers: int) -> None:
        self.method = method
        self.modality = method.kinds(modality)
        self.protectable = method.heard(modality)
        self.valid = (modality != Modality.PADDING)[:, None].expand(-1, heads, -1)
        tokens = self.valid[:, 0].sum(-1)
        average = prompt_entries(method.budget, tokens)
        self.reserve = average * heads // 2
        self.ledger = Ledger(average, tokens, heads, layers)
        self.steered: Tensor | None = None

    def decide(self, psi: Tensor) -> KeepPlan:
        ledger = self.ledger
        allotment = self._allotment()
        share = per_head(allotment, ledger.heads)
        protected = newest(self.protectable[:, None].expand_as(self.valid), (share // 2)[..., None])
        candidates = self.valid & ~protected
        ranking = self._ranking(psi)
        split = self._split(psi, ranking, candidates, share - protected.sum(-1), allotment)
        best = top_of_each_modality(ranking, self.modality, candidates, split)
        keep = protected | best
        ledger.spend(keep.sum((1, 2)))
        return KeepPlan.from_mask(keep)

    def _allotment(self) -> Tensor:
        """[B] int64: entries of this layer over all its heads."""
        ledger = self.ledger
        if self.method.compensation != "signal" or self.steered is None or ledger.layers_left == 1:
            return ledger.even()
        steered = torch.minimum(self.steered, ledger.most(self.reserve))
        return torch.where(ledger.ample, ledger.even(), torch.maximum(steered, self.reserve))

    def _split(self, psi: Tensor, ranking: Tensor, candidates: Tensor, free: Tensor, allotment: Tensor) -> Tensor:
        """[B, H, M] int64: how many candidates of each modality each head keeps.

        Args:
            ranking: [B, H, N], what is kept first.
            free: [B, H], each head's share without its protected tokens.
            allotment: [B], the layer's allotment, protected tokens included.
        """
        method, ledger = self.method, self.ledger
        if method.compensation == "none":
            weight, tokens = preference(psi, self.modality, candidates)
            return self._compete(ranking, candidates, apportion(free, weight, tokens), tokens)
        asked = demand(psi, self.modality, candidates, method.theta)
        split = self._compete(ranking, candidates, apportion(free, asked.weight, asked.tokens), asked.tokens)
        protected = allotment - free.sum(-1)
        surplus = protected + asked.wanted.sum((1, 2)) - allotment
        if method.compensation == "signal":
            later = max(1, ledger.layers_left - 1)
            self.steered = allotment - torch.div(surplus, later, rounding_mode="floor")
            return split
        # The last layer has nobody to hand a saving to, and an ample budget needs none.
        settled = ledger.ample | torch.tensor(ledger.layers_left == 1, device=psi.device)
        if method.compensation == "capped":
            kept = torch.minimum(split, asked.wanted)
        else:
            room = (ledger.most(self.reserve) - protected).clamp_min(0)
            per_head_wanted = asked.wanted.sum(-1)
            granted = apportion(room, per_head_wanted.to(torch.float64), per_head_wanted)
            kept = apportion(granted, asked.wanted.to(torch.float64), asked.wanted)
        return torch.where(settled[:, None, None], split, kept)

    def _compete(self, ranking: Tensor, candidates: Tensor, split: Tensor, tokens: Tensor) -> Tensor:
        """[B, H, M] int64: what heads keep once they have competed for all beyond their safeguard.

        Args:
            split: [B, H, M], what they would keep without competition.
            tokens: [B, H, M], how many candidates there are.
        """
        sure = self.method.safeguard
        if sure == 1:
            return split
        total = split.sum((1, 2))
        best = best_of_all_heads(ranking, self.modality, candidates, total)
        wanted = sure * split.to(torch.float64) + (1 - sure) * best.to(torch.float64)
        free = apportion(total, wanted.sum(-1), tokens.sum(-1))
        return apportion(free, wanted, tokens)

    def _ranking(self, psi: Tensor) -> Tensor:
        """[B, H, N]: psi, for text tokens pooled over text neighbours."""
        return pool(psi, self.modality, self.method.text_pooling, scope="text")
