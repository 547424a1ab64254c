"""MadaKV (ACL 2025, arXiv 2506.15724): modality preference adaptation and hierarchical compensation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from madakv.budget import (
    Ledger,
    SharedPool,
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
from madakv.scoring.values import output_norms

Compensation = Literal["shared", "none", "capped", "demand", "signal"]
"""What layers hand on to each other; see `MadaKV.compensation`."""


@dataclass(frozen=True, kw_only=True)
class MadaKV(GroupedMethod):
    """Entries stay where they add most to what the model computes: in whatever layer, head and modality.

    The paper splits a head's share between modalities by the attention they get (MPA), and lets layers hand on what
    they spare (HCC). Ours takes both to their end: every head is sure of a part, split between modalities as the
    paper has it, the newest proxies first; for all beyond, the entries of all heads of all layers compete. An
    entry's score is the attention it gets, times how far its value can move the residual stream, |W_o v|: units that
    heads and layers share. Over the whole prompt at most `round(budget * N) * H * L` entries stay, and no more while
    it is read: a layer that is read narrows those before it, and the outcome is that of a choice among all layers
    at once (`budget/pool.py`).

    Ours beyond the paper: `compensation="shared"`, `safeguard`, `protected`, `values`, `text_pooling`, `context`,
    `echo`, `draft`, `lookahead` and their weights. `madakv-paper` is without.

    Attributes:
        budget: see `Method`.
        compensation: what layers hand on. `"shared"`: they compete, as said. The others are readings of the paper's
            HCC, in which layers are decided for good one after another. `"none"`: every layer keeps an even allotment
            (MPA alone). `"capped"`: keep the smaller of demand and allotment, hand the saving on.
            `"demand"`: keep the demand as long as half an average allotment is left for every later layer.
            `"signal"`: keep the allotment and let demand only steer the next layer's.
        theta: share of a modality's attention that defines a head's demand for it (paper: theta), in those readings.
        proxies: whose queries score, see `ProxyRule`.
        max_proxies: the most proxies that `"question"` takes, the newest.
        text_pooling: width of the max-pool over neighbouring text tokens' scores, 1 = none.
        values: whether scores are multiplied by how far a token's value can move the residual stream.
        safeguard: share of its even part, and of that part's split between modalities, that each head is sure of; the
            rest goes to the best-ranked of all heads, of all layers where they share and else of one layer together
            (as in AdaKV, arXiv 2407.11550); 1.0: heads keep equally many.
        protected: the most that proxies take, whatever their scores, of what a head is sure of, or of its even part
            where layers do not share; the newest first.
    """

    name: ClassVar[str] = "madakv"
    theta: float = 0.9
    compensation: Compensation = "shared"
    proxies: ProxyRule = "question"
    max_proxies: int = 32
    text_pooling: int = 1
    values: bool = True
    safeguard: float = 0.4
    protected: float = 0.5
    answer_weight: float = 4.0
    context: int = 64
    context_weight: float = 0.25
    echo: int | Literal["auto"] = "auto"
    echo_weight: float = 0.5

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
        check_share("protected", self.protected)

    def worth(self, view: LayerView) -> Tensor | None:
        """How far values can move the residual stream, if that counts."""
        return output_norms(view) if self.values and not self.keeps_everything else None

    def heard(self, modality: Tensor) -> Tensor:
        """The proxies."""
        return proxy_mask(modality, self.proxies, self.max_proxies)

    def kinds(self, modality: Tensor) -> Tensor:
        """[B, N]: between which kinds of token budgets are split."""
        return modality

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """MPA within layers, HCC or competition across them."""
        if self.compensation == "shared":
            return _SharedAllocator(self, modality, heads, layers)
        return _MadaAllocator(self, modality, heads, layers)

    def protectable(self, share: Tensor) -> Tensor:
        """How many of a head's proxies are kept whatever their scores, of a share of entries; int64, as the share."""
        return _part(share, self.protected)

    def ranking(self, psi: Tensor, kinds: Tensor) -> Tensor:
        """[B, H, N]: psi, for text tokens pooled over text neighbours."""
        return pool(psi, kinds, self.text_pooling, scope="text")


def _part(entries: Tensor, share: float) -> Tensor:
    """The whole entries of a share of int64 entries."""
    return (entries.to(torch.float64) * share).to(torch.int64)


class _SharedAllocator(Allocator):
    """All heads of all layers compete for what lies above their safeguards."""

    def __init__(self, method: MadaKV, modality: Tensor, heads: int, layers: int) -> None:
        self.method = method
        self.modality = method.kinds(modality)
        self.valid = (modality != Modality.PADDING)[:, None].expand(-1, heads, -1)
        average = prompt_entries(method.budget, self.valid[:, 0].sum(-1))
        self.share = _part(average, method.safeguard)
        self.protected = newest(
            method.heard(modality)[:, None].expand_as(self.valid), method.protectable(self.share)[:, None, None]
        )
        self.pool = SharedPool(average * heads * layers, self.share * heads, layers)

    def decide(self, psi: Tensor) -> KeepPlan:
        candidates = self.valid & ~self.protected
        ranking = self.method.ranking(psi, self.modality)
        weight, tokens = preference(psi, self.modality, candidates)
        split = apportion(self.share[:, None] - self.protected.sum(-1), weight, tokens)
        sure = self.protected | top_of_each_modality(ranking, self.modality, candidates, split)
        self.pool.add(ranking, self.valid, sure)
        return self.pool.plans[-1]

    def narrowed(self, plans: list[KeepPlan]) -> list[KeepPlan]:
        return self.pool.plans[: len(plans)]


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
        protected = newest(self.protectable[:, None].expand_as(self.valid), self.method.protectable(share)[..., None])
        candidates = self.valid & ~protected
        ranking = self.method.ranking(psi, self.modality)
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
